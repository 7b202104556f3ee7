"""Ctrl-C, SIGTERM, a terminal that is closed: the first ends a run after its step, a second ends it at once."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

from tensorgrad.distributed import Communicator

SIGHUP = getattr(signal, "SIGHUP", None)  # the terminal is gone; Windows has no such signal
NOTE = "\nfinishing this step and saving; once more stops at once\n"


class StopSignals:
    """In a `with`: the first Ctrl-C, SIGTERM or SIGHUP is only noted, a second acts as it always did.

    SIGHUP is not where it is ignored, as under nohup. What is printed after it goes nowhere.

    received: the signal's number, 0 before there is one. On a terminal a line says what is going on.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def anywhere(self, group: Communicator) -> int:
        """The number of the signal that any process of the group has received: the same for all of them."""
        if group.size == 1:
            return self.received
        return int(group.gather([self.received]).max())

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()
        if number == SIGHUP:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for descriptor in self._terminals:  # to write there would be an error now
                os.dup2(nowhere, descriptor)
            os.close(nowhere)
        if sys.stderr is not None and sys.stderr.isatty():
            os.write(2, NOTE.encode())  # print may be what the signal has interrupted, and cannot be entered again

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def __enter__(self) -> StopSignals:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
            if SIGHUP is not None and signal.getsignal(SIGHUP) is not signal.SIG_IGN:
                self._before[SIGHUP] = signal.signal(SIGHUP, self._note)
        except ValueError:
            pass  # not the main thread: signals are not ours to handle
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()
