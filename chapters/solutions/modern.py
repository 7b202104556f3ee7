"""Answers to the exercises of chapter 11."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def move_value_bias(w_o: Array, b_v: Array, b_o: Array) -> Array:
    """The weights of attention add up to 1, so b_v reaches the output layer unchanged."""
    moved: Array = w_o @ b_v + b_o
    return moved


def pool_heads(weight: Array, n_head: int, n_kv_head: int) -> Array:
    """One axis for the groups, one for the heads of a group, one for the rows of a head."""
    size = len(weight) // n_head
    groups = weight.reshape(n_kv_head, n_head // n_kv_head, size, -1)
    mean: Array = groups.mean(axis=1).reshape(n_kv_head * size, -1)
    return mean


def base_for_window(n_tokens: int, head_size: int, angle: float) -> float:
    """Solve n_tokens base^(-(D - 2) / D) = angle for the base."""
    return float((n_tokens / angle) ** (head_size / (head_size - 2)))
