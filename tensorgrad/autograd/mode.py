"""What each thread records: whether ops are recorded at all, and which observers see them."""

import inspect
import threading
from collections.abc import Callable
from contextlib import ContextDecorator
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


class Mode(threading.local):
    """The state of one thread."""

    recording = True
    observers: tuple[Any, ...] = ()


mode = Mode()


class no_grad(ContextDecorator):
    """Record nothing and save nothing for backward; a context manager and a decorator, with and without parentheses."""

    recording = False

    def __new__(cls, fn: Any = None) -> Any:
        return super().__new__(cls) if fn is None else cls()(fn)

    def __init__(self) -> None:
        self._before: list[bool] = []  # one for every block that was entered and not yet left

    def __enter__(self) -> None:
        self._before.append(mode.recording)
        mode.recording = self.recording

    def __exit__(self, *error: object) -> None:
        mode.recording = self._before.pop()

    def __call__(self, fn: Function) -> Function:
        if inspect.isgeneratorfunction(fn):
            raise TypeError(f"{type(self).__name__}: {fn.__name__} is a generator: its body runs later, between yields")
        return super().__call__(fn)

    def _recreate_cm(self) -> "no_grad":
        return type(self)()  # a decorated function may run on several threads: every call has its own state


class enable_grad(no_grad):
    """Record again inside `no_grad`; a context manager and a decorator."""

    recording = True


def is_grad_enabled() -> bool:
    """Whether ops are recorded on this thread."""
    return mode.recording
