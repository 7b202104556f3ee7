"""The tests of the exercises of chapter 04b."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def average(scores: Array, values: Array) -> Array:
    """The average of the values (n, D) with the softmax of the scores (n,) as weights."""
    weights = np.exp(scores - scores.max())
    mean: Array = (weights / weights.sum()) @ values
    return mean


def compare(what: str, got: Any, expected: Array) -> None:
    """Compare an array with what it should be: its shape first, then its numbers."""
    assert isinstance(got, np.ndarray), f"{what} should be an array, not {type(got).__name__}"
    assert got.shape == expected.shape, f"{what} should have the shape {expected.shape}, not {got.shape}"
    assert np.isfinite(got).all(), f"{what} has numbers that are not finite: {got}"
    worst = np.unravel_index(np.abs(got - expected).argmax(), expected.shape)
    where = [int(i) for i in worst]
    right = np.allclose(got, expected, rtol=0, atol=1e-9)
    assert right, f"{what}: element {where} should be {expected[worst]:.6f}, not {got[worst]:.6f}"


def sliding_window(answer: Callable[[Array, Array, Array, int], Array]) -> None:
    """Compare with a loop over the tokens."""
    rng = np.random.default_rng(1)
    q, k, v = (rng.normal(size=(7, 4)) for _ in range(3))
    for n in (1, 3, 7):
        rows = []
        for i in range(7):
            seen = slice(max(0, i - n + 1), i + 1)
            rows.append(average(k[seen] @ q[i] / 2, v[seen]))
        compare(f"with n = {n}, the result", answer(q, k, v, n), np.array(rows))


def one_by_one(answer: Callable[[Array, Iterator[tuple[Array, Array]]], Array]) -> None:
    """Compare with all scores at once, where they are small, growing and in the thousands."""
    rng = np.random.default_rng(2)
    q, k, v = rng.normal(size=4), rng.normal(size=(9, 4)), rng.normal(size=(9, 4))
    ordered = np.argsort(k @ q)
    cases = {"random scores": (k, v), "growing scores": (k[ordered], v), "scores in the thousands": (1000 * k, v)}
    for what, (keys, values) in cases.items():
        got = answer(q, iter(list(zip(keys, values, strict=True))))
        compare(f"{what}: the result", got, average(keys @ q / 2, values))


def mean_distance(answer: Callable[[Array], Array]) -> None:
    """Compare with heads that look at one place, and with a loop."""
    before = np.eye(5, k=-1)
    before[0, 0] = 1
    compare("itself, and the token before: the distances", answer(np.array([np.eye(5), before])), np.array([0, 0.8]))
    weights = np.tri(4) * np.random.default_rng(3).random((3, 4, 4))
    weights /= weights.sum(axis=-1, keepdims=True)
    expected = [sum((i - j) * w[i, j] for i in range(4) for j in range(i)) / 4 for w in weights]
    compare("random weights: the distances", answer(weights), np.array(expected))
