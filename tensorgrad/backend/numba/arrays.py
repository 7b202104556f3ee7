"""What kernels take and make: contiguous arrays of one floating dtype, and the blocks they are cut into."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.numba.compile import inline

FLOATING = (np.dtype(np.float32), np.dtype(np.float64))
BLOCK_ELEMENTS = 2**12  # elements


@inline
def n_blocks(x: Any) -> int:
    """How many blocks x (n) has."""
    return (x.size + BLOCK_ELEMENTS - 1) // BLOCK_ELEMENTS


@inline
def block_of(x: Any, i: int) -> Any:
    """Block i of x (n). Loops over it from 0 are vectorised; from elsewhere they would check for negative indices."""
    return x[i * BLOCK_ELEMENTS : min((i + 1) * BLOCK_ELEMENTS, x.size)]


def is_supported(*arrays: Any) -> bool:
    """Whether kernels may have these: NumPy arrays, all float32 or all float64. The plain mathematics has the rest."""
    dtype = getattr(arrays[0], "dtype", None)
    return dtype in FLOATING and not [x for x in arrays if type(x) is not np.ndarray or x.dtype != dtype]


def contiguous(x: Array) -> Array:
    """x in C order, aligned and writable, which is the one layout that kernels are compiled for; copied if need be."""
    return x if x.flags.carray else np.array(x, order="C")


def flat(x: Array) -> Array:
    """x (...) -> (size,), a view wherever it can be."""
    return contiguous(x).reshape(-1)


def rows(x: Array) -> Array:
    """x (..., n) -> (rows, n), a view wherever it can be. n must not be 0."""
    return contiguous(x).reshape(-1, x.shape[-1])


def elementwise(kernel: Callable[..., None], plain: Callable[..., Array], *arrays: Array) -> Array:
    """A new array from arrays of one shape, element by element; from `plain` for arrays that kernels may not have."""
    first = arrays[0]
    if not is_supported(*arrays) or any(x.shape != first.shape for x in arrays):
        return plain(*arrays)
    y = np.empty(first.shape, first.dtype)
    kernel(*(flat(x) for x in arrays), y.reshape(-1))
    return y
