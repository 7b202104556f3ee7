"""Ops without a gradient: comparisons, logic, rounding, and searching. Their results never require one."""

from collections.abc import Callable
from typing import Any

from tensorgrad.autograd import op
from tensorgrad.backend import Array, Backend
from tensorgrad.ops.broadcasting import normalize_axes

__all__ = [
    "all", "any", "argmax", "argmin", "argsort", "bitwise_and", "bitwise_invert", "bitwise_or", "bitwise_xor",
    "ceil", "count_nonzero", "equal", "floor", "floor_divide", "greater", "greater_equal", "isfinite", "isinf",
    "isnan", "less", "less_equal", "logical_and", "logical_not", "logical_or", "logical_xor", "not_equal",
    "remainder", "round",
]

Result = tuple[Array, None]
Axis = int | tuple[int, ...] | None


def _binary(name: str, meaning: str, widen: bool = False) -> Callable[..., Any]:
    """The op of a function of the array module. widen: comparing NaN in bfloat16, ml_dtypes warns; float32 does not."""

    def fn(k: Backend, a: Array, b: Array) -> Result:
        operands = [k.wide(x) if widen and hasattr(x, "dtype") else x for x in (a, b)]
        return getattr(k.xp, name)(*operands), None

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"{meaning}, elementwise."
    return op(fn)


def _unary(name: str, meaning: str, function: str = "") -> Callable[..., Any]:
    """The op of a function of the array module, which may be called otherwise there."""

    def fn(k: Backend, x: Array) -> Result:
        return getattr(k.xp, function or name)(x), None

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"{meaning}, elementwise."
    return op(fn)


equal = _binary("equal", "a == b")
not_equal = _binary("not_equal", "a != b")
less = _binary("less", "a < b", widen=True)
less_equal = _binary("less_equal", "a <= b", widen=True)
greater = _binary("greater", "a > b", widen=True)
greater_equal = _binary("greater_equal", "a >= b", widen=True)

logical_and = _binary("logical_and", "a and b")
logical_or = _binary("logical_or", "a or b")
logical_xor = _binary("logical_xor", "Either a or b but not both")
logical_not = _unary("logical_not", "not x")

bitwise_and = _binary("bitwise_and", "The bits that are set in both of two integers; a and b for bool")
bitwise_or = _binary("bitwise_or", "The bits that are set in either of two integers; a or b for bool")
bitwise_xor = _binary("bitwise_xor", "The bits that are set in just one of two integers; either a or b for bool")
bitwise_invert = _unary("bitwise_invert", "The bits of an integer that are not set; not x for bool", "invert")

isnan = _unary("isnan", "Whether x is not a number")
isinf = _unary("isinf", "Whether x is infinite")
isfinite = _unary("isfinite", "Whether x is neither infinite nor NaN")

floor = _unary("floor", "The largest integer not above x, in x's dtype")
ceil = _unary("ceil", "The smallest integer not below x, in x's dtype")
floor_divide = _binary("floor_divide", "The largest integer not above a / b")
remainder = _binary("remainder", "a - b floor(a / b), which has the sign of b")


@op
def round(k: Backend, x: Array) -> Result:
    """The nearest integer, to even where two are, in x's dtype."""
    return k.narrow(k.xp.round(k.wide(x)), x.dtype), None


@op
def argmax(k: Backend, x: Array, *, axis: int | None = None, keepdims: bool = False) -> Result:
    """Where the largest element is, the first of equals; axis None counts as if x were flat. int64."""
    return k.xp.argmax(k.wide(x), axis=axis, keepdims=keepdims), None


@op
def argmin(k: Backend, x: Array, *, axis: int | None = None, keepdims: bool = False) -> Result:
    """Where the smallest element is, the first of equals; axis None counts as if x were flat. int64."""
    return k.xp.argmin(k.wide(x), axis=axis, keepdims=keepdims), None


@op
def argsort(k: Backend, x: Array, *, axis: int = -1, descending: bool = False) -> Result:
    """The indices that sort x along an axis, equal elements in the order they came. int64."""
    x = k.wide(x)  # CuPy does not sort bfloat16
    if not descending:
        return k.xp.argsort(x, axis=axis, kind="stable"), None
    last = k.xp.flip(k.xp.argsort(k.xp.flip(x, axis), axis=axis, kind="stable"), axis)
    return x.shape[axis] - 1 - last, None


@op
def all(k: Backend, x: Array, *, axis: Axis = None, keepdims: bool = False) -> Result:
    """Whether all elements are true (not 0)."""
    return k.xp.all(k.wide(x), axis=normalize_axes("all", axis, x.ndim), keepdims=keepdims), None


@op
def any(k: Backend, x: Array, *, axis: Axis = None, keepdims: bool = False) -> Result:
    """Whether any element is true (not 0)."""
    return k.xp.any(k.wide(x), axis=normalize_axes("any", axis, x.ndim), keepdims=keepdims), None


@op
def count_nonzero(k: Backend, x: Array, *, axis: Axis = None, keepdims: bool = False) -> Result:
    """How many elements are not 0. int64."""
    return k.xp.sum(x != 0, axis=normalize_axes("count_nonzero", axis, x.ndim), keepdims=keepdims), None
