"""A line on stderr while kernels are compiled, so that the first step of the first run is not a silence."""

import functools
import sys
import time
from typing import Any

from numba.core.event import Listener, register

TEXT = "compiling kernels (once)"
CLEAR = "\r\x1b[K"


class Announcement(Listener):  # type: ignore[misc]
    """Told by Numba of every compilation that the cache did not spare.

    On a terminal the line names the kernel and is wiped when that is done; in a log it appears once, and only if a
    second was spent.
    """

    def __init__(self) -> None:
        self.depth = 0  # a kernel's compilation compiles what it calls
        self.seconds = 0.0
        self.started = 0.0
        self.told = False

    def on_start(self, event: Any) -> None:
        """Before a function is compiled."""
        if not is_ours(event):
            return
        if self.depth == 0:
            self.started = time.perf_counter()
            if is_terminal():
                show(f"{CLEAR}{TEXT}: {event.data['dispatcher'].py_func.__name__}")
        self.depth += 1

    def on_end(self, event: Any) -> None:
        """After it."""
        if not is_ours(event):
            return
        self.depth -= 1
        if self.depth:
            return
        self.seconds += time.perf_counter() - self.started
        if is_terminal():
            show(CLEAR)
        elif self.seconds > 1 and not self.told:
            self.told = True
            show(f"{TEXT}\n")


def is_ours(event: Any) -> bool:
    """Whether what is compiled belongs to this library."""
    return str(event.data["dispatcher"].py_func.__module__).startswith("tensorgrad.")


def is_terminal() -> bool:
    """Whether someone may be looking at stderr."""
    return sys.stderr is not None and sys.stderr.isatty()


def show(text: str) -> None:
    """Write to stderr now, if there is one."""
    if sys.stderr is not None:
        sys.stderr.write(text)
        sys.stderr.flush()


@functools.cache
def announce_compilation() -> None:
    """Listen from now on; again does nothing."""
    register("numba:compile", Announcement())
