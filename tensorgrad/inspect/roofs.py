"""What a machine can do at most: FLOP/s of a matrix product, and bytes/s for arrays of any size.

All is measured with the kernels of the backend itself, on its threads. It is measured again in every round, since the
clock of a processor and what its other programs do change from second to second.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tensorgrad.backend import Backend
from tensorgrad.backend.clock import clock_of
from tensorgrad.inspect.stopwatch import faster_half

SMALLEST_BYTES, LARGEST_BYTES = 2**17, 2**29  # working sets: from one that fits into a cache to one that fits into none
LARGEST_PRODUCT = 8192  # rows
# The time of what is measured at once: long enough for the clock and for starting all threads, and short enough that
# often nothing interrupts it.
TURN_SECONDS = 5e-4
TURNS = 6
CACHE = 1.25  # so many times as fast as from memory: some of it comes from a cache


@dataclass(frozen=True)
class Roof:
    """The roofs of a machine. peak: FLOP/s. bandwidth: bytes/s by working set, the bytes that are read and written."""

    peak: float
    bandwidth: dict[int, float]

    @property
    def memory(self) -> float:
        """Bytes/s of the largest working set."""
        return self.bandwidth[max(self.bandwidth)]

    def bandwidth_of(self, n_bytes: float) -> float:
        """Bytes/s for a working set: between two that were measured, on a line over the logarithm of the size."""
        sizes = sorted(self.bandwidth)
        if n_bytes <= sizes[0]:
            return self.bandwidth[sizes[0]]
        for low, high in zip(sizes, sizes[1:], strict=False):
            if n_bytes <= high:
                part = math.log(n_bytes / low) / math.log(high / low)
                return self.bandwidth[low] * (1 - part) + self.bandwidth[high] * part
        return self.memory

    def least_seconds(self, flops: float, n_bytes: float) -> tuple[float, str]:
        """The time of a call that reaches its roof, and which roof that is: "compute", "cache" or "memory"."""
        bandwidth = self.bandwidth_of(n_bytes)
        if flops / self.peak > n_bytes / bandwidth:
            return flops / self.peak, "compute"
        return n_bytes / bandwidth, "cache" if bandwidth > CACHE * self.memory else "memory"


class Measurement:
    """Measures the roofs of a backend for products in `dtype`, again with every call of `measure`."""

    def __init__(self, k: Backend, dtype: Any, largest_bytes: int = LARGEST_BYTES) -> None:
        self.k, self.clock = k, clock_of(k)
        self.roof = Roof(0.0, {})
        self.sizes = [SMALLEST_BYTES]  # of working sets, in bytes
        while self.sizes[-1] * 4 <= largest_bytes:
            self.sizes.append(self.sizes[-1] * 4)
        self.buffer = k.xp.ones(self.sizes[-1] // 4, "float32")
        self.one = k.number(k.asarray(1.0))
        self.piece = SMALLEST_BYTES  # of a large working set, what is timed at once
        while (
            self.piece < self.sizes[-1]
            and self._best(lambda: self._scale(self.buffer[: self.piece // 4])) < TURN_SECONDS
        ):
            self.piece *= 2
        self.n = 128
        self.matrix = self._matrix(dtype)
        while self.n < LARGEST_PRODUCT and self._best(self._multiply) < TURN_SECONDS:
            self.n *= 2
            self.matrix = self._matrix(dtype)

    def measure(self) -> None:
        """Measure all roofs once more. `roof` has the highest so far."""
        peak = 2 * self.n**3 / min(self._best(self._multiply), self._best(self._matmul))
        bandwidth: dict[int, float] = {}
        highest = 0.0
        for size in reversed(self.sizes):  # what a larger working set allows, a smaller one does as well
            highest = max(highest, self._bandwidth(size), self.roof.bandwidth.get(size, 0.0))
            bandwidth[size] = highest
        self.roof = Roof(max(self.roof.peak, peak), bandwidth)

    def _bandwidth(self, size: int) -> float:
        """The better one of reading an array, for its norm, and of reading and writing it, to scale it."""
        x, step = self.buffer[: size // 4], self.piece // 4
        pieces = [x[i : i + step] for i in range(0, x.size, step)]
        calls = max(1, step // x.size)
        turns = pieces if len(pieces) >= TURNS else pieces * TURNS
        reading = faster_half([self._time(self._norm, calls, x) for x in turns])
        both = faster_half([self._time(self._scale, calls, x) for x in turns])
        return max(1 / reading, 2 / both) * pieces[0].nbytes

    def _matrix(self, dtype: Any) -> Any:
        return self.k.xp.ones((self.n, self.n), "float32").astype(dtype)

    def _multiply(self) -> None:
        self.k.linear(self.matrix, self.matrix, None)

    def _matmul(self) -> None:  # on some backends another kernel
        self.k.matmul(self.matrix, self.matrix)

    def _norm(self, x: Any) -> None:
        self.k.global_norm([x])

    def _scale(self, x: Any) -> None:
        self.k.scale([x], self.one)

    def _best(self, function: Callable[[], Any]) -> float:
        return min(self._time(function) for _ in range(TURNS))

    def _time(self, function: Callable[..., Any], calls: int = 1, *arguments: Any) -> float:
        """Seconds of a call."""
        start = self.clock.stamp()
        for _ in range(calls):
            function(*arguments)
        return self.clock.seconds(start, self.clock.stamp()) / calls
