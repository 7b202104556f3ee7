"""Exponential and error function without branches, so that LLVM can vectorise loops that call them.

In float32 they are polynomials after range reduction (Cody and Waite 1980, "Software Manual for the Elementary
Functions"), with minimax coefficients found by Lawson's reweighted least squares. In float64, which is used for checks,
they are the C library's. NaN gives NaN, an infinity gives the limit.
"""

import math
import platform
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic, overload

from tensorgrad.backend.numba.compile import by_type, has_instructions, inline

F = np.float32
# As float32 these are exact, and an operation with them keeps the dtype of float32 and float64.
ZERO, ONE, HALF, THREE, NEVER = F(0), F(1), F(0.5), F(3), F(-np.inf)
LOG2_E = F(1.4426950408889634)
# -ln 2 as a sum. Where a b + c is rounded twice, multiples of the first part must be exact: its last 15 bits are 0.
ROUNDS_TWICE = platform.machine().lower() in ("x86_64", "amd64") and not has_instructions("fma")
LN2_HIGH, LN2_LOW = (F(-0.693359375), F(2.12194440e-4)) if ROUNDS_TWICE else (F(-0.69314718), F(1.9046543e-9))
ROUND, ROUND_BITS = F(1.5 * 2**23), np.int32(0x4B400000)  # adding it rounds to an integer, in the lowest bits
ONE_BITS = np.int32(0x3F800000)  # of 1.0; adding n to the exponent gives 2^n
SIGN = np.int32(-(2**31))  # the sign bit of a float32

# e^r = 1 + r + r^2 q(r) for |r| <= ln(2) / 2, to 3e-9. Coefficients from the highest power down.
EXP = (F(0.0013814613), F(0.00836871), F(0.04166839), F(0.16666521), F(0.49999994))
# erf(x) = x + x p(x^2) for |x| <= 0.9, to 1.2e-8.
ERF_SMALL = (F(-0.00060903584), F(0.0050119627), F(-0.026778908), F(0.11282141), F(-0.37612525), F(0.12837915))
# 1 - erf(x) = exp(p(x)) for 0.9 <= x <= 4, to 1.7e-9 of erf(x).
ERF_LARGE = (F(0.00019822), F(-0.0030654934), F(0.022315225), F(-0.1041137), F(-0.63697606), F(-1.1277972),
             F(-0.0001664448))  # fmt: skip


def fma(a: Any, b: Any, c: Any) -> Any:
    """a b + c for float32, rounded once; by compiled code twice where the processor has no instruction for it."""
    return F(float(a) * float(b) + float(c))


@intrinsic  # type: ignore[untyped-decorator]
def _fma(context: Any, a: Any, b: Any, c: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(arguments[0].type, [arguments[0].type] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.fmuladd.f32"), arguments)

    return c(a, b, c), generate


overload(fma)(lambda a, b, c: lambda a, b, c: _fma(a, b, c))


@inline
def polynomial(coefficients: Any, x: Any) -> Any:
    """Horner's rule, highest power first."""
    y = coefficients[0]
    for c in coefficients[1:]:
        y = fma(y, x, c)
    return y


@inline
def bits(x: Any) -> Any:
    """The bits of a float32 as int32."""
    return np.float32(x).view(np.int32)


@inline
def from_bits(n: Any) -> Any:
    """The float32 with these bits."""
    return np.int32(n).view(np.float32)


@inline
def power_of_two(n: Any) -> Any:
    """2^n as float32 for n in [-126, 127]: n is the exponent in its bits."""
    return from_bits((n + np.int32(127)) << np.int32(23))


@inline
def exp_float32(x: Any) -> Any:
    """e^x = 2^n e^r, with n = round(x / ln 2) and r the remainder: |r| <= ln(2) / 2."""
    x = F(-104) if x < F(-104) else x  # written so that NaN stays NaN
    x = F(89) if x > F(89) else x
    rounded = fma(x, LOG2_E, ROUND)
    n = np.int32(bits(rounded) - ROUND_BITS)
    r = fma(rounded - ROUND, LN2_LOW, fma(rounded - ROUND, LN2_HIGH, x))
    mantissa = fma(polynomial(EXP, r) * r, r, r) + ONE
    half = np.int32(n >> 1)  # 2^n in two factors: it may overflow or be subnormal, its square root is not
    return mantissa * power_of_two(half) * power_of_two(np.int32(n - half))


@inline
def exp_at_most_0_float32(x: Any) -> Any:
    """e^x for x <= 0, without subnormal numbers, which are slow: 0 for all x below -87."""
    rounded = fma(x, LOG2_E, ROUND)
    r = fma(rounded - ROUND, LN2_LOW, fma(rounded - ROUND, LN2_HIGH, x))
    mantissa = fma(fma(polynomial(EXP, r), r, ONE), r, ONE)
    y = mantissa * from_bits((bits(rounded) << np.int32(23)) + ONE_BITS)  # n is in the lowest bits of `rounded`
    return F(0) if x < F(-87) else y


@inline
def logistic_float32(x: Any) -> Any:
    """1 / (1 + e^-x), and 0 where x is below -88.4: 2^n of e^-x is one factor, which overflows from n = 128 on."""
    x = F(87) if x > F(87) else x
    x = F(-89) if x < F(-89) else x
    rounded = fma(x, -LOG2_E, ROUND)
    n = rounded - ROUND
    r = fma(n, LN2_LOW, fma(n, LN2_HIGH, -x))
    power = power_of_two(np.int32(bits(rounded) - ROUND_BITS))
    return ONE / fma(fma(polynomial(EXP, r) * r, r, r) + ONE, power, ONE)


@inline
def logistic_float64(x: Any) -> Any:
    """1 / (1 + e^-x): if e^-x overflows, the result is 0."""
    return ONE / (ONE + math.exp(-x))


@inline
def erf_float32(x: Any) -> Any:
    """Two polynomials: of x^2 near 0, and of |x| for log(1 - erf(x)), which behaves like -x^2."""
    size = F(4) if abs(x) > F(4) else abs(x)  # erf(4) is 1 in float32
    small = fma(x, polynomial(ERF_SMALL, size * size), x)
    large = bits(ONE - exp_float32(polynomial(ERF_LARGE, size))) | (bits(x) & SIGN)
    is_large = -np.int32(size > F(0.9))  # all bits set, or none: a branch would prevent vectorisation
    return from_bits((large & is_large) | (bits(small) & ~is_large))


def exp(x: Any) -> Any:
    """e^x for a float32 or float64 scalar."""
    return exp_float32(x) if isinstance(x, np.float32) else np.exp(x)


def exp_at_most_0(x: Any) -> Any:
    """e^x for a float32 or float64 scalar that is at most 0; for large negative x 0, or close to it."""
    return exp_at_most_0_float32(x) if isinstance(x, np.float32) else np.exp(x)


def erf(x: Any) -> Any:
    """The error function of a float32 or float64 scalar."""
    return erf_float32(x) if isinstance(x, np.float32) else np.float64(math.erf(x))


def logistic(x: Any) -> Any:
    """1 / (1 + e^-x) for a float32 or float64 scalar."""
    return ONE / (ONE + exp(-x))


by_type(exp, exp_float32, math.exp)
by_type(exp_at_most_0, exp_at_most_0_float32, math.exp)
by_type(erf, erf_float32, math.erf)
by_type(logistic, logistic_float32, logistic_float64)


@inline
def gelu_tanh_at(x: Any, scale: Any, cubic: Any) -> Any:
    """x sigmoid(2u), with scale 2 sqrt(2/pi) and cubic 0.044715 in the dtype of x: see `activation.gelu_tanh`."""
    return x * logistic(scale * x * (ONE + cubic * x * x))


@inline
def gelu_tanh_slope(x: Any, scale: Any, cubic: Any) -> Any:
    """s + x s (1 - s) d(2u)/dx, with s = sigmoid(2u)."""
    square = cubic * x * x
    s = logistic(scale * x * (ONE + square))
    return s + x * s * (ONE - s) * scale * (ONE + THREE * square)
