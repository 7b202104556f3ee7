"""The tests of the exercises of chapter 6."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Adapter = tuple[Array, Array, float]


def largest_rank(answer: Callable[[int, int, float], int]) -> None:
    """Count the numbers of adapters of every rank, one after the other."""
    for m, n, share in ((4096, 4096, 0.01), (2304, 768, 0.1), (10, 10, 0.05), (64, 256, 0.5), (3, 4, 7 / 12)):
        expected = max(r for r in range(m + n) if sum((r * n, m * r)) <= share * m * n)
        got = answer(m, n, share)
        given = f"a matrix of {m} x {n}, share {share:.3g}"
        assert got is not None, "the result should be a whole number, not None"
        assert got == int(got), f"{given}: a rank is a whole number, not {got}"
        assert got == expected, f"{given}: it should be {expected}, not {got}"


def join_adapters(answer: Callable[[Adapter, Adapter], tuple[Array, Array]]) -> None:
    """Send inputs through both adapters, and through the one that was returned."""
    rng = np.random.default_rng(8)
    m, n = 5, 7
    first, second = ((rng.normal(size=(r, n)), rng.normal(size=(m, r)), s) for r, s in ((2, 0.5), (3, 4.0)))
    given = [array.copy() for array in (*first[:2], *second[:2])]
    got = answer(first, second)
    assert isinstance(got, tuple | list), f"two matrices should be returned, A and B, not {type(got).__name__}"
    assert len(got) == 2, f"two matrices should be returned, A and B, not {len(got)}"
    A, B = got
    assert np.shape(A) == (5, n), f"A should have the shape (5, {n}), the sum of both ranks first, not {np.shape(A)}"
    assert np.shape(B) == (m, 5), f"B should have the shape ({m}, 5), not {np.shape(B)}"
    for _ in range(3):
        x = rng.normal(size=n)
        expected = sum(s * b.dot(a.dot(x)) for a, b, s in (first, second))
        error = np.abs(B.dot(A.dot(x)) - expected).max()
        assert error < 1e-10, f"B A x should be the sum of both changes; it differs by {error:.3g}"
    for before, after in zip(given, (*first[:2], *second[:2]), strict=True):
        assert np.array_equal(before, after), "the two adapters should stay as they are"


def first_fit(answer: Callable[[Sequence[int], int], list[list[int]]]) -> None:
    """Follow every example: it has to be in the first row that had room for it."""
    rng = np.random.default_rng(9)
    for lengths, capacity in (([5, 6, 4, 3, 2], 10), ([10, 10, 10], 10), (rng.integers(1, 60, 80).tolist(), 96)):
        got = answer(list(lengths), capacity)
        given = f"lengths {lengths[:8]}{' ...' if len(lengths) > 8 else ''}, capacity {capacity}"
        assert got is not None, "a list of rows should be returned, not None"
        rows = [list(row) for row in got]
        assert sorted(sum(rows, [])) == list(range(len(lengths))), f"{given}: each index should be in one row, once"
        where = {i: r for r, row in enumerate(rows) for i in row}
        used = [0] * len(rows)
        for i, length in enumerate(lengths):
            right = next((r for r, n in enumerate(used) if n + length <= capacity), len(rows))
            what = f"example {i}, of length {length}, should be in row {right}, not in row {where[i]}"
            assert where[i] == right, f"{given}: {what}"
            used[right] += length
