"""Every op by name, one file a family. An op's forward and backward stand together in one function."""

from tensorgrad.ops.activation import erf, gelu, relu, sigmoid, silu
from tensorgrad.ops.attention import attention, rotary_embedding
from tensorgrad.ops.comparison import (
    all,
    any,
    argmax,
    argmin,
    argsort,
    bitwise_and,
    bitwise_invert,
    bitwise_or,
    bitwise_xor,
    ceil,
    count_nonzero,
    equal,
    floor,
    floor_divide,
    greater,
    greater_equal,
    isfinite,
    isinf,
    isnan,
    less,
    less_equal,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
    not_equal,
    remainder,
    round,
)
from tensorgrad.ops.cross_entropy import cross_entropy, linear_cross_entropy
from tensorgrad.ops.dropout import dropout
from tensorgrad.ops.einsum import einsum
from tensorgrad.ops.elementwise import (
    abs,
    add,
    astype,
    clip,
    cos,
    divide,
    exp,
    log,
    maximum,
    minimum,
    multiply,
    negative,
    pow,
    reciprocal,
    sign,
    sin,
    sqrt,
    square,
    subtract,
    tanh,
    where,
)
from tensorgrad.ops.embedding import embedding
from tensorgrad.ops.indexing import getitem, take, take_along_axis
from tensorgrad.ops.linalg import linear, matmul, tensordot
from tensorgrad.ops.manipulation import (
    broadcast_to,
    concat,
    expand_dims,
    flip,
    matrix_transpose,
    pad,
    permute_dims,
    repeat,
    reshape,
    roll,
    split,
    squeeze,
    stack,
    tile,
    tril,
    triu,
)
from tensorgrad.ops.mlp import mlp
from tensorgrad.ops.normalization import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from tensorgrad.ops.reduction import cumulative_sum, logsumexp, max, mean, min, prod, std, sum, var
from tensorgrad.ops.softmax import log_softmax, softmax

DIFFERENTIABLE = [
    "abs", "add", "add_layer_norm", "add_rms_norm", "astype", "attention", "broadcast_to", "clip", "concat", "cos",
    "cross_entropy", "cumulative_sum", "divide", "dropout", "einsum", "embedding", "erf", "exp",
    "expand_dims", "flip", "gelu", "getitem", "layer_norm", "linear", "linear_cross_entropy", "log", "log_softmax",
    "logsumexp", "matmul", "matrix_transpose", "max", "maximum", "mean", "min", "minimum",
    "mlp", "multiply", "negative", "pad", "permute_dims", "pow", "prod", "reciprocal", "relu",
    "repeat", "reshape", "rms_norm", "roll", "rotary_embedding", "sigmoid", "sign", "silu",
    "sin", "softmax", "split", "sqrt", "square", "squeeze", "stack", "std", "subtract", "sum",
    "take", "take_along_axis", "tanh", "tensordot", "tile", "tril", "triu", "var", "where",
]  # fmt: skip
WITHOUT_GRADIENT = [
    "all", "any", "argmax", "argmin", "argsort", "bitwise_and", "bitwise_invert", "bitwise_or",
    "bitwise_xor", "ceil", "count_nonzero", "equal", "floor",
    "floor_divide", "greater", "greater_equal", "isfinite", "isinf", "isnan", "less",
    "less_equal", "logical_and", "logical_not", "logical_or", "logical_xor", "not_equal",
    "remainder", "round",
]  # fmt: skip

__all__ = [*DIFFERENTIABLE, *WITHOUT_GRADIENT]  # noqa: PLE0604
