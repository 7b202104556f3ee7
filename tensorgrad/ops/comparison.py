"""Ops without a gradient: comparisons, logic, rounding, and searching. Their results never require one."""

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


def _quiet(k: Backend, *operands: Array) -> list[Array]:
    """bfloat16 as float32, exactly the same numbers: comparing NaN, ml_dtypes warns and NumPy does not."""
    return [k.wide(x) if hasattr(x, "dtype") else x for x in operands]


@op
def equal(k: Backend, a: Array, b: Array) -> Result:
    """a == b, elementwise."""
    return k.xp.equal(a, b), None


@op
def not_equal(k: Backend, a: Array, b: Array) -> Result:
    """a != b, elementwise."""
    return k.xp.not_equal(a, b), None


@op
def less(k: Backend, a: Array, b: Array) -> Result:
    """a < b, elementwise."""
    return k.xp.less(*_quiet(k, a, b)), None


@op
def less_equal(k: Backend, a: Array, b: Array) -> Result:
    """a <= b, elementwise."""
    return k.xp.less_equal(*_quiet(k, a, b)), None


@op
def greater(k: Backend, a: Array, b: Array) -> Result:
    """a > b, elementwise."""
    return k.xp.greater(*_quiet(k, a, b)), None


@op
def greater_equal(k: Backend, a: Array, b: Array) -> Result:
    """a >= b, elementwise."""
    return k.xp.greater_equal(*_quiet(k, a, b)), None


@op
def logical_and(k: Backend, a: Array, b: Array) -> Result:
    """a and b, elementwise."""
    return k.xp.logical_and(a, b), None


@op
def logical_or(k: Backend, a: Array, b: Array) -> Result:
    """a or b, elementwise."""
    return k.xp.logical_or(a, b), None


@op
def logical_xor(k: Backend, a: Array, b: Array) -> Result:
    """Either a or b but not both, elementwise."""
    return k.xp.logical_xor(a, b), None


@op
def logical_not(k: Backend, x: Array) -> Result:
    """not x, elementwise."""
    return k.xp.logical_not(x), None


@op
def bitwise_and(k: Backend, a: Array, b: Array) -> Result:
    """The bits that are set in both of two integers; a and b for bool."""
    return k.xp.bitwise_and(a, b), None


@op
def bitwise_or(k: Backend, a: Array, b: Array) -> Result:
    """The bits that are set in either of two integers; a or b for bool."""
    return k.xp.bitwise_or(a, b), None


@op
def bitwise_xor(k: Backend, a: Array, b: Array) -> Result:
    """The bits that are set in one of two integers but not both; either a or b for bool."""
    return k.xp.bitwise_xor(a, b), None


@op
def bitwise_invert(k: Backend, x: Array) -> Result:
    """The bits of an integer that are not set; not x for bool."""
    return k.xp.invert(x), None


@op
def isnan(k: Backend, x: Array) -> Result:
    """Whether each element is not a number."""
    return k.xp.isnan(x), None


@op
def isinf(k: Backend, x: Array) -> Result:
    """Whether each element is infinite."""
    return k.xp.isinf(x), None


@op
def isfinite(k: Backend, x: Array) -> Result:
    """Whether each element is neither infinite nor NaN."""
    return k.xp.isfinite(x), None


@op
def floor(k: Backend, x: Array) -> Result:
    """The largest integer not above x, in x's dtype."""
    return k.xp.floor(x), None


@op
def ceil(k: Backend, x: Array) -> Result:
    """The smallest integer not below x, in x's dtype."""
    return k.xp.ceil(x), None


@op
def round(k: Backend, x: Array) -> Result:
    """The nearest integer, to even where two are, in x's dtype."""
    return k.narrow(k.xp.round(k.wide(x)), x.dtype), None


@op
def floor_divide(k: Backend, a: Array, b: Array) -> Result:
    """The largest integer not above a / b."""
    return k.xp.floor_divide(a, b), None


@op
def remainder(k: Backend, a: Array, b: Array) -> Result:
    """a - b floor(a / b): it has the sign of b."""
    return k.xp.remainder(a, b), None


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
