"""The tests of the exercises of chapter 10."""

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def tokens_per_second(answer: Callable[[int, int, int, float], float]) -> None:
    """Compare with figures that were worked out on paper."""
    for n_weights, block, n_bytes, bandwidth, expected in (
        (1_000_000_000, 32, 18, 9e9, 16.0),
        (1_000_000_000, 1, 4, 20e9, 5.0),
        (64_000_000, 32, 34, 34e9, 500.0),
    ):
        got = answer(n_weights, block, n_bytes, bandwidth)
        given = f"{n_weights:,} weights, {n_bytes} bytes for each {block}, {bandwidth:.3g} bytes a second"
        assert isinstance(got, int | float), f"the result should be a number, not {type(got).__name__}"
        assert abs(got - expected) < 1e-6 * expected, f"{given}: it should be {expected:g}, not {got:g}"


def unpack_in_pairs(answer: Callable[[Array], Array]) -> None:
    """Take each byte apart as text in base 16."""
    packed = np.random.default_rng(6).integers(0, 256, (5, 16)).astype(np.uint8)
    got = answer(packed.copy())
    assert np.shape(got) == (5, 32), f"the shape should be (5, 32), not {np.shape(got)}"
    for block, row in zip(packed, got, strict=True):
        for j, byte in enumerate(block):
            high, low = (int(digit, 16) for digit in f"{byte:02x}")
            what = f"byte {j} is {byte} = {low} + 16 * {high}"
            assert row[2 * j] == low, f"{what}: element {2 * j} should be {low}, not {row[2 * j]}"
            assert row[2 * j + 1] == high, f"{what}: element {2 * j + 1} should be {high}, not {row[2 * j + 1]}"


def best_scale(answer: Callable[[Array, Array], float]) -> None:
    """Try scales around the one that was returned: none may be better."""
    rng = np.random.default_rng(7)
    for _ in range(5):
        x = rng.normal(size=32)
        q = np.round(x * 7 / np.abs(x).max())
        d = answer(x.copy(), q.copy())
        assert np.ndim(d) == 0, f"the scale should be a number, not of shape {np.shape(d)}"
        assert d is not None, "the scale should be a number, not None"
        error = float(((x - d * q) ** 2).sum())
        for other in np.append(np.abs(x).max() / 7, d * np.linspace(0.9, 1.1, 21)):
            lower = float(((x - other * q) ** 2).sum())
            found = f"with d = {d:.5f} the error is {error:.5f}, with {other:.5f} only {lower:.5f}"
            assert error <= lower + 1e-9, found
