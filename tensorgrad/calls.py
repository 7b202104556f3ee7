"""What functions and ops say when they are called with arguments that they do not take."""

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

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


def error_in_op(name: str, arrays: Sequence[Any], error: Exception) -> Exception:
    """What NumPy raised inside an op, with the op's name and the operands' shapes, or dtypes if those do not fit."""
    if isinstance(error, TypeError):
        dtypes = list(dict.fromkeys(x.dtype.name for x in arrays if hasattr(x, "dtype")))
        if isinstance(error, np.exceptions.DTypePromotionError):
            return TypeError(f"{name}: {' and '.join(dtypes)} have no common dtype: convert one with astype")
        return TypeError(f"{name}: {', '.join(dtypes)}: {error}")
    return ValueError(f"{name}: {', '.join(str(getattr(x, 'shape', x)) for x in arrays)}: {error}")
