"""The tests of the exercises of chapter 04."""

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def tied_backward(answer: Callable[[Array, Array, Array], Array]) -> None:
    """Compare with central differences."""
    rng = np.random.default_rng(0)
    E, x, dz = rng.normal(size=(5, 3)), np.array([4, 1, 4]), rng.normal(size=(3, 5))
    expected = np.zeros_like(E)
    for place in np.ndindex(E.shape):
        step = np.zeros_like(E)
        step[place] = 1e-6
        above, below = ((table[x] @ table.T * dz).sum() for table in (E + step, E - step))
        expected[place] = (above - below) / 2e-6
    got = answer(E.copy(), x, dz.copy())
    assert np.shape(got) == E.shape, f"dE should have the shape of E, {E.shape}, not {np.shape(got)}"
    for row in range(5):
        where = f"row {row}, which was looked up {(x == row).sum()} times,"
        assert np.abs(got[row] - expected[row]).max() < 1e-6, f"{where} should be {expected[row]}, not {got[row]}"


def shift_matrix(answer: Callable[[int, int], Array]) -> None:
    """Move positions by several distances, also backwards."""
    for k, size in [(3, 2), (1, 8), (-5, 6)]:
        speeds = 10000.0 ** (-np.arange(0, size, 2) / size)

        def at(t: int, speeds: Array = speeds) -> Array:
            return np.stack([np.sin(t * speeds), np.cos(t * speeds)], axis=1).reshape(-1)

        M = answer(k, size)
        assert np.shape(M) == (size, size), f"the matrix should be ({size}, {size}), not {np.shape(M)}"
        for t in (0, 7, 20):
            difference = np.abs(M @ at(t) - at(t + k)).max()
            assert difference < 1e-9, f"M p({t}) should be p({t + k}) with k = {k}; they differ by {difference:.3g}"


def most_similar(answer: Callable[[Array, int, int], Any]) -> None:
    """Ask for neighbours in a table where they are known, and where length and direction disagree."""
    E = np.array([[1.0, 0.0], [9.0, 1.0], [0.5, 0.2], [0.0, 1.0], [-1.0, 0.0]])
    for i, expected in [(0, [1, 2, 3]), (3, [2, 1]), (4, [3])]:
        got = [int(v) for v in answer(E.copy(), i, len(expected))]
        assert i not in got, f"the neighbours of row {i} are {got}: they should not include the row itself"
        assert got == expected, f"the {len(expected)} most similar rows to row {i} are {expected}, not {got}"
