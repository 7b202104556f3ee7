"""What a function says when it is called with arguments that it does not take."""

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def bind(name: str, signature: inspect.Signature, args: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call, by name. Raises TypeError, with the arguments that it takes, where they do not fit."""
    try:
        return signature.bind(*args, **named).arguments
    except TypeError as error:
        takes = importlib.import_module("tensorgrad.hints").takes(named, list(signature.parameters))
        raise TypeError(f"{name}: {error}; {takes}") from None


def explained(fn: Function) -> Function:
    """The same function, which refuses arguments that it does not take as an op does."""

    @functools.wraps(fn)
    def call(*args: Any, **named: Any) -> Any:
        try:
            return fn(*args, **named)
        except TypeError:
            bind(fn.__name__, inspect.signature(fn), args, named)
            raise

    return call  # type: ignore[return-value]
