"""Choosing a backend by its name, or by the arrays of an operation.

`numpy` and `numba` both work on NumPy arrays, so one of them is current; CuPy arrays always belong to `cupy`. Numba and
CuPy are imported only when their backend is loaded.
"""

import difflib
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tensorgrad.backend.arrays import Array, Quantized, real_dtype
from tensorgrad.backend.numpy import NumpyBackend
from tensorgrad.backend.runtime import Backend, BackendUnavailable
from tensorgrad.backend.threads import cpu_count

__all__ = [
    "Array", "Backend", "BackendUnavailable", "as_operand", "backend_of", "check", "get_backend", "load", "register",
    "set_float32_matmul_precision", "set_num_threads", "use_backend",
]

NAMES = ("numpy", "numba", "cupy")

_loaded: dict[str, Backend] = {"numpy": NumpyBackend()}
_by_type: dict[type, Backend] = {np.ndarray: _loaded["numpy"]}
_current: Backend = _loaded["numpy"]


def load(name: str) -> Backend:
    """The backend of that name. Raises ValueError for an unknown one, BackendUnavailable if it cannot run here."""
    if name not in NAMES:
        near = difflib.get_close_matches(name, (*NAMES, "auto"), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown backend {name!r}: choose auto, {', '.join(NAMES)}{hint}")
    if name not in _loaded:
        _loaded[name] = importlib.import_module(f"tensorgrad.backend.{name}").create()
        _by_type.setdefault(_loaded[name].array_type, _loaded[name])
    return _loaded[name]


def register(backend: Backend) -> None:
    """Use the backend for arrays of its type, without making it current."""
    _by_type.setdefault(backend.array_type, backend)


def check(name: str) -> str | None:
    """Why that backend cannot run here, in one line; None if it can."""
    try:
        load(name)
    except BackendUnavailable as error:
        return str(error)
    return None


def choose() -> tuple[Backend, str]:
    """The fastest backend that runs here, and the reason: why faster ones do not."""
    skipped: list[str] = []
    for name in reversed(NAMES):
        why = check(name)
        if why is None:
            return load(name), "; ".join([f"auto chose {name}", *skipped])
        skipped.append(f"not {name}: {why}")
    raise AssertionError("numpy always works")


class use_backend:
    """Make a backend current: at once, and in a `with` statement until the end of the block.

    name: "numpy", "numba", "cupy", or "auto" for the fastest that runs here. `.backend` is the backend that was chosen
    and `.reason` says why. Raises ValueError for an unknown name, BackendUnavailable where it cannot run.
    """

    def __init__(self, name: str) -> None:
        self.backend, self.reason = choose() if name == "auto" else (load(name), f"{name} was requested")
        self._before = _current, dict(_by_type)
        _make_current(self.backend)

    def __enter__(self) -> "use_backend":
        _make_current(self.backend)
        return self

    def __exit__(self, *error: object) -> None:
        before, types = self._before
        _make_current(before)
        _by_type.update(types)


def _make_current(backend: Backend) -> None:
    global _current
    _current = backend
    _by_type[backend.array_type] = backend
    backend.activate()


def set_num_threads(n: int) -> None:
    """Compute on n CPU threads from now on, in matrix products and in all other kernels.

    The default is the number of cores. Raises ValueError for n below 1 or above the number of cores.
    """
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or not 1 <= n <= cpu_count():
        raise ValueError(f"threads: {n!r} is not a number from 1 to {cpu_count()}, the cores of this machine")
    NumpyBackend.threads = int(n)
    _current.activate()


def set_float32_matmul_precision(precision: str) -> None:
    """Multiply float32 on the current backend exactly ("highest"), or rounded to TF32 on tensor cores ("high").

    Raises ValueError for any other value, and for "high" where there are no tensor cores.
    """
    if precision not in ("highest", "high"):
        raise ValueError(f"set_float32_matmul_precision: {precision!r} is not 'highest' or 'high'")
    reason = _current.lacks("tf32") if precision == "high" else None
    if reason:
        raise ValueError(f"set_float32_matmul_precision: high is tf32, {reason}")
    _current.set_float32_precision(tf32=precision == "high")


def get_backend() -> Backend:
    """The current backend, on which new tensors are created."""
    return _current


def backend_of(name: str, arrays: Sequence[Any]) -> Backend:
    """The backend of an op's operands, scalars aside; with a quantised one, the kernels that read it.

    Raises TypeError, naming the op, if they are on two backends, or if it does not read quantised weights.
    """
    found = quantized = None
    for x in arrays:
        k = _by_type.get(type(x))
        if k is None:
            quantized = x if isinstance(x, Quantized) else quantized
        elif k is not found:
            if found is not None:
                raise TypeError(
                    f"{name}: operands are on two backends, {found.name} and {k.name}; "
                    f"move one with .to({found.name!r}) or .to({k.name!r})"
                )
            found = k
    if quantized is not None:
        kernels: Backend = quantized.kernels(name, found, arrays)
        return kernels
    if found is None:
        raise TypeError(f"{name}: no backend for {', '.join(type(x).__name__ for x in arrays)}")
    return found


def as_operand(name: str, x: Any) -> Any:
    """x as an op computes with it: a Python number, or a backend's array in this machine's byte order.

    Lists and arrays of a subclass of NumPy's become plain arrays. Raises TypeError, with the op's name, for what holds
    no real numbers, for masked elements, and for arrays of other libraries.
    """
    if isinstance(x, (int, float)):
        return x
    if isinstance(x, np.ndarray | list | tuple) and type(x) not in _by_type:
        if np.any(getattr(x, "mask", False)):
            raise TypeError(f"{name}: a masked element has no value: give the array's filled(value)")
        x = np.asarray(x)
    if type(x) in _by_type or isinstance(x, np.generic):
        dtype = real_dtype(name, x.dtype)
        return x if x.dtype == dtype else x.astype(dtype)
    if isinstance(x, Quantized):
        return x
    given = f"{' '.join(repr(x).split()):.60} of {type(x)}"
    raise TypeError(f"{name}: {given} is not supported: give a real number, a list of them, or NumPy's or CuPy's array")
