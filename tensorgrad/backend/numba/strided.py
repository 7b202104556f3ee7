"""Kernels for arrays of any strides, compiled once per dtype. By itself Numba would compile once per memory layout."""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, from_dtype, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.numba.compile import inline, jit
from tensorgrad.backend.numba.parallel import ALONE, START, THREAD, threads


def array(real: Any, ndim: int, layout: str = "A") -> Any:
    """The Numba type of an array of any strides, or, with layout "C", of a contiguous one."""
    return types.Array(real, ndim, layout)


class Strided:
    """A loop on all threads, compiled for each dtype of its first argument.

    It runs on one thread where no others may start, or where that argument has fewer than `min_parallel` elements.
    """

    def __init__(
        self, fn: Callable[..., None], signature: Callable[[Any], tuple[Any, ...]], min_parallel: int = 0
    ) -> None:
        self.py_func = fn
        self.min_parallel = min_parallel
        self.signature = signature
        self.compiled: dict[Any, Any] = {}

    def __call__(self, first: Any, *rest: Any) -> None:
        run = self.compiled.get(first.dtype) or self.compile(first.dtype)
        thread = START if threads.may_start and first.size >= self.min_parallel else ALONE
        with threads.lock:
            run(first, *rest, thread)

    def compile(self, dtype: Any) -> Any:
        """Compile for a dtype, or load it from the cache on disk."""
        run = jit(self.py_func, self.py_func.__name__)
        run.compile((*self.signature(from_dtype(dtype)), THREAD))
        run.disable_compile()
        self.compiled[dtype] = run
        return run


def strided(
    signature: Callable[[Any], tuple[Any, ...]], min_parallel: int = 0
) -> Callable[[Callable[..., None]], Strided]:
    """Decorator: compile a kernel with the argument types that `signature` returns for a Numba float type."""
    return lambda fn: Strided(fn, signature, min_parallel)


@intrinsic  # type: ignore[untyped-decorator]
def address(context: Any, array: Any) -> Any:
    """The address of the first element of an array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.bitcast(data, cgutils.voidptr_t)

    return types.voidptr(array), generate


def array_at(address: int, like: Any) -> Any:
    """The array in C order at an address, with the shape and dtype of another one."""
    return np.frombuffer((ctypes.c_byte * like.nbytes).from_address(int(address)), like.dtype).reshape(like.shape)


overload(array_at, jit_options={"forceinline": True})(
    lambda address, like: lambda address, like: carray(_pointer(address), like.shape, like.dtype)
)


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(context: Any, address: Any) -> Any:
    """An address as a pointer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@inline
def contiguous_row(x: Any) -> Any:
    """A contiguous x (n), as an array whose type says that it is contiguous: loops over it are vectorised."""
    return carray(address(x), (x.size,), x.dtype)


@inline
def as_row(x: Any, first: int, n: int) -> Any:
    """Rows x[first : first + n] of a contiguous matrix as one row: loops over short rows are not vectorised."""
    return carray(address(x[first:]), (n * x.shape[1],), x.dtype)


@inline
def as_panels(x: Any, n: int) -> Any:
    """A contiguous matrix (n k, nr) as n packed panels (n, k, nr)."""
    return carray(address(x), (n, x.shape[0] // n, x.shape[1]), x.dtype)


def with_contiguous_rows(x: Array) -> Array:
    """x, copied if its last axis is not contiguous or if it is read-only, which kernels are not compiled for."""
    return x if x.flags.writeable and x.strides[-1] == x.itemsize else x.copy()
