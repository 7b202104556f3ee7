"""Arithmetic, elementary functions and activations."""

from typing import Any

import numpy as np

from tensorgrad import ops
from tensorgrad.backend import Array
from tensorgrad.gradcheck.cases.case import (
    Case,
    Frozen,
    binary,
    booleans,
    distinct,
    integers,
    nonzero,
    positive,
    randn,
    unary,
    uniform,
)


def _even(*shape: int) -> Array:
    """Multiples of 1/2, no two equal."""
    return np.asarray(2 * distinct(*shape))


def _odd(*shape: int) -> Array:
    """1/4 away from a multiple of 1/2: never equal to an `_even` one, nor to 1.375."""
    return np.asarray(2 * distinct(*shape) + 0.25)


def _plus_integers(x: Any, n: Any) -> Any:
    return ops.add(x, ops.astype(n, dtype=x.dtype))


cases: dict[str, list[Case]] = {
    "add": [*binary(ops.add), Case("used twice", lambda x: ops.add(x, x), randn(3, 4))],
    "subtract": [*binary(ops.subtract), Case("used twice", lambda x: ops.subtract(x, x), randn(3, 4))],
    "multiply": [*binary(ops.multiply), Case("used twice", lambda x: ops.multiply(x, x), randn(3, 4))],
    "divide": [
        *binary(ops.divide, randn, nonzero),
        Case("used twice", lambda x: ops.divide(x, ops.square(x)), nonzero(3, 4)),
    ],
    "pow": [
        *binary(ops.pow, positive),
        Case("used twice", lambda x: ops.pow(x, x), positive(3, 4)),
        Case("square of either sign", ops.pow, nonzero(3, 4), 2),
        Case("cube of either sign", ops.pow, nonzero(3, 4), 3.0),
        Case("negative integer", ops.pow, nonzero(3, 4), -2),
        Case("root", ops.pow, positive(3, 4), 0.5),
        Case("exponent 0", ops.pow, nonzero(3, 4), 0),
        Case("exponent 1", ops.pow, nonzero(3, 4), 1),
        Case("zero base", ops.pow, np.array([0.0, 1.5, 0.0, -2.0]), 2),
        Case("zero to the 0", ops.pow, np.array([0.0, 1.5]), 0),
        Case("zero base, powers", ops.pow, np.zeros(3), Frozen(np.array([1.0, 2.0, 3.0]))),
        Case("zero base, frozen", ops.pow, Frozen(np.zeros(3)), np.array([0.5, 2.0, 3.0])),
        Case("integers of either sign", ops.pow, nonzero(3, 4), Frozen(np.array([2.0, 3.0, -1.0, 0.0]))),
        Case("small integer exponents", ops.pow, nonzero(3, 4), np.array([2, 3, 1, 0], np.int8)),
        Case("small integer base", ops.pow, np.array([2, 3, 1], np.int8), randn(2, 3)),
    ],
    "negative": unary(ops.negative),
    "abs": unary(ops.abs, nonzero),
    "sign": unary(ops.sign, nonzero),
    "exp": unary(ops.exp),
    "log": unary(ops.log, positive),
    "sqrt": unary(ops.sqrt, positive),
    "square": unary(ops.square),
    "reciprocal": unary(ops.reciprocal, nonzero),
    "sin": unary(ops.sin),
    "cos": unary(ops.cos),
    "tanh": [*unary(ops.tanh), Case("saturated", ops.tanh, 20 * nonzero(3, 4))],
    "maximum": [*binary(ops.maximum, _even, _odd), Case("used twice", lambda x: ops.maximum(x, -x), nonzero(3, 4))],
    "minimum": [*binary(ops.minimum, _even, _odd), Case("used twice", lambda x: ops.minimum(x, -x), nonzero(3, 4))],
    "clip": [
        *unary(ops.clip, _odd, min=-1.0, max=1.0),
        Case("no upper limit", ops.clip, _odd(3, 4), min=0.0),
        Case("no lower limit", ops.clip, _odd(3, 4), max=0.5),
        Case("no limit", ops.clip, _odd(3, 4)),
    ],
    "where": [
        Case("0-d", ops.where, booleans(), randn(), randn()),
        Case("one element", ops.where, booleans(1), randn(1), randn(1)),
        Case("same shape", ops.where, booleans(3, 4), randn(3, 4), randn(3, 4)),
        Case("broadcast", ops.where, booleans(2, 1, 1), randn(3, 1), randn(4)),
        Case("broadcast condition", ops.where, booleans(4), randn(3, 4), randn(3, 1)),
        Case("scalar right", ops.where, booleans(3), randn(2, 3), 0.0),
        Case("scalar left", ops.where, booleans(3), -1.0, randn(2, 3)),
        Case("empty", ops.where, booleans(3), randn(0, 3), randn(3)),
        Case("transposed", ops.where, booleans(4, 3).T, randn(4, 3).T, randn(3, 4)),
        Case("stride 0", ops.where, booleans(3, 4), np.broadcast_to(randn(4), (3, 4)), randn(3, 4)[::-1]),
        Case("used twice", lambda c, x: ops.where(c, x, ops.square(x)), booleans(3, 4), randn(3, 4)),
        Case("frozen", ops.where, booleans(3, 4), Frozen(randn(3, 4)), randn(3, 4)),
    ],
    "astype": [*unary(ops.astype, dtype=np.float64), Case("of integers", _plus_integers, randn(4), integers(0, 9, 4))],
    "sigmoid": [*unary(ops.sigmoid), Case("saturated", ops.sigmoid, 15 * nonzero(3, 4))],
    "relu": unary(ops.relu, nonzero),
    "silu": [*unary(ops.silu), Case("saturated", ops.silu, 15 * nonzero(3, 4))],
    "gelu": [
        *unary(ops.gelu),
        Case("large", ops.gelu, 5 * nonzero(3, 4)),
        *(case.renamed(f"tanh, {case.name}") for case in unary(ops.gelu, approximate="tanh")),
        Case("tanh, large", ops.gelu, 5 * nonzero(3, 4), approximate="tanh"),
    ],
    "erf": [*unary(ops.erf), Case("all three intervals", ops.erf, uniform(-5, 5, 20))],
}
