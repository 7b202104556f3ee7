"""The tests of the exercises of chapter 09."""

from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np


def least_time(answer: Callable[[float, float, float, float], tuple[float, str]]) -> None:
    """Compare with figures that were worked out on paper."""
    for flops, n_bytes, limit, expected in (
        (8e9, 1e9, "bytes", 0.1),  # 8 operations a byte, where 10 would be needed
        (2e12, 1e9, "operations", 20.0),
        (5e6, 8e6, "bytes", 0.0008),
    ):
        seconds, what = answer(flops, n_bytes, 100e9, 10e9)
        given = f"{flops:g} operations, {n_bytes:g} bytes"
        assert what == limit, f"{given}: {limit!r} decide, not {what!r}"
        assert abs(seconds - expected) < 1e-9 * expected, f"{given}: at least {expected:g} s, not {seconds:g}"


def largest_block(answer: Callable[[int], int]) -> None:
    """Try the block and the next larger one; a cache of 49,152 bytes holds three blocks of 64 exactly."""
    for cache_bytes in (32_768, 49_152, 49_151, 1_048_576):
        side = answer(cache_bytes)
        assert isinstance(side, int), f"the result should be an int, not {type(side).__name__}"
        fits, next_fits = (3 * 4 * s**2 <= cache_bytes for s in (side, side + 1))
        assert fits, f"{cache_bytes:,} bytes: three blocks of {side} x {side} are {12 * side**2:,} bytes"
        assert not next_fits, f"{cache_bytes:,} bytes: {side + 1} fits, too"


def mean_and_variance(answer: Callable[[Iterator[float]], tuple[float, float]]) -> None:
    """Compare with exact fractions; the numbers come one by one, and are far from 0."""
    for offset in (0.0, 1e8):
        numbers = [float(x) + offset for x in np.random.default_rng(4).normal(size=500)]
        exact = [Fraction(x) for x in numbers]
        mean = sum(exact) / len(exact)
        variance = float(sum((x - mean) ** 2 for x in exact) / len(exact))
        got = answer(iter(numbers))
        what = f"numbers around {offset:g}"
        assert abs(got[0] - float(mean)) < 1e-9 * max(1.0, offset), f"{what}: the mean is {float(mean)}, not {got[0]}"
        assert abs(got[1] - variance) < 1e-6, f"{what}: the variance is {variance:.6f}, not {got[1]:.6f}"
