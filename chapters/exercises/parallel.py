"""The tests of the exercises of chapter 12."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def combine(answer: Callable[[Array, Array], Array]) -> None:
    """Compare with the mean over the rows themselves."""
    rng = np.random.default_rng(0)
    for counts in ([4, 4], [1, 7, 3], [5, 0, 2]):
        parts = [rng.normal(size=(count, 3)) for count in counts]
        means = np.array([part.mean(axis=0) if len(part) else np.zeros(3) for part in parts])
        expected = np.concatenate(parts).mean(axis=0)
        got = np.asarray(answer(means, np.array(counts)))
        assert got.shape == (3,), f"the gradient should have the shape (3,), not {got.shape}"
        assert np.abs(got - expected).max() < 1e-12, f"with {counts} rows it should be {expected}, not {got}"


def own_rows(answer: Callable[[int, int, int], tuple[int, int]]) -> None:
    """Every row belongs to one process, and the shares differ by at most one row."""
    for n_rows, size in [(8, 2), (10, 3), (7, 4), (2, 5), (100, 1), (1000, 7)]:
        ranges = [answer(n_rows, rank, size) for rank in range(size)]
        rows = [row for first, end in ranges for row in range(first, end)]
        shares = [end - first for first, end in ranges]
        where = f"{n_rows} rows for {size} processes: {ranges}"
        assert sorted(rows) == list(range(n_rows)), f"{where}: each row should come exactly once"
        assert max(shares) - min(shares) <= 1, f"{where}: the shares {shares} differ by more than one"


def partners(answer: Callable[[int, int], Sequence[int]]) -> None:
    """Carry out the exchanges with sets of contributions."""
    for size in (1, 2, 4, 16):
        chosen = [list(answer(rank, size)) for rank in range(size)]
        n_rounds = size.bit_length() - 1
        for rank in range(size):
            n = len(chosen[rank])
            assert n == n_rounds, f"with {size} processes there are {n_rounds} rounds; rank {rank} has {n}"
        have = [[rank] for rank in range(size)]
        for i in range(n_rounds):
            for rank in range(size):
                other = chosen[rank][i]
                where = f"{size} processes, round {i}: rank {rank} chose {other}"
                assert 0 <= other < size, f"{where}, which does not exist"
                assert chosen[other][i] == rank, f"{where}, which chose {chosen[other][i]}"
            have = [have[rank] + have[chosen[rank][i]] for rank in range(size)]
        for rank in range(size):
            got = sorted(have[rank])
            assert got == list(range(size)), f"{size} processes: rank {rank} has the contributions {got} at the end"
