"""Answers to the exercises of chapter 6."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Adapter = tuple[Array, Array, float]


def largest_rank(m: int, n: int, share: float) -> int:
    """Rank r has r (m + n) numbers; the small addition is for products that are rounded down."""
    return int(share * m * n / (m + n) + 1e-9)


def join_adapters(first: Adapter, second: Adapter) -> tuple[Array, Array]:
    """The rows of A below each other, and the columns of B, with their scales, side by side."""
    (A1, B1, s1), (A2, B2, s2) = first, second
    return np.vstack([A1, A2]), np.hstack([s1 * B1, s2 * B2])


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Look for room in every row, from the first on."""
    rows: list[list[int]] = []
    for i, length in enumerate(lengths):
        for row in rows:
            if sum(lengths[j] for j in row) + length <= capacity:
                row.append(i)
                break
        else:
            rows.append([i])
    return rows
