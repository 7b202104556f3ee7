"""Answers to the exercises of chapter 13."""

from collections.abc import Callable
from typing import Any

import numpy as np

import tensorgrad as tg


def hessian(f: Callable[[Any], Any], x: np.ndarray) -> np.ndarray:
    """A matrix times the unit vector number j is its column number j."""
    columns = [tg.hvp(f, [x], [unit])[0].numpy() for unit in np.eye(x.size)]
    return np.stack(columns, axis=1)


def trace(product: Callable[[np.ndarray], np.ndarray], n: int, n_samples: int, rng: Any) -> float:
    """The mean of v·(H v): the products of different entries of v cancel, and the square of each is 1."""
    samples = rng.choice([-1.0, 1.0], size=(n_samples, n))
    return float(np.mean([v @ product(v) for v in samples]))


def largest_rate(curvature: float, beta: float) -> float:
    """With x, -x, x: -1 = 1 - rate · curvature + 2 beta."""
    return 2 * (1 + beta) / curvature
