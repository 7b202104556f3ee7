"""tensorgrad: reverse-mode automatic differentiation on NumPy and CuPy, from the tensor to the kernel."""

from tensorgrad import nn, ops, optim, random
from tensorgrad.autograd import enable_grad, is_grad_enabled, no_grad
from tensorgrad.backend import BackendUnavailable, get_backend, use_backend
from tensorgrad.creation import (
    arange,
    asarray,
    empty,
    empty_like,
    eye,
    full,
    full_like,
    linspace,
    normal,
    ones,
    ones_like,
    uniform,
    zeros,
    zeros_like,
)
from tensorgrad.gradcheck import gradcheck
from tensorgrad.ops import (  # noqa: A004 - the array API's names, sum and all among them
    abs, add, all, any, argmax, argmin, argsort, astype, attention, broadcast_to, ceil, clip,
    concat, cos, count_nonzero, cross_entropy, cumulative_sum, divide, dropout, einsum,
    embedding, equal, erf, exp, expand_dims, flip, floor, floor_divide, gelu, greater,
    greater_equal, isfinite, isinf, isnan, layer_norm, less, less_equal, linear, log,
    log_softmax, logical_and, logical_not, logical_or, logical_xor, logsumexp, matmul,
    matrix_transpose, max, maximum, mean, min, minimum, multiply, negative, not_equal, pad,
    permute_dims, pow, prod, reciprocal, relu, remainder, repeat, reshape, rms_norm, roll,
    rotary_embedding, round, sigmoid, sign, silu, sin, softmax, split, sqrt, square, squeeze,
    stack, std, subtract, sum, take, take_along_axis, tanh, tensordot, tile, tril, triu, var,
    where,
)  # fmt: skip
from tensorgrad.random import Generator, manual_seed
from tensorgrad.tensor import Tensor
