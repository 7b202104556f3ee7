"""Decorators that compile functions with Numba, and the cache of compiled code on disk."""

import contextlib
import functools
import hashlib
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tensorgrad.backend.cache import sources
from tensorgrad.backend.runtime import BackendUnavailable

try:
    import llvmlite
    import llvmlite.binding as llvm
    import numba
    from numba.core.caching import FunctionCache, IndexDataCacheFile
    from numba.core.runtime import rtsys
    from numba.extending import overload
except ModuleNotFoundError as error:
    raise BackendUnavailable("numba is not installed: pip install numba") from error
except Exception as error:  # a NumPy that is too new for it, or a variable such as NUMBA_NUM_THREADS=0
    raise BackendUnavailable(f"numba cannot be imported: {' '.join(str(error).split())}") from error

Function = TypeVar("Function", bound=Callable[..., Any])


def use_whole_vectors() -> None:
    """Compile loops for vectors of 512 bits if the processor has them. To be called before anything is compiled.

    LLVM uses only 256 bits on Intel processors, because the first ones with 512 bits lowered their clock for them. A
    value of NUMBA_CPU_FEATURES that the user has set is kept.
    """
    if numba.config.CPU_FEATURES is None and has_instructions("avx512f"):
        numba.config.CPU_FEATURES = f"{llvm.get_host_cpu_features().flatten()},-prefer-256-bit"


def has_instructions(feature: str) -> bool:
    """Whether kernels are compiled for an instruction set extension, by LLVM's name: "avx512f", "avx2", "fma" ...

    That depends on the processor, unless the user has set NUMBA_CPU_FEATURES or NUMBA_ENABLE_AVX.
    """
    if numba.config.CPU_FEATURES is not None:
        return f"+{feature}" in numba.config.CPU_FEATURES.split(",")
    has_it = llvm.get_host_cpu_features().get(feature, False)
    return bool(has_it and (numba.config.ENABLE_AVX or not feature.startswith("avx")))


def inline(fn: Function) -> Function:
    """Decorator: compile a function into its callers, since LLVM does not vectorise loops that contain calls."""
    result: Function = jit(fn, fn.__name__, forceinline=True)
    return result


def noinline(fn: Function) -> Function:
    """Decorator: compile a long function that kernels call only once, not into each of its callers."""
    result: Function = jit(fn, fn.__name__)
    return result


def by_type(fn: Callable[..., Any], float32: Callable[..., Any], float64: Callable[..., Any]) -> None:
    """Make fn(x) in compiled code call `float32(x)` if x is a float32 or an array of them, otherwise `float64(x)`."""

    def choose(x: Any) -> Callable[..., Any]:
        is_float32 = getattr(x, "dtype", x) == numba.types.float32
        return (lambda x: float32(x)) if is_float32 else (lambda x: float64(x))

    choose.__annotations__.clear()  # Numba requires the signature of the lambdas
    overload(fn, jit_options={"forceinline": True})(choose)


def jit(fn: Callable[..., Any], name: str, **options: bool) -> Any:
    """fn compiled for each new combination of argument types at the first call, and cached on disk as `name`."""
    copy = types.FunctionType(fn.__code__, fn.__globals__, fn.__name__)
    copy.__qualname__, copy.__module__, copy.__doc__ = name, fn.__module__, fn.__doc__
    options["no_cfunc_wrapper"] = True  # C code never calls it, and the wrapper takes time to compile
    dispatcher = numba.njit(nogil=True, error_model="numpy", **options)(copy)
    with contextlib.suppress(RuntimeError):  # no writable folder for the cache: every process compiles
        dispatcher._cache = Cache(copy)
    return dispatcher


this_thread = threading.local()


class NotCached(Exception):
    """Inside `cached_only`: a function would have to be compiled."""


class Cache(FunctionCache):  # type: ignore[misc]
    """Numba's cache on disk, invalidated by a change in any file of this package, and without errors.

    Numba itself looks only at the file of the function, but kernels call functions of other files. The code in a file
    is that of one version of Numba and LLVM; a file has an entry for each processor. It is written under another name
    and then renamed, so that none is ever half written. After a failure to read or write (a damaged file, a full disk)
    the function is compiled.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        super().__init__(fn)
        # Versions are in the name: in the stamp, two that are used in turn would each time replace the other's files.
        name = f"{self._impl.filename_base}-numba-{numba.__version__}-llvmlite-{llvmlite.__version__}"
        stamp = self._impl.locator.get_source_stamp(), digest(Path(__file__).parent)
        self._cache_file = IndexDataCacheFile(self._cache_path, name, stamp)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Code compiled in an earlier run, or None if there is none that can be read."""
        require_threads()  # the code may refer to functions of the threading layer
        code = None
        try:
            # As Numba's own load_overload, which first imports all that it can compile: 0.14 s for nothing.
            rtsys.initialize(target_context)  # but the code may refer to functions of the runtime
            with self._guard_against_spurious_io_errors():
                code = self._load_overload(sig, target_context)
        except Exception:  # damaged: make room for what will be compiled
            with contextlib.suppress(Exception):
                self.flush()
        if code is None and getattr(this_thread, "cached_only", False):
            raise NotCached
        return code

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write compiled code for later runs, if possible."""
        try:
            super().save_overload(sig, data)
        except Exception:
            self.disable()


@contextlib.contextmanager
def cached_only() -> Iterator[None]:
    """In a `with`: a call of a function that is not in the cache raises NotCached, and this thread compiles nothing."""
    this_thread.cached_only = True
    try:
        yield
    finally:
        this_thread.cached_only = False


def cache_folder(dispatcher: Any) -> Path | None:
    """The folder for the cache of a function, which other processes share; None where there is none."""
    return Path(dispatcher._cache.cache_path) if isinstance(dispatcher._cache, Cache) else None


@functools.cache
def digest(folder: Path) -> str:
    """One hash of every source file in a folder."""
    return hashlib.sha256(sources(folder)).hexdigest()


@functools.cache
def require_threads() -> None:
    """Start Numba's threads; BackendUnavailable where it has none, or where NUMBA_DISABLE_JIT turns it off."""
    if numba.config.DISABLE_JIT:
        raise BackendUnavailable("NUMBA_DISABLE_JIT is set, so kernels would not be compiled: unset it")
    try:
        numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    except Exception as error:  # no threading layer, or NUMBA_THREADING_LAYER names one that is not installed
        raise BackendUnavailable(f"numba cannot start its threads: {' '.join(str(error).split())}") from error


def set_num_threads(n: int) -> None:
    """Run kernels on n threads, or on all that Numba has if n is larger."""
    numba.set_num_threads(min(n, numba.config.NUMBA_NUM_THREADS))
