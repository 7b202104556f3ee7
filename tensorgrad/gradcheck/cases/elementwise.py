"""Arithmetic, elementary functions and activations."""

from typing import Any

import numpy as np

from tensorgrad import ops
from tensorgrad.backend import Array
from tensorgrad.gradcheck.cases.case import Case, Draw, Example, Frozen
from tensorgrad.gradcheck.cases.inputs import Numbers, booleans, distinct, integers, nonzero, positive, randn, uniform


def _unary(numbers: Numbers = randn, *, saves: str | None = None, **options: Any) -> list[Example]:
    """Examples of an elementwise op on one array."""
    return [
        Example("0-d", numbers(), **options),
        Example("one element", numbers(1), **options),
        *Example("3-d", numbers(2, 3, 4), saves=saves, **options).layouts(),
        Example("empty", numbers(0, 3), **options),
        Example("used twice", numbers(3, 4), **options, call=lambda op, x, **given: ops.add(op(x, **given), x)),
    ]


def _binary(a: Numbers = randn, b: Numbers = randn, *, saves: tuple[str, str]) -> list[Example]:
    """Examples of an elementwise op on two arrays that broadcast together; saves: for da, and for db."""
    for_da, for_db = saves
    for_both = " ".join(sorted({*for_da.split(), *for_db.split()}))
    return [
        Example("0-d", a(), b()),
        Example("one element", a(1), b(1)),
        Example("same shape", a(3, 4), b(3, 4)),
        Example("broadcast", a(3, 1), b(4)),
        *Example("broadcast 3-d", a(2, 1, 3), b(4, 1), saves=for_both).layouts(),
        Example("array and 0-d", a(2, 3), b()),
        Example("0-d and array", a(), b(2, 3)),
        Example("scalar right", a(2, 3), 1.375),
        Example("scalar left", 1.375, b(2, 3)),
        Example("empty", a(0, 3), b(3)),
        Example("frozen left", Frozen(a(2, 1, 3)), b(4, 1), saves=for_db),
        Example("frozen right", a(2, 1, 3), Frozen(b(4, 1)), saves=for_da),
    ]


def _even(*shape: int) -> Array:
    """Multiples of 1/2, all different."""
    return np.asarray(2 * distinct(*shape))


def _odd(*shape: int) -> Array:
    """1/4 away from a multiple of 1/2: never equal to an `_even` one, nor to 1.375."""
    return np.asarray(2 * distinct(*shape) + 0.25)


def _plus_integers(astype: Any, x: Any, n: Any) -> Any:
    return ops.add(x, astype(n, dtype=x.dtype))


_twice = Example("used twice", randn(3, 4), call=lambda op, x: op(x, x))
_either_sign = Example("either sign", np.array([5.25, -5.25, 7.5, -7.5, 0.75]), np.array([2.0, 2.0, -2.0, -2.0, 1.0]))
_by_square = Example("used twice", nonzero(3, 4), call=lambda op, x: op(x, ops.square(x)))
_half_each = Example("used twice", nonzero(3, 4), call=lambda op, x: op(x, -x))

cases = [
    Case(ops.add, [*_binary(saves=("", "")), _twice], draw=Draw("binary")),
    Case(ops.subtract, [*_binary(saves=("", "")), _twice], draw=Draw("binary")),
    Case(ops.multiply, [*_binary(saves=("b", "a")), _twice, Example("by a number", randn(3, 4), 1.5, saves="")],
         draw=Draw("binary")),
    Case(ops.divide, [*_binary(randn, nonzero, saves=("b", "a b")), _by_square],
         draw=Draw("binary", "normal", "nonzero")),
    Case(ops.floor_divide, [*_binary(randn, nonzero, saves=("", "")), _either_sign, _by_square],
         torch=lambda torch, a, b: torch.div(a, b, rounding_mode="floor"), draw=Draw("binary", "few", "few_nonzero")),
    Case(ops.remainder, [*_binary(randn, nonzero, saves=("", "a b")), _either_sign, _by_square],
         draw=Draw("binary", "few", "few_nonzero")),
    Case(ops.pow, [
        *_binary(positive, saves=("a b", "a y")),
        Example("used twice", positive(3, 4), call=lambda op, x: op(x, x)),
        Example("square of either sign", nonzero(3, 4), 2, saves="a"),
        Example("cube of either sign", nonzero(3, 4), 3.0),
        Example("negative integer", nonzero(3, 4), -2),
        Example("root", positive(3, 4), 0.5),
        Example("exponent 0", nonzero(3, 4), 0),
        Example("exponent 1", nonzero(3, 4), 1),
        Example("zero base", np.array([0.0, 1.5, 0.0, -2.0]), 2),
        Example("zero to the 0", np.array([0.0, 1.5]), 0),
        Example("zero base, powers", np.zeros(3), Frozen(np.array([1.0, 2.0, 3.0]))),
        Example("zero base, frozen", Frozen(np.zeros(3)), np.array([0.5, 2.0, 3.0])),
        Example("integers of either sign", nonzero(3, 4), Frozen(np.array([2.0, 3.0, -1.0, 0.0]))),
        Example("small integer exponents", nonzero(3, 4), np.array([2, 3, 1, 0], np.int8)),
        Example("small integer base", np.array([2, 3, 1], np.int8), randn(2, 3)),
    ], draw=Draw("binary", "positive", "normal")),
    Case(ops.negative, _unary(saves=""), draw=Draw("unary")),
    Case(ops.abs, _unary(nonzero, saves="a"), draw=Draw("unary", "with_ties")),
    Case(ops.sign, _unary(nonzero, saves=""), draw=Draw("unary", "with_ties")),
    *[Case(op, _unary(_odd, saves=""), draw=Draw("unary", "few")) for op in (ops.floor, ops.ceil, ops.round)],
    Case(ops.exp, _unary(saves="y"), draw=Draw("unary")),
    Case(ops.log, _unary(positive, saves="a"), draw=Draw("unary", "positive")),
    Case(ops.sqrt, _unary(positive, saves="y"), draw=Draw("unary", "positive")),
    Case(ops.square, _unary(saves="a"), draw=Draw("unary")),
    Case(ops.reciprocal, _unary(nonzero, saves="y"), draw=Draw("unary", "nonzero")),
    Case(ops.sin, _unary(saves="a"), draw=Draw("unary")),
    Case(ops.cos, _unary(saves="a"), draw=Draw("unary")),
    Case(ops.tanh, [*_unary(saves="y"), Example("saturated", 20 * nonzero(3, 4))], draw=Draw("unary")),
    Case(ops.maximum, [*_binary(_even, _odd, saves=("float32(2,4,3)", "float32(2,4,3)")), _half_each],
         draw=Draw("binary", "with_ties", "with_ties")),
    Case(ops.minimum, [*_binary(_even, _odd, saves=("float32(2,4,3)", "float32(2,4,3)")), _half_each],
         draw=Draw("binary", "with_ties", "with_ties")),
    Case(ops.clip, [
        *_unary(_odd, min=-1.0, max=1.0, saves="bool(2,3,4)"),
        Example("no upper limit", _odd(3, 4), min=0.0),
        Example("no lower limit", _odd(3, 4), max=0.5),
        Example("no limit", _odd(3, 4)),
        Example("limits that broadcast", randn(2, 3, 4), uniform(-1, -0.5, 4), uniform(0.5, 1, 3, 1)),
        Example("limits that cross", randn(3, 4), Frozen(np.ones(4)), uniform(-0.5, 0.5, 3, 1)),
    ], draw=Draw("unary", "with_ties", min=[None, -1.0], max=[1.0, 0.5])),
    Case(ops.where, [
        Example("0-d", booleans(), randn(), randn()),
        Example("one element", booleans(1), randn(1), randn(1)),
        *Example("same shape", booleans(3, 4), randn(3, 4), randn(3, 4)).layouts(),
        Example("broadcast", booleans(2, 1, 1), randn(3, 1), randn(4), saves="bool(2,1,1)"),
        Example("broadcast condition", booleans(4), randn(3, 4), randn(3, 1)),
        Example("scalar right", booleans(3), randn(2, 3), 0.0),
        Example("scalar left", booleans(3), -1.0, randn(2, 3)),
        Example("empty", booleans(3), randn(0, 3), randn(3)),
        Example("used twice", booleans(3, 4), randn(3, 4), call=lambda op, c, x: op(c, x, ops.square(x))),
        Example("frozen", booleans(3, 4), Frozen(randn(3, 4)), randn(3, 4)),
    ], draw=Draw("ternary")),
    Case(ops.astype, [
        *_unary(dtype=np.float64, saves=""),
        Example("of integers", randn(4), integers(0, 9, 4), call=_plus_integers),
    ], numpy=lambda x, dtype: x.astype(dtype), draw=Draw("unary", dtype=["float64", "float32"])),
    Case(ops.sigmoid, [*_unary(saves="y"), Example("saturated", 15 * nonzero(3, 4))], draw=Draw("unary")),
    Case(ops.relu, _unary(nonzero, saves="y"), draw=Draw("unary", "with_ties")),
    Case(ops.silu, [*_unary(saves="a"), Example("saturated", 15 * nonzero(3, 4))],
         torch="nn.functional.silu", draw=Draw("unary")),
    Case(ops.softplus, [*_unary(saves="a"), Example("far from 0", np.array([-1e4, -750.0, 750.0, 1e4]))],
         numpy=lambda x: np.log1p(np.exp(x)), torch="nn.functional.softplus", draw=Draw("unary")),
    Case(ops.gelu, [
        *_unary(saves="a"),
        Example("large", 5 * nonzero(3, 4)),
        *(example.renamed(f"tanh, {example.name}") for example in _unary(approximate="tanh", saves="a")),
        Example("tanh, large", 5 * nonzero(3, 4), approximate="tanh"),
    ], torch="nn.functional.gelu", draw=Draw("unary", approximate=["none", "tanh"])),
    Case(ops.log1p, _unary(positive, saves="a"), draw=Draw("unary", "positive")),
    Case(ops.expm1, _unary(saves="y"), draw=Draw("unary")),
    Case(ops.logaddexp, [
        *_binary(saves=("a b", "a b")), _twice,
        Example("far apart", np.array([-800.0, 800.0]), np.array([800.0, -800.0])),
    ], draw=Draw("binary", "normal", "normal")),
    Case(ops.leaky_relu, _unary(nonzero, negative_slope=0.1, saves="bool(2,3,4)"),
         numpy=lambda x, negative_slope: np.where(x > 0, x, negative_slope * x), torch="nn.functional.leaky_relu",
         draw=Draw("unary", "with_ties", negative_slope=[0.01, 0.3])),
    Case(ops.erf, [*_unary(saves="a"), Example("all three intervals", uniform(-5, 5, 20))], draw=Draw("unary")),
]
