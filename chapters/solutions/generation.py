"""Answers to the exercises of chapter 07."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def keep_min_p(z: Array, share: float) -> Array:
    """p_i / p_max = exp(z_i - z_max), which is at least `share` where the difference is at least log(share)."""
    return np.where(z - z.max() >= np.log(share), z, -np.inf)


def cache_bytes(n_rows: int, n_tokens: int, n_layer: int, n_kv_head: int, head_size: int, bytes_per_number: int) -> int:
    """Keys and values, hence the 2."""
    return 2 * n_rows * n_tokens * n_layer * n_kv_head * head_size * bytes_per_number


def penalise(z: Array, seen: Sequence[int], penalty: float) -> Array:
    """Dividing a negative logit would move it up, towards zero."""
    z = z.copy()
    for i in set(seen):
        z[i] = z[i] / penalty if z[i] > 0 else z[i] * penalty
    return z
