"""Elementwise arithmetic and elementary functions, with NumPy's broadcasting and dtype promotion.

Operands may have any shapes that broadcast together; the result has the broadcast shape. Gradients need floating
dtypes. `dx` is dloss/dx.
"""

from typing import Any

from tensorgrad.autograd import op
from tensorgrad.backend import Array, Backend
from tensorgrad.backend.arrays import is_floating, real_dtype, snapshot
from tensorgrad.ops.broadcasting import Shape, shape_of, unbroadcast

__all__ = [
    "abs", "add", "astype", "ceil", "clip", "divide", "exp", "floor", "floor_divide", "log", "maximum", "minimum",
    "multiply", "negative", "pow", "remainder", "round", "sqrt", "square", "subtract", "tanh", "where",
]

Result = tuple[Array, Any]


@op
def add(k: Backend, a: Array, b: Array) -> Result:
    """a + b. da = db = dy."""
    a_shape, b_shape = shape_of(a), shape_of(b)
    return k.add(a, b), (lambda dy: unbroadcast(k, dy, a_shape), lambda dy: unbroadcast(k, dy, b_shape))


@op
def subtract(k: Backend, a: Array, b: Array) -> Result:
    """a - b. da = dy, db = -dy."""
    a_shape, b_shape = shape_of(a), shape_of(b)
    return a - b, (lambda dy: unbroadcast(k, dy, a_shape), lambda dy: unbroadcast(k, -dy, b_shape))


@op
def multiply(k: Backend, a: Array, b: Array) -> Result:
    """a b. da = dy b, db = dy a."""
    a_shape, b_shape = shape_of(a), shape_of(b)
    return a * b, (lambda dy: unbroadcast(k, dy * b, a_shape), lambda dy: unbroadcast(k, dy * a, b_shape))


@op
def divide(k: Backend, a: Array, b: Array) -> Result:
    """a / b. da = dy / b, db = -dy a / b^2."""
    a_shape, b_shape = shape_of(a), shape_of(b)
    return a / b, (
        lambda dy: unbroadcast(k, dy / b, a_shape),
        lambda dy: unbroadcast(k, -dy / b * (a / b), b_shape),  # b * b could overflow
    )


@op
def floor_divide(k: Backend, a: Array, b: Array) -> Result:
    """The largest integer not above a / b. da = db = 0."""
    a_shape, b_shape = shape_of(a), shape_of(b)
    return a // b, (lambda dy: k.xp.zeros(a_shape, dy.dtype), lambda dy: k.xp.zeros(b_shape, dy.dtype))


@op
def remainder(k: Backend, a: Array, b: Array) -> Result:
    """a - b floor(a / b), which has the sign of b. da = dy, db = -dy floor(a / b)."""
    a_shape, b_shape = shape_of(a), shape_of(b)
    return a % b, (lambda dy: unbroadcast(k, dy, a_shape), lambda dy: unbroadcast(k, -dy * (a // b), b_shape))


@op
def pow(k: Backend, a: Array, b: Array) -> Result:
    """a ^ b. da = dy b a^(b-1), db = dy a^b log a, which is nan where a < 0, and 0, its limit, at a = 0 with b >= 0."""
    xp = k.xp
    a_shape, b_shape = shape_of(a), shape_of(b)
    y = a**b

    def da(dy: Array) -> Array:
        # x^0 is constant, and 0^-1 must not be computed. A Python number stays one: an array would promote dy
        lower = k.where(b == 0, xp.zeros_like(b), b - 1) if hasattr(b, "dtype") else (b - 1 if b else b)
        return unbroadcast(k, dy * (b * a**lower), a_shape)

    def db(dy: Array) -> Array:
        base = k.wide(k.asarray(a, y.dtype))  # NumPy's log of an int8 is float16
        vanishes = (base == 0) & (y <= 1)  # y is inf for b < 0
        log = xp.log(xp.where(vanishes, xp.ones_like(base), base))
        return unbroadcast(k, dy * (y * log).astype(dy.dtype), b_shape)

    return y, (da, db)


@op
def negative(k: Backend, x: Array) -> Result:
    """-x. dx = -dy."""
    return -x, lambda dy: -dy


@op
def abs(k: Backend, x: Array) -> Result:
    """|x|. dx = dy sign(x): 0 at 0."""
    return k.xp.abs(x), lambda dy: dy * k.xp.sign(x)


@op
def floor(k: Backend, x: Array) -> Result:
    """The largest integer not above x, in x's dtype. dx = 0."""
    return k.xp.floor(x), k.xp.zeros_like


@op
def ceil(k: Backend, x: Array) -> Result:
    """The smallest integer not below x, in x's dtype. dx = 0."""
    return k.xp.ceil(x), k.xp.zeros_like


@op
def round(k: Backend, x: Array) -> Result:
    """The nearest integer in x's dtype; halves are rounded to the even one. dx = 0."""
    return k.narrow(k.xp.round(k.wide(x)), x.dtype), k.xp.zeros_like


@op
def exp(k: Backend, x: Array) -> Result:
    """e^x. dx = dy y."""
    y = k.xp.exp(k.floating(x))
    return y, lambda dy: dy * y


@op
def log(k: Backend, x: Array) -> Result:
    """The natural logarithm. dx = dy / x."""
    return k.xp.log(k.floating(x)), lambda dy: dy / x


@op
def sqrt(k: Backend, x: Array) -> Result:
    """The square root. dx = dy / (2 y)."""
    y = k.xp.sqrt(k.floating(x))
    return y, lambda dy: dy / (2 * y)


@op
def square(k: Backend, x: Array) -> Result:
    """x^2. dx = dy 2 x."""
    return k.xp.square(x), lambda dy: dy * (2 * x)


@op
def tanh(k: Backend, x: Array) -> Result:
    """The hyperbolic tangent. dx = dy (1 - y^2)."""
    y = k.xp.tanh(k.floating(x))
    return y, lambda dy: dy * (1 - y * y)


@op
def maximum(k: Backend, a: Array, b: Array) -> Result:
    """The larger of a and b. dy goes to the larger operand, half of it to each where they are equal."""
    a_shape, b_shape = shape_of(a), shape_of(b)
    return k.xp.maximum(a, b), _shared(k, k.xp.greater(a, b), k.xp.equal(a, b), a_shape, b_shape)


@op
def minimum(k: Backend, a: Array, b: Array) -> Result:
    """The smaller of a and b. dy goes to the smaller operand, half of it to each where they are equal."""
    a_shape, b_shape = shape_of(a), shape_of(b)
    return k.xp.minimum(a, b), _shared(k, k.xp.less(a, b), k.xp.equal(a, b), a_shape, b_shape)


def _shared(k: Backend, wins: Array, ties: Array, a_shape: Shape, b_shape: Shape) -> tuple[Any, Any]:
    """Backward functions that send dy to the first operand where it wins, half to each where they tie."""
    share = wins.astype("float32") + 0.5 * ties.astype("float32")
    return (
        lambda dy: unbroadcast(k, dy * share.astype(dy.dtype), a_shape),
        lambda dy: unbroadcast(k, dy * (1 - share).astype(dy.dtype), b_shape),
    )


@op
def clip(k: Backend, x: Array, min: Array | None = None, max: Array | None = None) -> Result:
    """x limited to [min, max], numbers or arrays; None is no limit. dy goes to x inside the limits and on them.

    Elsewhere it goes to the limit that was taken.
    """
    shapes = [shape_of(a) for a in (x, min, max)]
    y, inside = x, k.xp.ones(x.shape, bool)
    if min is not None:
        y, inside = k.xp.maximum(y, min), inside & (x >= min)
    if max is not None:
        y, inside = k.xp.minimum(y, max), inside & (x <= max)  # xp.clip turns bfloat16 into float32
    return y, (
        lambda dy: unbroadcast(k, dy * inside.astype(dy.dtype), shapes[0]),
        lambda dy: unbroadcast(k, dy * ((x < min) & (max is None or min < max)).astype(dy.dtype), shapes[1]),
        lambda dy: unbroadcast(k, dy * ((x > max) | (min is not None and min > max)).astype(dy.dtype), shapes[2]),
    )


@op
def where(k: Backend, condition: Array, a: Array, b: Array) -> Result:
    """a where `condition` (bool) is true, b elsewhere. dy goes to the operand that was taken."""
    a_shape, b_shape = shape_of(a), shape_of(b)
    condition = snapshot(k.asarray(condition))
    if condition.dtype != bool:
        raise TypeError(f"where: condition has dtype {condition.dtype}; bool is needed, the result of a comparison")
    return k.where(condition, a, b), (
        None,
        lambda dy: unbroadcast(k, k.where(condition, dy, k.xp.zeros_like(dy)), a_shape),
        lambda dy: unbroadcast(k, k.where(condition, k.xp.zeros_like(dy), dy), b_shape),
    )


@op
def astype(k: Backend, x: Array, *, dtype: Any) -> Result:
    """x in another dtype. dx = dy in x's dtype; integers and bool have no gradient."""
    y = x.astype(real_dtype("astype", dtype), copy=False)
    return y, (lambda dy: dy) if is_floating(y.dtype) else None  # the tape casts every gradient to its tensor's dtype
