"""Threads that take the parts of a piece of work, each the next one that nobody has begun.

NumPy lets go of the interpreter while it computes, and OpenBLAS's own threads spin for a while after each product, on
the cores that these would need. So all work is cut up here, products too, and each call to NumPy is one thread's.
"""

import collections
import functools
import os
import queue
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import numpy as np

# Who sleeps takes 40 microseconds to wake up. So the caller stays awake for a while when others have yet to finish: it
# does, again and again, what takes 8 microseconds and lets go of the interpreter, which they need for that.
PATIENCE = 20
NUMBERS = np.ones(2**16, np.float32)


def cpu_count() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Team:
    """n threads, of which the caller's is one. The others are started at once, and sleep until there is work."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        for i in range(1, n):
            threading.Thread(target=self._listen, name=f"tensorgrad-{i}", daemon=True).start()

    def run(self, fn: Callable[..., None], parts: list[tuple[Any, ...]]) -> None:
        """fn(*part) for every part. Raises what a part raised, once all are done.

        Nobody is waited for who has not begun a part: where the others wake late, the caller does more.
        """
        if self.n == 1 or len(parts) == 1:
            for part in parts:
                fn(*part)
            return
        waiting = collections.deque(parts)
        done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

        def work() -> None:
            while waiting:
                try:
                    part = waiting.popleft()
                except IndexError:  # another thread was faster
                    return
                try:
                    fn(*part)
                except BaseException as error:
                    done.put(error)
                else:
                    done.put(None)

        for _ in range(min(self.n, len(parts)) - 1):
            self._calls.put(functools.partial(copy_context().run, work))  # with the caller's numpy.errstate
        work()
        for _ in range(PATIENCE):
            if done.qsize() == len(parts):
                break
            np.multiply(NUMBERS, 1, out=NUMBERS)
        errors = [done.get() for _ in parts]
        for error in errors:
            if error is not None:
                raise error

    def _listen(self) -> None:
        while True:
            self._calls.get()()


@functools.cache
def team(n: int) -> Team:
    """The n threads: started when they are first asked for, then kept."""
    return Team(n)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=team.cache_clear)  # a forked process has none of these threads
