"""Answers to the exercises of chapter 04."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def tied_backward(E: Array, x: Array, dz: Array) -> Array:
    """The product's gradient for E as its right factor, and a scatter-add for the rows that were looked up."""
    dE = dz.T @ E[x]
    np.add.at(dE, x, dz @ E)
    return dE


def shift_matrix(k: int, size: int) -> Array:
    """A block for each pair, from the addition theorems."""
    M = np.zeros((size, size))
    for i in range(0, size, 2):
        angle = k * 10000.0 ** (-i / size)
        M[i : i + 2, i : i + 2] = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    return M


def most_similar(E: Array, i: int, n: int) -> Array:
    """Sort by the cosine; the row itself would be first."""
    cosines = E @ E[i] / (np.linalg.norm(E, axis=1) * np.linalg.norm(E[i]))
    cosines[i] = -np.inf
    return np.argsort(-cosines)[:n]
