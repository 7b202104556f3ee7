"""Answers to the exercises of chapter 04b."""

from collections.abc import Iterable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def sliding_window(q: Array, k: Array, v: Array, n: int) -> Array:
    """The triangle without the triangle n diagonals lower."""
    T, D = q.shape
    seen = np.tri(T, dtype=bool) & ~np.tri(T, k=-n, dtype=bool)
    scores = np.where(seen, q @ k.T / np.sqrt(D), -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    y: Array = (weights / weights.sum(axis=-1, keepdims=True)) @ v
    return y


def one_by_one(q: Array, pairs: Iterable[tuple[Array, Array]]) -> Array:
    """A running maximum, and two sums that are rescaled when it grows."""
    largest, total, average = -np.inf, 0.0, np.zeros(len(q))
    for key, value in pairs:
        score = key @ q / np.sqrt(len(q))
        shrink = np.exp(largest - max(largest, score))
        largest = max(largest, score)
        weight = np.exp(score - largest)
        total = total * shrink + weight
        average = average * shrink + weight * value
    return average / total


def mean_distance(weights: Array) -> Array:
    """The distances i - j, averaged with the weights of a row, and then over the rows."""
    place = np.arange(weights.shape[-1])
    distance: Array = (weights * (place[:, None] - place)).sum(axis=-1).mean(axis=-1)
    return distance
