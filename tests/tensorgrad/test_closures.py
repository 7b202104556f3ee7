"""What every op keeps for its backward, against what it is allowed to keep: memory is decided by what a closure names.

A letter is that operand (a, b, c), y the result; what is less than half of the first operand goes by shape, all else by
dtype and shape.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tensorgrad import ops
from tensorgrad.autograd import Several, saved_arrays
from tensorgrad.backend import get_backend
from tensorgrad.gradcheck.cases import Case, differentiable
from tensorgrad.gradcheck.cases.case import Frozen, booleans, integers, positive
from tensorgrad.tensor import Tensor


def x(*shape: int) -> np.ndarray:
    return positive(*(shape or (2, 3, 4)))


ROW = "(2, 1, 4)"  # what is left of x by a reduction over axis 1
HEADS = [x(2, 4, 6, 3), x(2, 2, 5, 3), x(2, 2, 5, 3)]  # four query heads of six queries, two key heads of five keys
THREE = np.array([0, 1, 1])

# op: a call of it, and what backward may keep
ALLOWED: dict[str, tuple[Case, set[str]]] = {
    "abs": (Case("", ops.abs, x()), {"a"}),
    "add": (Case("", ops.add, x(), x(3, 1)), set()),
    "add_layer_norm": (Case("", ops.add_layer_norm, x(), x(), x(4), x(4)), {"c", "y", "(2, 3, 1)"}),
    "add_rms_norm": (Case("", ops.add_rms_norm, x(), x(), x(4)), {"c", "y", "(2, 3, 1)"}),
    "astype": (Case("", ops.astype, x(), dtype=np.float64), set()),
    "attention": (Case("", ops.attention, *HEADS, causal=True, dropout_p=0.1), {"a", "b", "c", "y", "(2, 4, 6, 1)"}),
    "broadcast_to": (Case("", ops.broadcast_to, x(), shape=(5, 2, 3, 4)), set()),
    "clip": (Case("", ops.clip, x(), min=0, max=1), {"bool (2, 3, 4)"}),
    "concat": (Case("", lambda a, b: ops.concat([a, b]), x(), x()), set()),
    "cos": (Case("", ops.cos, x()), {"a"}),
    "cross_entropy": (Case("", ops.cross_entropy, x(), integers(0, 4, 2, 3)), {"a", "b", "(6,)", "()"}),
    "cumulative_sum": (Case("", ops.cumulative_sum, x(), axis=1), set()),
    "divide": (Case("", ops.divide, x(), x(3, 1)), {"a", "b"}),
    "dropout": (Case("", ops.dropout, x(), p=0.5), set()),
    "einsum": (Case("", lambda a, b: ops.einsum("abc,cd->d", a, b), x(), x(4, 5)), {"a", "b"}),
    "embedding": (Case("", ops.embedding, x(3, 4), THREE), {"b"}),
    "erf": (Case("", ops.erf, x()), {"a"}),
    "exp": (Case("", ops.exp, x()), {"y"}),
    "expand_dims": (Case("", ops.expand_dims, x(), axis=1), set()),
    "flip": (Case("", ops.flip, x()), set()),
    "gelu": (Case("", ops.gelu, x()), {"a"}),
    "getitem": (Case("", ops.getitem, x(), key=(slice(1), 0)), set()),
    "layer_norm": (Case("", ops.layer_norm, x(), x(4), x(4)), {"a", "b", "(2, 3, 1)"}),
    "linear": (Case("", ops.linear, x(), x(5, 4), x(5)), {"a", "b"}),
    "linear_cross_entropy": (
        Case("", ops.linear_cross_entropy, x(), x(5, 4), integers(0, 5, 2, 3), reduction="none"),
        {"a", "b", "c", "{dtype} (6, 5)", "(6,)", "()"},  # with the logits: a gradient for every row is yet to come
    ),
    "log": (Case("", ops.log, x()), {"a"}),
    "log_softmax": (Case("", ops.log_softmax, x()), {"y"}),
    "logsumexp": (Case("", ops.logsumexp, x(), axis=1), {"a", ROW}),
    "matmul": (Case("", ops.matmul, x(), x(4, 5)), {"a", "b"}),
    "matrix_transpose": (Case("", ops.matrix_transpose, x()), set()),
    "max": (Case("", ops.max, x(), axis=1), {"a", ROW}),
    "maximum": (Case("", ops.maximum, x(), x(3, 1)), {"float32 (2, 3, 4)"}),
    "mean": (Case("", ops.mean, x(), axis=1), set()),
    "min": (Case("", ops.min, x(), axis=1), {"a", ROW}),
    "minimum": (Case("", ops.minimum, x(), x(3, 1)), {"float32 (2, 3, 4)"}),
    "mlp": (
        Case("", ops.mlp, x(), x(5, 4), x(5), x(6, 5), x(6)),
        {"a", "b", "c", "{dtype} (2, 3, 5)", "{dtype} (6, 5)"},  # the middle, and the second weight
    ),
    "multiply": (Case("", ops.multiply, x(), x(3, 1)), {"a", "b"}),
    "negative": (Case("", ops.negative, x()), set()),
    "pad": (Case("", ops.pad, x(), pad_width=1), set()),
    "permute_dims": (Case("", ops.permute_dims, x(), axes=(2, 0, 1)), set()),
    "pow": (Case("", ops.pow, x(), x(3, 1)), {"a", "b", "y"}),
    "prod": (Case("", ops.prod, x(), axis=1), {"a"}),
    "reciprocal": (Case("", ops.reciprocal, x()), {"y"}),
    "relu": (Case("", ops.relu, x()), {"y"}),
    "repeat": (Case("", ops.repeat, x(), repeats=2, axis=1), {"int64 (6,)"}),
    "reshape": (Case("", ops.reshape, x(), shape=(-1,)), set()),
    "rms_norm": (Case("", ops.rms_norm, x(), x(4)), {"a", "b", "(2, 3, 1)"}),
    "roll": (Case("", ops.roll, x(), shift=1), set()),
    "rotary_embedding": (Case("", ops.rotary_embedding, x(), np.arange(3)), {"b"}),
    "sigmoid": (Case("", ops.sigmoid, x()), {"y"}),
    "sign": (Case("", ops.sign, x()), set()),
    "silu": (Case("", ops.silu, x()), {"a"}),
    "sin": (Case("", ops.sin, x()), {"a"}),
    "softmax": (Case("", ops.softmax, x()), {"y"}),
    "split": (Case("", ops.split, x(), sections=2), set()),
    "sqrt": (Case("", ops.sqrt, x()), {"y"}),
    "square": (Case("", ops.square, x()), {"a"}),
    "squeeze": (Case("", ops.squeeze, x(2, 1, 3)), set()),
    "stack": (Case("", lambda a, b: ops.stack([a, b]), x(), x()), set()),
    "std": (Case("", ops.std, x(), axis=1), {"a", ROW}),
    "subtract": (Case("", ops.subtract, x(), x(3, 1)), set()),
    "sum": (Case("", ops.sum, x(), axis=1), set()),
    "take": (Case("", ops.take, x(), THREE, axis=1), {"b"}),
    "take_along_axis": (Case("", ops.take_along_axis, x(3, 4), THREE[:, None]), {"b", "int64 (3, 1)"}),
    "tanh": (Case("", ops.tanh, x()), {"y"}),
    "tensordot": (Case("", lambda a, b: ops.tensordot(a, b, 1), x(), x(4, 5)), {"a", "b"}),
    "tile": (Case("", ops.tile, x(), repetitions=2), set()),
    "tril": (Case("", ops.tril, x()), set()),
    "triu": (Case("", ops.triu, x()), set()),
    "var": (Case("", ops.var, x(), axis=1), {"a", ROW}),
    "where": (Case("", ops.where, booleans(3, 4), x(), x(4)), {"a"}),
}  # fmt: skip

# further calls: options that keep more or less, and frozen operands, for whose sake nothing is kept that only they need
VARIANTS: dict[str, tuple[Case, set[str]]] = {
    "attention with a mask": (Case("", ops.attention, *HEADS, mask=booleans(6, 5)),
                              {"a", "b", "c", "y", "(2, 4, 6, 1)", "bool (6, 5)"}),
    "divide by a constant": (Case("", ops.divide, x(), Frozen(x())), {"b"}),
    "dropout that drops nothing": (Case("", ops.dropout, x(), p=0.5, training=False), set()),
    "gelu by tanh": (Case("", ops.gelu, x(), approximate="tanh"), {"a"}),
    "getitem with an array": (Case("", ops.getitem, x(), key=(slice(None), THREE)), {"int64 (3,)"}),
    "layer_norm without weight": (Case("", ops.layer_norm, x()), {"a", "(2, 3, 1)"}),
    "linear with a frozen weight": (Case("", ops.linear, x(), Frozen(x(5, 4)), Frozen(x(5))), {"b"}),
    "linear of data": (Case("", ops.linear, Frozen(x()), x(5, 4), x(5)), {"a"}),
    "linear of which only the bias learns": (Case("", ops.linear, Frozen(x()), Frozen(x(5, 4)), x(5)), set()),
    "matmul of data": (Case("", ops.matmul, Frozen(x()), x(4, 5)), {"a"}),
    "multiply by a constant": (Case("", ops.multiply, x(), Frozen(x())), {"b"}),
    "multiply by a number": (Case("", ops.multiply, x(), 2.0), set()),
    "pow of a number": (Case("", ops.pow, x(), 2), {"a"}),
}  # fmt: skip


def kept(case: Case, dtype: str) -> set[str]:
    """What the node that the op made keeps, each array by the name it has in the tables above."""
    inputs = case.tensors(get_backend(), dtype)
    result = case.call(*inputs)
    outputs = result if isinstance(result, list) else [result]
    node = outputs[0].node
    if isinstance(node.parents[0], Several):
        node = node.parents[0]
    operands = [t for t in inputs if isinstance(t, Tensor)]
    return {_named(array, operands, outputs) for array in saved_arrays(node.backward)}


def _named(array: Any, operands: list[Tensor], outputs: list[Tensor]) -> str:
    for letter, operand in zip("abc", operands, strict=False):
        if np.may_share_memory(array, operand.data):
            return letter
    if array.dtype.kind == "f" and 2 * array.size < operands[0].size:
        return str(array.shape)
    return "y" if any(np.may_share_memory(array, y.data) for y in outputs) else f"{array.dtype} {array.shape}"


def test_every_op_has_a_row() -> None:
    assert list(ALLOWED) == sorted(differentiable)


@pytest.mark.parametrize("dtype", ["float64", "float16"])
@pytest.mark.parametrize("name", [*ALLOWED, *VARIANTS])
def test_an_op_keeps_exactly_what_it_may(name: str, dtype: str) -> None:
    case, allowed = {**ALLOWED, **VARIANTS}[name]
    assert kept(case, dtype) == {name.format(dtype=dtype) for name in allowed}


def test_the_loss_of_a_head_keeps_no_logits() -> None:
    """But in half precision, where gradients wait for the loss scale."""
    case = Case("", ops.linear_cross_entropy, x(), x(5, 4), integers(0, 5, 2, 3))
    assert kept(case, "float64") == {"a", "b", "c", "()"}
    assert kept(case, "float16") == {"a", "b", "c", "float16 (6, 5)", "(6,)", "()"}


def test_a_closure_that_names_too_much_is_seen() -> None:
    from tensorgrad.autograd import op

    def keeping(extra: Callable[[Any, Any], Any]) -> Any:
        @op
        def halved(k: Any, a: Any) -> Any:
            y = a / 2
            more = extra(a, y)
            return y, lambda dy: dy / 2 if more is not None else dy

        return halved

    assert kept(Case("", keeping(lambda a, y: None), x()), "float64") == set()
    assert kept(Case("", keeping(lambda a, y: a[1:]), x()), "float64") == {"a"}
    assert kept(Case("", keeping(lambda a, y: [(y,)]), x()), "float64") == {"y"}
    assert kept(Case("", keeping(lambda a, y: a > 1), x()), "float64") == {"bool (2, 3, 4)"}
    assert kept(Case("", keeping(lambda a, y: lambda: a * 1), x()), "float64") == {"a"}
    assert kept(Case("", keeping(lambda a, y: np.sum(a, axis=1)), x()), "float64") == {"(2, 4)"}
