"""The time of a device: a clock that is read on the CPU, and events that a GPU reaches in the order of its work."""

import time
from typing import Any

from tensorgrad.backend.runtime import Backend


class Clock:
    """Reads the time where kernels have finished when they return."""

    def stamp(self) -> Any:
        """This moment, for `seconds`."""
        return time.perf_counter()

    def seconds(self, start: Any, end: Any) -> float:
        """The seconds between two stamps."""
        return float(end - start)


class CudaClock(Clock):
    """Events in the current stream: reached when the GPU has done what was launched before. Stamping waits for nothing.

    The time between two includes that in which the GPU waits for Python to launch a kernel.
    """

    def __init__(self, cuda: Any) -> None:
        self.cuda = cuda

    def stamp(self) -> Any:
        """An event, which the GPU may reach later."""
        event = self.cuda.Event()
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Waits until the GPU has reached the later one."""
        end.synchronize()
        return float(self.cuda.get_elapsed_time(start, end)) / 1e3


def clock_of(k: Backend) -> Clock:
    """The clock of a backend."""
    return CudaClock(k.xp.cuda) if hasattr(k.xp, "cuda") else Clock()
