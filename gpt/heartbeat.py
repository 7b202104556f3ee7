"""A line at least every few seconds, so that whoever watches a program or its log sees that it works."""

import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")
SILENCE_S = 2.5


class Heartbeat:
    """In a `with`: say what the program is doing whenever it has been silent for SILENCE_S seconds.

    activity: the line, or a function that returns it; a line is followed by the seconds so far. write: prints it, by
    default on stderr.
    """

    def __init__(self, activity: str | Callable[[], str], write: Callable[[str], Any] | None = None) -> None:
        self.activity = activity
        self._write = write or _print_on_stderr
        self._started = self._last = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def reset(self) -> None:
        """Call this when something else is printed."""
        self._last = time.monotonic()

    def _watch(self) -> None:
        while not self._ended.wait(max(0.0, self._last + SILENCE_S - time.monotonic())):
            now = time.monotonic()
            if now - self._last >= SILENCE_S:
                activity = self.activity
                line = f"{activity} ({now - self._started:.0f} s)" if isinstance(activity, str) else activity()
                with suppress(OSError, ValueError):  # closed: whatever else is printed will raise the same error
                    self._write(line)
                self.reset()

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()


def until_first(activity: str, pieces: Iterator[T]) -> Iterator[T]:
    """Yield the pieces, with a heartbeat before the first: later a line would stand within what they are printed as.

    So would the one that says that kernels are compiled. The second token is the first from the kernels of decoding,
    so two pieces are computed before one is given away.
    """
    with Heartbeat(activity):
        first = list(itertools.islice(pieces, 2))
    yield from first
    yield from pieces


@contextmanager
def progress_bar(
    what: str, total: int, unit: str, *, initial: int = 0, show: bool = True
) -> Iterator[Callable[[int], None]]:
    """Give a function that counts: a bar on a terminal, otherwise lines; nothing without `show`."""
    done = initial

    def advance(n: int) -> None:
        nonlocal done
        done += n
        bar.update(n)

    def line() -> str:
        return f"{what}: {done:,} of {total:,}{unit}"

    with tqdm(
        desc=what, total=total, initial=initial, unit=unit, unit_scale=True, dynamic_ncols=True,
        disable=None if show else True,
    ) as bar:  # fmt: skip
        if not (show and bar.disable):
            yield advance
            return
        with Heartbeat(line):
            yield advance


def _print_on_stderr(line: str) -> None:
    if sys.stderr is not None:
        print(line, file=sys.stderr, flush=True)
