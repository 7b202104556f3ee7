"""Answers to the exercises of chapter 09."""

import math
from collections.abc import Iterable


def least_time(flops: float, n_bytes: float, peak: float, bandwidth: float) -> tuple[float, str]:
    """The longer of the two times."""
    return max((flops / peak, "operations"), (n_bytes / bandwidth, "bytes"))


def largest_block(cache_bytes: int) -> int:
    """3 · 4 s² bytes must fit: s is the root of a twelfth of them, without what is after the point."""
    return math.isqrt(cache_bytes // 12)


def mean_and_variance(numbers: Iterable[float]) -> tuple[float, float]:
    """Each number moves the mean by its share of the distance, and adds to the squares around the moving mean."""
    mean = squares = 0.0
    count = 0
    for count, x in enumerate(numbers, start=1):
        before = x - mean
        mean += before / count
        squares += before * (x - mean)
    return mean, squares / count
