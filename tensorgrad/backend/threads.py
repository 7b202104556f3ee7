"""A pool of threads that share the parts of a task: a free thread takes the next part.

NumPy releases the GIL while it computes. OpenBLAS's own threads spin for a while after each product, on cores that
these threads need. So all work is split here, products too, and each call to NumPy runs on a single thread.
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

# A sleeping thread needs 40 microseconds to wake up. So while other threads have yet to finish, the caller stays awake
# for a while: it repeats a multiplication that takes 8 microseconds and releases the GIL, which the others need.
MAX_SPINS = 20
SPIN_ARRAY = np.ones(2**16, np.float32)


def cpu_count() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Team:
    """n threads, including the caller's. The others are started at once, and sleep until there is work."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        for i in range(1, n):
            threading.Thread(target=self._listen, name=f"tensorgrad-{i}", daemon=True).start()

    def run(self, fn: Callable[..., None], parts: list[tuple[Any, ...]]) -> None:
        """fn(*part) for every part. An exception of a part is raised when all parts are done.

        A thread that has not begun a part is not waited for: where the others wake up late, the caller does more.
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
        for _ in range(MAX_SPINS):
            if done.qsize() == len(parts):
                break
            np.multiply(SPIN_ARRAY, 1, out=SPIN_ARRAY)
        errors = [done.get() for _ in parts]
        for error in errors:
            if error is not None:
                raise error

    def _listen(self) -> None:
        while True:
            self._calls.get()()


@functools.cache
def team(n: int) -> Team:
    """A team of n threads, started at the first call and then kept."""
    return Team(n)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=team.cache_clear)  # a forked process does not inherit the threads
