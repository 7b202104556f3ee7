"""Kernels over arrays with any strides, compiled once a dtype: Numba itself compiles anew for every memory layout."""

from collections.abc import Callable
from typing import Any

from numba import from_dtype, types

from tensorgrad.backend.numba.compile import jit


def array(real: Any, ndim: int, layout: str = "A") -> Any:
    """The type of an array of any strides, or, with layout "C", of a contiguous one."""
    return types.Array(real, ndim, layout)


class Strided:
    """A parallel loop; the dtype of its first argument decides which of the compiled ones runs."""

    def __init__(self, fn: Callable[..., None], signature: Callable[[Any], tuple[Any, ...]]) -> None:
        self.py_func = fn
        self.signature = signature
        self.compiled: dict[Any, Any] = {}

    def __call__(self, first: Any, *rest: Any) -> None:
        run = self.compiled.get(first.dtype)
        (run or self.compile(first.dtype))(first, *rest)

    def compile(self, dtype: Any) -> Any:
        """Compile for a dtype, or load what an earlier run compiled."""
        run = jit(self.py_func, self.py_func.__name__, parallel=True)
        run.compile(self.signature(from_dtype(dtype)))
        run.disable_compile()
        self.compiled[dtype] = run
        return run


def strided(signature: Callable[[Any], tuple[Any, ...]]) -> Callable[[Callable[..., None]], Strided]:
    """Make a kernel whose arguments have the types that `signature` gives for a Numba float type."""
    return lambda fn: Strided(fn, signature)
