"""The tests of the exercises of chapter 13."""

from collections.abc import Callable
from typing import Any

import numpy as np

import tensorgrad as tg


def hessian(answer: Callable[[Callable[[Any], Any], np.ndarray], np.ndarray]) -> None:
    """Compare with a matrix that is known, and with central differences of a function's values."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(3, 3))
    got = np.asarray(answer(lambda x: tg.sum(x * (tg.Tensor(a) @ x)), rng.normal(size=3)))
    assert got.shape == (3, 3), f"three numbers have a Hessian of shape (3, 3), not {got.shape}"
    wrong = np.abs(got - (a + a.T)).max()
    assert wrong < 1e-9, f"the Hessian of x·(A x) is A plus A transposed; yours differs from it by up to {wrong:.3g}"

    def f(x: np.ndarray) -> float:
        return float((np.tanh(x[0] * x[1]) * x[1] + np.exp(x[0])).sum())

    x, h = np.array([0.3, -0.8]), 1e-4
    steps = np.eye(2) * h
    differences = [
        [(f(x + s + t) - f(x + s - t) - f(x - s + t) + f(x - s - t)) / (4 * h * h) for t in steps] for s in steps
    ]
    got = np.asarray(answer(lambda x: tg.tanh(x[0] * x[1]) * x[1] + tg.exp(x[0]), x))
    wrong = np.abs(got - differences).max()
    assert wrong < 1e-5, f"a Hessian differs from the one by differences by up to {wrong:.3g}"


def trace(answer: Callable[[Callable[[np.ndarray], np.ndarray], int, int, Any], float]) -> None:
    """Compare with the sum of the diagonal; count the products."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(40, 40))
    matrix, calls = a @ a.T, []

    def product(v: np.ndarray) -> np.ndarray:
        calls.append(np.array(v))
        return matrix @ v

    got = answer(product, 40, 400, np.random.default_rng(1))
    assert got is not None, "nothing was returned"
    assert len(calls) == 400, f"400 samples need 400 products, not {len(calls)}"
    assert all(v.shape == (40,) for v in calls), "each sample is one vector of 40 numbers"
    expected = float(np.trace(matrix))
    assert abs(got - expected) < 0.05 * expected, f"the trace is {expected:.0f}, and 400 samples gave {got:.0f}"
    diagonal = np.diag(np.arange(1.0, 6.0))
    got = answer(lambda v: diagonal @ v, 5, 1, np.random.default_rng(2))
    assert abs(got - 15) < 1e-9, f"with entries of 1 and -1 one sample is exact for a diagonal matrix: 15, not {got}"


def largest_rate(answer: Callable[[float, float], float]) -> None:
    """Run the steps a little below and a little above the answer's limit."""
    for curvature, beta in [(1.0, 0.0), (4.0, 0.5), (0.2, 0.9)]:
        limit = answer(curvature, beta)
        assert limit is not None, "nothing was returned"
        sizes = []
        for rate in [0.97 * limit, 1.03 * limit]:
            before = now = 1.0
            for _ in range(2000):
                if abs(now) > 1e9:
                    break
                before, now = now, now - rate * curvature * now + beta * (now - before)
            sizes.append(abs(now))
        where = f"curvature {curvature:g} and momentum {beta:g}: a rate of {limit:g}"
        assert sizes[0] < 1, f"{where} is above the limit: 3 % below it, the steps grow"
        assert sizes[1] > 1, f"{where} is below the limit: 3 % above it, the steps still shrink"
