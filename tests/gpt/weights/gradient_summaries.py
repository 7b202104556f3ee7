"""Gradients in four numbers each: what make_transformers_figures.py keeps, and test_transformers.py compares."""

import hashlib

import numpy as np

DIRECTIONS = 3


def direction(name: str, k: int, shape: tuple[int, ...]) -> np.ndarray:
    """Signs, drawn from a seed that is the name of the parameter."""
    seed = int.from_bytes(hashlib.sha256(f"{name} {k}".encode()).digest()[:8], "little")
    return np.random.default_rng(seed).integers(0, 2, size=shape, dtype=np.int8) * np.int8(2) - np.int8(1)


def summarize(name: str, gradient: np.ndarray) -> list[float]:
    """The norm of a gradient, and its products with directions, which depend on each of its elements."""
    g = gradient.astype(np.float64)
    products = [float((g * direction(name, k, g.shape)).sum()) for k in range(DIRECTIONS)]
    return [float(np.sqrt((g * g).sum())), *products]
