"""Random numbers as a pure function of (seed, stream, step, element): the same on every backend.

A stream is a purpose that numbers are drawn for; the step counts the draws of a stream. A draw depends on its step but
not on earlier draws, so a resumed run, and dropout that is recomputed in backward, get the same numbers.
"""

import math
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import numpy as np

from tensorgrad.backend import Array
from tensorgrad.backend.philox import random_bits
from tensorgrad.backend.threads import cpu_count, team

Shape = int | tuple[int, ...]
BLOCK_ELEMENTS = 2**16  # numbers drawn at a time by a thread: even, since normal numbers come in pairs


class Stream(IntEnum):
    """What random numbers are drawn for. Each stream has its own counter."""

    INIT = 0
    DROPOUT = 1
    DATA = 2
    SAMPLING = 3


class Generator:
    """Draws from Philox4x32-10 under one seed.

    seed: an int of at most 64 bits. Every method takes `stream` and `step`: with step None it uses and advances the
    stream's counter; with an explicit step it is a pure function of (seed, stream, step).
    """

    def __init__(self, seed: int = 0) -> None:
        self.manual_seed(seed)

    def manual_seed(self, seed: int) -> "Generator":
        """Set the seed and reset the counters of all streams."""
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
            raise ValueError(f"seed: {seed!r} is not an integer from 0 to 2**64 - 1")
        self.seed = int(seed)
        self.steps = {stream: 0 for stream in Stream}
        return self

    def next_step(self, stream: Stream, n: int = 1) -> int:
        """Reserve the next n steps of a stream; returns the first."""
        step = self.steps[stream]
        self.steps[stream] = step + n
        return step

    def bits(self, shape: Shape, *, stream: Stream = Stream.SAMPLING, step: int | None = None) -> Array:
        """Uniformly distributed 32-bit words: uint32 of that shape."""
        step = self.next_step(stream) if step is None else step
        return _in_blocks(shape, np.uint32, lambda start, stop: self._words(start, stop, stream, step))

    def _words(self, start: int, stop: int, stream: Stream, step: int) -> Array:
        return random_bits(np, stop - start, self.seed, stream, step, start)

    def uniform(
        self, shape: Shape, low: float = 0.0, high: float = 1.0, dtype: Any = np.float32, *,
        stream: Stream = Stream.SAMPLING, step: int | None = None,
    ) -> Array:  # fmt: skip
        """Uniformly distributed numbers in [low, high), from the upper 24 bits of each word."""
        number = self.next_step(stream) if step is None else step

        def block(start: int, stop: int) -> Array:
            return low + (high - low) * 2.0**-24 * (self._words(start, stop, stream, number) >> np.uint32(8))

        values = _in_blocks(shape, dtype, block)
        first, end = np.asarray([low, high], values.dtype)
        values[values == end] = np.nextafter(end, first)  # rounding may have reached `high`, which is excluded
        return values

    def normal(
        self, shape: Shape, mean: float = 0.0, std: float = 1.0, dtype: Any = np.float32, *,
        stream: Stream = Stream.SAMPLING, step: int | None = None,
    ) -> Array:  # fmt: skip
        """Normally distributed numbers by Box and Muller (1958), computed in float64, a pair from a pair of words."""
        number = self.next_step(stream) if step is None else step

        def block(start: int, stop: int) -> Array:
            words = self._words(start, stop + stop % 2, stream, number).reshape(-1, 2)
            radius = np.sqrt(-2 * np.log((words[:, 0] + 1.0) * 2.0**-32))  # in (0, 1]: no log of 0
            angle = words[:, 1] * (2 * math.pi * 2.0**-32)
            pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
            return mean + std * pairs.reshape(-1)[: stop - start]

        return _in_blocks(shape, dtype, block)

    def integers(
        self, low: int, high: int, shape: Shape, *, stream: Stream = Stream.DATA, step: int | None = None
    ) -> Array:
        """Integers in [low, high) as int64: 32-bit words scaled to the range. Probabilities err by less than 2^-32."""
        if not 0 < high - low <= 2**32:
            raise ValueError(f"integers: [{low}, {high}) is empty or wider than 2**32")
        bits = self.bits(shape, stream=stream, step=step).astype(np.uint64)
        return np.asarray(low + (bits * np.uint64(high - low) >> np.uint64(32)).astype(np.int64))

    def permutation(self, n: int, *, stream: Stream = Stream.DATA, step: int | None = None) -> Array:
        """The numbers 0 to n - 1 in random order, as int64: sorted by one random word each."""
        return np.argsort(self.bits((n,), stream=stream, step=step), kind="stable").astype(np.int64)

    def state_dict(self) -> dict[str, Any]:
        """The seed and the counters, as plain ints that JSON can hold."""
        return {"seed": self.seed, "steps": {stream.name.lower(): step for stream, step in self.steps.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the seed and the counters of a `state_dict`. Raises ValueError if it is not valid."""
        names = {stream.name.lower(): stream for stream in Stream}
        steps = state.get("steps")
        if not isinstance(steps, dict) or steps.keys() != names.keys():
            raise ValueError(f"generator state: steps {steps!r} do not name the streams {', '.join(names)}")
        if any(isinstance(step, bool) or not isinstance(step, int) or step < 0 for step in steps.values()):
            raise ValueError(f"generator state: steps {steps!r} are not counts")
        seed: Any = state.get("seed")
        self.manual_seed(seed)
        self.steps = {names[name]: step for name, step in steps.items()}


def _in_blocks(shape: Shape, dtype: Any, draw: Callable[[int, int], Array]) -> Array:
    """An array whose elements start to stop are draw(start, stop), computed in blocks on all cores."""
    values = np.empty(shape, dtype)
    flat = values.reshape(-1)

    def fill(start: int) -> None:
        stop = min(start + BLOCK_ELEMENTS, flat.size)
        flat[start:stop] = draw(start, stop)

    if flat.size <= BLOCK_ELEMENTS:
        fill(0)
    else:
        team(cpu_count()).run(fill, [(start,) for start in range(0, flat.size, BLOCK_ELEMENTS)])
    return values


default_generator = Generator(0)


def manual_seed(seed: int) -> Generator:
    """Seed the default generator, which initialisation and dropout draw from; returns it."""
    return default_generator.manual_seed(seed)
