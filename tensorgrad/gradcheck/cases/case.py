"""A case: an op, the inputs to try it on, and where these come from."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tensorgrad import ops
from tensorgrad.backend import Array, Backend
from tensorgrad.backend.arrays import is_floating
from tensorgrad.random import Generator
from tensorgrad.tensor import Tensor


class Frozen:
    """A float input whose gradient is not wanted."""

    def __init__(self, array: Array) -> None:
        self.array = array


class Case:
    """One call of an op: `Case("broadcast", ops.add, randn(3, 1), randn(4))`.

    inputs: float64 arrays become tensors that require a gradient (unless `Frozen`), integer and boolean arrays tensors
    that do not, anything else is passed on as it is; so are the options. reference: the NumPy function, called with the
    same inputs and options, that tells what the result has to be; ops without a gradient need one.
    """

    def __init__(
        self, name: str, fn: Callable[..., Any], *inputs: Any,
        reference: Callable[..., Any] | None = None, **options: Any,
    ) -> None:  # fmt: skip
        self.name, self.fn, self.inputs, self.reference, self.options = name, fn, inputs, reference, options

    def renamed(self, name: str) -> "Case":
        """The same under another name."""
        return Case(name, self.fn, *self.inputs, reference=self.reference, **self.options)

    def __repr__(self) -> str:
        return f"Case({self.name!r})"

    def call(self, *inputs: Any) -> Any:
        """The op on these inputs, with the case's options."""
        return self.fn(*inputs, **self.options)

    def tensors(self, k: Backend, dtype: Any) -> list[Any]:
        """The inputs as tensors of a backend, floats rounded to `dtype`, laid out in memory as in the case."""
        return [self._tensor(k, x, np.dtype(dtype)) for x in self.inputs]

    def _tensor(self, k: Backend, x: Any, dtype: Any) -> Any:
        if isinstance(x, Frozen):
            return Tensor(_lay_out(k, x.array, dtype))
        if not isinstance(x, np.ndarray):
            return x
        floating = is_floating(x.dtype)
        return Tensor(_lay_out(k, x, dtype if floating else x.dtype), requires_grad=floating)

    def arrays(self, dtype: Any) -> list[Any]:
        """The inputs as NumPy arrays, floats rounded to `dtype` and widened again, for the reference."""
        arrays = (x.array if isinstance(x, Frozen) else x for x in self.inputs)
        return [
            x.astype(dtype).astype(np.float64) if isinstance(x, np.ndarray) and is_floating(x.dtype) else x
            for x in arrays
        ]


def _lay_out(k: Backend, x: Array, dtype: Any) -> Array:
    """x in another dtype on a backend, with the strides it has: sliced, reversed and stride-0 views stay such."""
    memory = x
    while isinstance(memory.base, np.ndarray):
        memory = memory.base
    start = (x.__array_interface__["data"][0] - memory.__array_interface__["data"][0]) // x.itemsize
    moved = k.asarray(memory.ravel(order="K").astype(dtype))
    strides = [stride // x.itemsize * moved.itemsize for stride in x.strides]
    return k.xp.lib.stride_tricks.as_strided(moved[start:], x.shape, strides)


# --- inputs, float64 ------------------------------------------------------------------------------

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
    """Multiples of 1/4 around 0, no two of them equal, in random order: far from where the largest changes places."""
    n = int(np.prod(shape))
    return np.asarray((_generator.permutation(n) - n // 2) / 4).reshape(shape)


def integers(low: int, high: int, *shape: int) -> Array:
    """int64 from low to high - 1."""
    return np.asarray(_generator.integers(low, high, shape))


def booleans(*shape: int) -> Array:
    """True or False."""
    return np.asarray(integers(0, 2, *shape) == 1)


# --- the same cases for every op of a kind -------------------------------------------------------

Draw = Callable[..., Array]


def unary(fn: Callable[..., Any], draw: Draw = randn, **options: Any) -> list[Case]:
    """Cases of an elementwise op on one array."""
    return [
        Case("0-d", fn, draw(), **options),
        Case("one element", fn, draw(1), **options),
        Case("3-d", fn, draw(2, 3, 4), **options),
        Case("empty", fn, draw(0, 3), **options),
        Case("transposed", fn, draw(4, 3).T, **options),
        Case("sliced", fn, draw(6, 5)[::2, 1:4], **options),
        Case("reversed", fn, draw(5)[::-1], **options),
        Case("stride 0", fn, np.broadcast_to(draw(4), (3, 4)), **options),
        Case("used twice", lambda x, **given: ops.add(fn(x, **given), x), draw(3, 4), **options),
    ]


def binary(fn: Callable[..., Any], a: Draw = randn, b: Draw = randn, **options: Any) -> list[Case]:
    """Cases of an elementwise op on two arrays that broadcast together."""
    return [
        Case("0-d", fn, a(), b(), **options),
        Case("one element", fn, a(1), b(1), **options),
        Case("same shape", fn, a(3, 4), b(3, 4), **options),
        Case("broadcast", fn, a(3, 1), b(4), **options),
        Case("broadcast 3-d", fn, a(2, 1, 3), b(4, 1), **options),
        Case("array and 0-d", fn, a(2, 3), b(), **options),
        Case("0-d and array", fn, a(), b(2, 3), **options),
        Case("scalar right", fn, a(2, 3), 1.375, **options),
        Case("scalar left", fn, 1.375, b(2, 3), **options),
        Case("empty", fn, a(0, 3), b(3), **options),
        Case("transposed", fn, a(4, 3).T, b(3, 4), **options),
        Case("sliced", fn, a(6, 4)[::2], b(3, 8)[:, ::-2], **options),
        Case("stride 0", fn, np.broadcast_to(a(4), (3, 4)), np.broadcast_to(b(3, 1), (3, 4)), **options),
        Case("frozen left", fn, Frozen(a(3)), b(2, 3), **options),
        Case("frozen right", fn, a(2, 3), Frozen(b(3)), **options),
    ]
