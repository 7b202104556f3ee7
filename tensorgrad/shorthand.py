"""Random tensors as NumPy and PyTorch spell them: `tg.randn(2, 3)`."""

from typing import Any

import numpy as np

from tensorgrad.calls import explained
from tensorgrad.creation import normal, uniform
from tensorgrad.tensor import Tensor


@explained
def rand(*shape: int, dtype: Any = np.float32, requires_grad: bool = False) -> Tensor:
    """`uniform` from 0 to 1, of the shape rand(2, 3)."""
    return uniform(_shape(shape), dtype=dtype, requires_grad=requires_grad)


@explained
def randn(*shape: int, dtype: Any = np.float32, requires_grad: bool = False) -> Tensor:
    """`normal` with mean 0 and standard deviation 1, of the shape randn(2, 3)."""
    return normal(_shape(shape), dtype=dtype, requires_grad=requires_grad)


def _shape(sizes: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes
