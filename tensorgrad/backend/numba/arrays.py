"""Which arrays kernels support, their layout in memory, and the blocks in which elementwise kernels process them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.numba.compile import inline

FLOATING = (np.dtype(np.float32), np.dtype(np.float64))
BLOCK_ELEMENTS = 2**12


@inline
def n_blocks(x: Any) -> int:
    """The number of blocks of x (n)."""
    return (x.size + BLOCK_ELEMENTS - 1) // BLOCK_ELEMENTS


@inline
def block_of(x: Any, i: int) -> Any:
    """Block i of x (n). A loop over it starts at 0, so it is vectorised: it needs no check for negative indices."""
    return x[i * BLOCK_ELEMENTS : min((i + 1) * BLOCK_ELEMENTS, x.size)]


def is_supported(*arrays: Any) -> bool:
    """Whether kernels support these arrays: NumPy arrays, all float32 or all float64."""
    dtype = getattr(arrays[0], "dtype", None)
    return dtype in FLOATING and not [x for x in arrays if type(x) is not np.ndarray or x.dtype != dtype]


def contiguous(x: Array) -> Array:
    """x in C order, aligned and writable, the only layout that kernels are compiled for; copied if necessary."""
    return x if x.flags.carray else np.array(x, order="C")


def flat(x: Array) -> Array:
    """x (...) -> (size,), a view if possible."""
    return contiguous(x).reshape(-1)


def rows(x: Array) -> Array:
    """x (..., n) -> (rows, n), a view if possible. n must not be 0."""
    return contiguous(x).reshape(-1, x.shape[-1])


def elementwise(kernel: Callable[..., None], plain: Callable[..., Array], *arrays: Array) -> Array:
    """Apply an elementwise kernel to arrays of one shape; use `plain` if the kernel does not support them."""
    first = arrays[0]
    if not is_supported(*arrays) or any(x.shape != first.shape for x in arrays):
        return plain(*arrays)
    y = np.empty(first.shape, first.dtype)
    kernel(*(flat(x) for x in arrays), y.reshape(-1))
    return y
