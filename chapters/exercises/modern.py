"""The tests of the exercises of chapter 11."""

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def move_value_bias(answer: Callable[[Array, Array, Array], Array]) -> None:
    """Compare attention with a bias of the values, and attention with the bias that was returned."""
    rng = np.random.default_rng(4)
    w_o, weights, v = rng.normal(size=(6, 6)), rng.random((5, 5)), rng.normal(size=(5, 6))
    weights /= weights.sum(axis=1, keepdims=True)
    b_v, b_o = rng.normal(size=(2, 6))
    expected = weights @ (v + b_v) @ w_o.T + b_o
    moved = answer(w_o.copy(), b_v.copy(), b_o.copy())
    assert np.shape(moved) == (6,), f"the bias should have the shape (6,), not {np.shape(moved)}"
    difference = np.abs(weights @ v @ w_o.T + moved - expected).max()
    assert difference < 1e-9, f"without b_v and with the new bias, the results differ by {difference:.3g}"


def pool_heads(answer: Callable[[Array, int, int], Array]) -> None:
    """Compare with a loop over the groups, and with heads that are equal."""
    rng = np.random.default_rng(5)
    for n_head, n_kv_head, size in ((6, 2, 3), (4, 4, 2), (4, 1, 2)):
        weight, shared = rng.normal(size=(n_head * size, 5)), n_head // n_kv_head
        got = answer(weight.copy(), n_head, n_kv_head)
        shape = (n_kv_head * size, 5)
        assert np.shape(got) == shape, (
            f"{n_head} heads into {n_kv_head}: the shape should be {shape}, not {np.shape(got)}"
        )
        for g in range(n_kv_head):
            heads = [weight[h * size : (h + 1) * size] for h in range(g * shared, (g + 1) * shared)]
            difference = np.abs(got[g * size : (g + 1) * size] - sum(heads) / shared).max()
            which = f"heads {g * shared} to {(g + 1) * shared - 1}"
            assert difference < 1e-9, f"{n_head} heads into {n_kv_head}: head {g} is not the mean of {which}"


def base_for_window(answer: Callable[[int, int, float], float]) -> None:
    """Turn the slowest pair, step by step."""
    for n_tokens, head_size, angle in ((1024, 64, 0.5), (8192, 64, 1.0), (200, 8, 3.0)):
        base = answer(n_tokens, head_size, angle)
        assert isinstance(base, int | float), f"the base should be a number, not {type(base).__name__}"
        assert base > 1, f"the base should be above 1, not {base}"
        turned = n_tokens * min(base ** (-2 * i / head_size) for i in range(head_size // 2))
        close = abs(turned - angle) < 1e-6
        assert close, f"with base {base:g} the slowest pair turns by {turned:g} in {n_tokens} tokens, not by {angle:g}"
