"""Answers to the exercises of chapter 12."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def combine(means: Array, counts: Array) -> Array:
    """Each mean counts by its share of the rows."""
    return counts @ means / counts.sum()


def own_rows(n_rows: int, rank: int, size: int) -> tuple[int, int]:
    """The end of one share is the beginning of the next, by the same formula."""
    return n_rows * rank // size, n_rows * (rank + 1) // size


def partners(rank: int, size: int) -> list[int]:
    """In round i, the rank that differs in binary digit i: groups of 2, then of 4, and so on."""
    return [rank ^ (1 << i) for i in range(size.bit_length() - 1)]
