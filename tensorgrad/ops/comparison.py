"""Ops without a gradient, whose results are bool or integers: comparisons, logic and searching."""

from collections.abc import Callable
from typing import Any

from tensorgrad.autograd import op
from tensorgrad.backend import Array, Backend
from tensorgrad.ops.broadcasting import normalize_axes

__all__ = [
    "all", "any", "argmax", "argmin", "bitwise_and", "bitwise_invert", "bitwise_or", "bitwise_xor",
    "equal", "greater", "greater_equal", "isfinite", "isinf", "isnan", "less", "less_equal",
    "logical_and", "logical_not", "logical_or", "logical_xor", "not_equal",
]

Result = tuple[Array, None]
Axis = int | tuple[int, ...] | None


def _binary(name: str, meaning: str, widen: bool = False) -> Callable[..., Any]:
    """The op for `k.xp.name`. widen: convert bfloat16 to float32, because ml_dtypes warns where it compares NaN."""

    def fn(k: Backend, a: Array, b: Array) -> Result:
        operands = [k.wide(x) if widen and hasattr(x, "dtype") else x for x in (a, b)]
        return getattr(k.xp, name)(*operands), None

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"{meaning}, elementwise."
    return op(fn)


def _unary(name: str, meaning: str, function: str = "") -> Callable[..., Any]:
    """The op for `k.xp.name`, or for `k.xp.function` where the array module uses another name."""

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
logical_xor = _binary("logical_xor", "a or b but not both")
logical_not = _unary("logical_not", "not x")

bitwise_and = _binary("bitwise_and", "The bits that are set in both integers; for bool, a and b")
bitwise_or = _binary("bitwise_or", "The bits that are set in at least one of the integers; for bool, a or b")
bitwise_xor = _binary("bitwise_xor", "The bits that are set in exactly one of the integers; for bool, a or b, not both")
bitwise_invert = _unary("bitwise_invert", "All bits of an integer flipped; for bool, not x", "invert")

isnan = _unary("isnan", "Whether x is not a number")
isinf = _unary("isinf", "Whether x is infinite")
isfinite = _unary("isfinite", "Whether x is neither infinite nor NaN")


@op
def argmax(k: Backend, x: Array, *, axis: int | None = None, keepdims: bool = False) -> Result:
    """The index of the largest element, the first one where several are equal; axis None flattens x first. int64."""
    return k.xp.argmax(k.wide(x), axis=axis, keepdims=keepdims), None


@op
def argmin(k: Backend, x: Array, *, axis: int | None = None, keepdims: bool = False) -> Result:
    """The index of the smallest element, the first one where several are equal; axis None flattens x first. int64."""
    return k.xp.argmin(k.wide(x), axis=axis, keepdims=keepdims), None


@op
def all(k: Backend, x: Array, *, axis: Axis = None, keepdims: bool = False) -> Result:
    """Whether all elements are true, that is not 0."""
    return k.xp.all(k.wide(x), axis=normalize_axes("all", axis, x.ndim), keepdims=keepdims), None


@op
def any(k: Backend, x: Array, *, axis: Axis = None, keepdims: bool = False) -> Result:
    """Whether any element is true, that is not 0."""
    return k.xp.any(k.wide(x), axis=normalize_axes("any", axis, x.ndim), keepdims=keepdims), None
