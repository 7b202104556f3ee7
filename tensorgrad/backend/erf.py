"""The error function in plain array mathematics, for backends whose array module has none.

W. J. Cody: "Rational Chebyshev approximations for the error function", Mathematics of Computation 23 (1969):
relative error below 6e-19 on each of three intervals, so all but the last place or two of float64 are exact.
"""

import math
from typing import Any

from tensorgrad.backend.arrays import Array

# erf(x) = x P(x^2) / Q(x^2) for |x| <= 0.46875; coefficients from the highest power down.
SMALL_P = (1.85777706184603153e-1, 3.16112374387056560, 1.13864154151050156e2, 3.77485237685302021e2,
           3.20937758913846947e3)  # fmt: skip
SMALL_Q = (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3)
# erfc(x) = exp(-x^2) P(x) / Q(x) for 0.46875 <= x <= 4.
MIDDLE_P = (2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594, 6.61191906371416295e1,
            2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3,
            1.23033935479799725e3)  # fmt: skip
MIDDLE_Q = (1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
            3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3)  # fmt: skip
# erfc(x) = exp(-x^2) / x (1 / sqrt(pi) - P(1 / x^2) / Q(1 / x^2) / x^2) for x >= 4.
LARGE_P = (1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1,
           1.60837851487422766e-2, 6.58749161529837803e-4)  # fmt: skip
LARGE_Q = (1.0, 2.56852019228982242, 1.87295284992346725, 5.27905102951428412e-1, 6.05183413124413191e-2,
           2.33520497626869185e-3)  # fmt: skip


def polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    """Horner's rule, highest power first."""
    y = coefficients[0] * x + coefficients[1]
    for c in coefficients[2:]:
        y = y * x + c
    return y


def erf(xp: Any, x: Array) -> Array:
    """The error function of x, of any shape, float32 or float64; NaN stays NaN."""
    size = xp.minimum(xp.abs(x), 6.0)  # erf(6) is 1 to the last bit of float64
    square = size * size
    small = size * polynomial(SMALL_P, square) / polynomial(SMALL_Q, square)
    tail = xp.exp(-square)
    middle = 1 - tail * polynomial(MIDDLE_P, size) / polynomial(MIDDLE_Q, size)
    inverse = 1 / xp.maximum(square, 1.0)
    series = 1 / math.sqrt(math.pi) - inverse * polynomial(LARGE_P, inverse) / polynomial(LARGE_Q, inverse)
    large = 1 - tail * series * xp.sqrt(inverse)
    return xp.copysign(xp.where(size <= 0.46875, small, xp.where(size <= 4, middle, large)), x)
