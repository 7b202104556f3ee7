"""How a function becomes a kernel, and where compiled code is kept. Numba's decorators get their types here."""

import contextlib
import functools
import hashlib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tensorgrad.backend.runtime import BackendUnavailable

try:
    import llvmlite.binding as llvm
    import numba
    from numba.core.caching import FunctionCache
    from numba.extending import overload
except ModuleNotFoundError as error:
    raise BackendUnavailable("numba is not installed: pip install numba") from error
except ImportError as error:  # Numba refuses a NumPy that is newer than it knows
    raise BackendUnavailable(f"numba cannot be imported: {error}") from error

Function = TypeVar("Function", bound=Callable[..., Any])

prange: Any = numba.prange

MIN_PARALLEL_ELEMENTS = 2**15  # elements; below, waking the other threads costs more than they save


def use_whole_vectors() -> None:
    """Have loops compiled for all 512 bits of a vector where the processor has them; before anything is compiled.

    LLVM takes half of them on Intel's, the first of which slowed down for all. What the user has set stays.
    """
    if numba.config.CPU_FEATURES is None and has_instructions("avx512f"):
        numba.config.CPU_FEATURES = f"{llvm.get_host_cpu_features().flatten()},-prefer-256-bit"


def has_instructions(feature: str) -> bool:
    """Whether kernels are compiled for an instruction set extension, by LLVM's name: "avx512f", "avx2", "fma" ...

    It is the processor's unless the user has set NUMBA_CPU_FEATURES or NUMBA_ENABLE_AVX.
    """
    if numba.config.CPU_FEATURES is not None:
        return f"+{feature}" in numba.config.CPU_FEATURES.split(",")
    has_it = llvm.get_host_cpu_features().get(feature, False)
    return bool(has_it and (numba.config.ENABLE_AVX or not feature.startswith("avx")))


class Kernel:
    """A loop over arrays, compiled twice from one body: `prange` over threads, and in series for small arrays.

    Called with the arguments of the body; the size of the first tells how much there is to do.

    Compiled without any of LLVM's fast-math flags: what is written is what is computed. Numba optimises a parallel loop
    once when it compiles it and twice when it keeps it on disk, and LLVM rounds differently in the vector instructions
    of a loop and in those for its last elements, wherever a flag leaves a choice. Without, the same bits come out of
    the first run and the second, in parallel and in series, with any number of threads.
    """

    def __init__(self, fn: Callable[..., None]) -> None:
        functools.update_wrapper(self, fn)
        self.py_func = fn
        self.serial = jit(fn, fn.__name__)
        self.parallel = jit(fn, f"{fn.__name__}_parallel", parallel=True)

    def __call__(self, first: Any, *rest: Any) -> None:
        (self.parallel if first.size >= MIN_PARALLEL_ELEMENTS else self.serial)(first, *rest)


def kernel(fn: Callable[..., None]) -> Kernel:
    """Compile a loop over arrays, as a decorator."""
    return Kernel(fn)


def inline(fn: Function) -> Function:
    """Compile a function that kernels call, into where it is called: loops with calls in them are not vectorised."""
    result: Function = jit(fn, fn.__name__, forceinline=True)
    return result


def noinline(fn: Function) -> Function:
    """Compile a function that kernels call and that is long: once, and not again into every place it is called from."""
    result: Function = jit(fn, fn.__name__)
    return result


def by_type(fn: Callable[..., Any], float32: Callable[..., Any], float64: Callable[..., Any]) -> None:
    """Let compiled code that calls fn(x) call one of two functions: the first if x is float32 or an array of it."""

    def choose(x: Any) -> Callable[..., Any]:
        is_float32 = getattr(x, "dtype", x) == numba.types.float32
        return (lambda x: float32(x)) if is_float32 else (lambda x: float64(x))

    choose.__annotations__.clear()  # Numba wants the signature of the lambdas
    overload(fn, jit_options={"forceinline": True})(choose)


def jit(fn: Callable[..., Any], name: str, **options: bool) -> Any:
    """fn, compiled when it is first called with arguments of new types and kept on disk as `name` for later runs."""
    copy = types.FunctionType(fn.__code__, fn.__globals__, fn.__name__)
    copy.__qualname__, copy.__module__, copy.__doc__ = name, fn.__module__, fn.__doc__
    options["no_cfunc_wrapper"] = True  # nothing in C calls it, and the wrapper takes time to compile
    dispatcher = numba.njit(nogil=True, error_model="numpy", **options)(copy)
    with contextlib.suppress(RuntimeError):  # no folder that can be written: every process compiles anew
        dispatcher._cache = Cache(copy)
    return dispatcher


def is_kept(dispatcher: Any) -> bool:
    """Whether the cache on disk has the function, as its sources are now; True, too, where nothing can be kept."""
    return not isinstance(dispatcher._cache, Cache) or dispatcher._cache.is_filled()


class Cache(FunctionCache):  # type: ignore[misc]
    """Numba's cache on disk, that knows what a kernel is made of and never stands in the way.

    Numba looks at the file a function is written in; kernels call functions of other files of this package too. A full
    disk or a damaged file costs a compilation, not an error.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        super().__init__(fn)
        self._cache_file._source_stamp = (self._cache_file._source_stamp, digest(Path(__file__).parent))

    def is_filled(self) -> bool:
        """Whether there is anything of the function as its sources are now."""
        try:
            return bool(self._cache_file._load_index())
        except Exception:
            return False

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """What was compiled in an earlier run; None where nothing usable is there."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep compiled code for later runs, if that is possible."""
        try:
            super().save_overload(sig, data)
        except Exception:
            self.disable()


@functools.cache
def digest(folder: Path) -> str:
    """One hash of every source file in a folder."""
    sources = [path.read_bytes() for path in sorted(folder.glob("*.py"))]
    return hashlib.sha256(b"\0".join(sources)).hexdigest()


def set_num_threads(n: int) -> None:
    """Share the loops of kernels among n threads, or as many as Numba has if that is fewer."""
    numba.set_num_threads(min(n, numba.config.NUMBA_NUM_THREADS))
