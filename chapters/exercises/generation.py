"""The tests of the exercises of chapter 07."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def keep_min_p(answer: Callable[[Array, float], Array]) -> None:
    """Compare with the rule about probabilities, for logits of any size."""
    rng = np.random.default_rng(0)
    for share in (0.02, 0.1, 0.5, 1.0):
        for shift in (0.0, 1000.0):
            z = rng.normal(size=12) * 2 + shift
            p = np.exp(z - z.max())
            expected = p >= share * p.max()
            got = answer(z.copy(), share)
            assert np.shape(got) == z.shape, f"the result should have the shape {z.shape}, not {np.shape(got)}"
            kept = np.isfinite(got)
            where = f"with share {share}" + (" and logits near 1000" if shift else "")
            assert (kept == expected).all(), f"{where}, {expected.sum()} tokens should be kept, not {kept.sum()}"
            assert (got[kept] == z[kept]).all(), "the logits of the tokens that are kept should not change"
            assert (got[~kept] == -np.inf).all(), "the other logits should be -inf"


def cache_bytes(answer: Callable[..., int]) -> None:
    """Compare with the sizes of arrays."""
    for rows, tokens, layers, heads, size, bytes_each in [(1, 10, 1, 1, 4, 4), (3, 100, 4, 2, 16, 2)]:
        array = np.zeros((rows, tokens, heads, size), f"f{bytes_each}")
        expected = sum(k_or_v.nbytes for _ in range(layers) for k_or_v in (array, array))
        got = answer(rows, tokens, layers, heads, size, bytes_each)
        given = f"{rows} rows, {tokens} tokens, {layers} layers, {heads} heads of {size}, {bytes_each} bytes each"
        assert got == expected, f"{given}: {expected:,} bytes, not {got}"


def penalise(answer: Callable[[Array, Sequence[int], float], Array]) -> None:
    """Positive, negative and repeated ids."""
    z = np.array([2.0, -1.0, 0.0, 3.0, -4.0])
    given = z.copy()
    got = answer(given, [0, 1, 0, 0, 2], 2.0)
    assert (given == z).all(), "z itself should not change: work on a copy"
    assert got[0] == 1.0, f"a logit of 2 that occurred three times is divided by 2 once: 1, not {got[0]}"
    assert got[1] == -2.0, f"a logit of -1 is multiplied, so that it becomes less likely: -2, not {got[1]}"
    assert (np.asarray(got)[2:] == z[2:]).all(), f"the others should stay {z[2:]}, not {got[2:]}"
    assert (answer(z.copy(), [], 2.0) == z).all(), "without earlier tokens nothing should change"
