"""Arrays for examples, float64 unless they say otherwise."""

from collections.abc import Callable

import numpy as np

from tensorgrad.backend import Array
from tensorgrad.random import Generator

Numbers = Callable[..., Array]  # from a shape

_generator = Generator(2026)


def randn(*shape: int) -> Array:
    """Normally distributed."""
    return np.asarray(_generator.normal(shape, dtype=np.float64))


def uniform(low: float, high: float, *shape: int) -> Array:
    """Uniform between low and high."""
    return np.asarray(_generator.uniform(shape, low, high, dtype=np.float64))


def positive(*shape: int) -> Array:
    """From 1/2 to 2: far from 0, where a logarithm or a root is not smooth."""
    return uniform(0.5, 2, *shape)


def nonzero(*shape: int) -> Array:
    """From 1/2 to 2, of either sign: far from the kink at 0."""
    return np.asarray(positive(*shape) * (1 - 2 * integers(0, 2, *shape)))


def distinct(*shape: int) -> Array:
    """Multiples of 1/4 around 0, all different, in random order: no small step changes which is the largest."""
    n = int(np.prod(shape))
    return np.asarray((_generator.permutation(n) - n // 2) / 4).reshape(shape)


def integers(low: int, high: int, *shape: int) -> Array:
    """int64 from low to high - 1."""
    return np.asarray(_generator.integers(low, high, shape))


def booleans(*shape: int) -> Array:
    """True or False."""
    return np.asarray(integers(0, 2, *shape) == 1)
