"""Ctrl-C, SIGTERM, a closed terminal: the first ends a run after its step, a second ends it at once."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from tensorgrad.distributed import Communicator

SIGHUP = getattr(signal, "SIGHUP", None)  # the terminal was closed; Windows has no such signal
NOTE = "\nfinishing this step and saving; once more stops at once\n"


class _Interrupted(Exception):
    """A signal has arrived; see StopSignals.interrupting."""


class StopSignals:
    """In a `with`: the first Ctrl-C, SIGTERM or SIGHUP is recorded; a second acts as usual.

    SIGHUP remains ignored where it is ignored, as under nohup; after it, output to the terminal is discarded.

    received: the number of the signal, 0 before there is one. On a terminal, a line tells the user.
    """

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def received_by_any(self, group: Communicator) -> int:
        """Return the number of a signal that any process of the group has received, the same in all of them."""
        if group.size == 1:
            return self.received
        return int(group.gather([self.received]).max())

    @contextmanager
    def interrupting(self, group: Communicator) -> Iterator[Callable[[], None]]:
        """Give a function that leaves the block once any process of the group has received a signal."""

        def check() -> None:
            if self.received_by_any(group):
                raise _Interrupted

        with suppress(_Interrupted):
            yield check

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()
        if number == SIGHUP:
            devnull = os.open(os.devnull, os.O_WRONLY)
            for descriptor in self._terminals:  # writing to a closed terminal would be an error
                os.dup2(devnull, descriptor)
            os.close(devnull)
        if sys.stderr is not None and sys.stderr.isatty():
            os.write(2, NOTE.encode())  # the signal may have interrupted print, which cannot be called again then

    def _restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def __enter__(self) -> "StopSignals":
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
            if SIGHUP is not None and signal.getsignal(SIGHUP) is not signal.SIG_IGN:
                self._previous[SIGHUP] = signal.signal(SIGHUP, self._handle)
        except ValueError:
            pass  # only the main thread can handle signals
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()
