"""A line on stderr while kernels are compiled, so that the user knows what the first run is waiting for."""

import functools
import sys
import time
from typing import Any

from numba.core.event import Listener, register

TEXT = "compiling kernels (once)"
CLEAR = "\r\x1b[K"


class Announcement(Listener):  # type: ignore[misc]
    """Numba calls this for every function that it compiles, but not for those it loads from the cache.

    On a terminal the line names the kernel and is erased afterwards. In a log it is written once, after a second of
    compiling.
    """

    def __init__(self) -> None:
        self.depth = 0  # compiling a kernel compiles the functions it calls
        self.seconds = 0.0
        self.started = 0.0
        self.is_announced = False

    def on_start(self, event: Any) -> None:
        """Called before a function is compiled."""
        if not is_ours(event):
            return
        if self.depth == 0:
            self.started = time.perf_counter()
            if is_terminal():
                show(f"{CLEAR}{TEXT}: {event.data['dispatcher'].py_func.__name__}")
        self.depth += 1

    def on_end(self, event: Any) -> None:
        """Called after a function was compiled."""
        if not is_ours(event):
            return
        self.depth -= 1
        if self.depth:
            return
        self.seconds += time.perf_counter() - self.started
        if is_terminal():
            show(CLEAR)
        elif self.seconds > 1 and not self.is_announced:
            self.is_announced = True
            show(f"{TEXT}\n")


def is_ours(event: Any) -> bool:
    """Whether the function being compiled belongs to this library."""
    return str(event.data["dispatcher"].py_func.__module__).startswith("tensorgrad.")


def is_terminal() -> bool:
    """Whether stderr is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def show(text: str) -> None:
    """Write to stderr immediately, if there is one."""
    if sys.stderr is not None:
        sys.stderr.write(text)
        sys.stderr.flush()


@functools.cache
def announce_compilation() -> None:
    """Announce compilations from now on. Further calls have no effect."""
    register("numba:compile", Announcement())
