"""A stand-in for CuPy made of NumPy, as strict as CuPy, to run the library without a GPU.

Of `cupy.cuda` it has what this project uses. fake_memory.py finds memory that is used after it was freed, and streams
that do not wait for each other.
"""

import contextlib
import operator
import types
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
from fake_memory import (
    FREED,
    FakeCudaError,
    FakeEvent,
    FakeMemoryPool,
    FakeStream,
    Lease,
    allocate,
    allocators,
    read_on_host,
    refuse_recorded,
    touch,
    unowned,
)

MAX_CONCATENATED = 8  # arrays; for more, CuPy 14.2 copies their addresses to the GPU


class FakeArray(np.ndarray):
    """As strict as CuPy's: it cannot be mixed with NumPy arrays, and results are never NumPy arrays or scalars."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = (), **options: Any) -> Any:
        call = getattr(ufunc, method)
        if out:
            do(call, *inputs, writes=out, out=out, **options)
            return out[0]
        return made(call, *inputs, **options)

    def __getitem__(self, key: Any) -> Any:
        return made(operator.getitem, self, index(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        do(operator.setitem, self, index(key), value, writes=(self,))

    def astype(
        self, dtype: Any, order: Any = "K", casting: Any = "unsafe", subok: bool = True, copy: bool = True
    ) -> Any:
        """Like NumPy."""
        return self if not copy and self.dtype == dtype else made(np.ndarray.astype, self, dtype, order, casting)

    def copy(self, order: Any = "C") -> Any:
        """Like NumPy."""
        return made(np.ndarray.copy, self, order)

    def reshape(self, *shape: Any, order: Any = "C") -> Any:
        """Like NumPy: a view if possible, else a copy."""
        return made(np.ndarray.reshape, self, *shape, order=order)

    def fill(self, value: Any) -> None:
        """Like NumPy."""
        do(np.ndarray.fill, self, value, writes=(self,))

    def item(self, *args: Any) -> Any:
        """Waits for the GPU."""
        waits(self)
        return super().item(*args)

    def tolist(self) -> Any:
        """Waits for the GPU."""
        waits(self)
        return plain(self).tolist()

    def __bool__(self) -> bool:
        waits(self)
        return bool(plain(self))

    def __float__(self) -> float:
        waits(self)
        return float(plain(self))

    def __int__(self) -> int:
        waits(self)
        return int(plain(self))

    @property
    def base(self) -> Any:  # type: ignore[override]
        """The array that this is a view of; None for one with memory of its own, as in CuPy."""
        base = super().base
        return None if isinstance(base, Lease) else base

    @property
    def data(self) -> Any:  # type: ignore[override]
        """The memory: an object with `ptr`, as in CuPy."""
        return types.SimpleNamespace(ptr=self.__array_interface__["data"][0])

    def get(self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True) -> Any:
        """A copy on the host; without `blocking`, what it is copied to is overwritten until the host waits for it."""
        if not blocking:
            copy_later(self, out, stream)
            return out
        waits(self)
        return np.array(self.view(np.ndarray)) if out is None else np.copyto(out, self.view(np.ndarray))

    def set(self, x: Any, stream: Any = None) -> None:
        """Copied from the host."""
        assert x.shape == self.shape
        assert x.dtype == self.dtype
        refuse_recorded(stream)
        touch(writes=[self], stream=stream)
        self.view(np.ndarray)[...] = x


def plain(x: Any) -> Any:
    """Convert to a NumPy array. Raises where CuPy would."""
    if isinstance(x, list | tuple):
        return type(x)(plain(part) for part in x)
    if isinstance(x, FakeArray):
        return x.view(np.ndarray)
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    return x


def loose(x: Any) -> Any:
    """The same operands by the addresses of their memory, which may be freed before a graph uses it."""
    if isinstance(x, list | tuple):
        return type(x)(loose(part) for part in x)
    return unowned(x)


def arrays_in(x: Any) -> list[FakeArray]:
    """The arrays among operands."""
    if isinstance(x, list | tuple):
        return [array for part in x for array in arrays_in(part)]
    return [x] if isinstance(x, FakeArray) else []


def index(key: Any) -> Any:
    """An index as CuPy takes it: with arrays of NumPy, which it copies to the GPU."""
    if isinstance(key, tuple):
        return tuple(index(part) for part in key)
    if isinstance(key, np.ndarray) and not isinstance(key, FakeArray):
        refuse_recorded()
        return fake(key)
    if isinstance(key, FakeArray) and key.dtype == bool:
        waits(key)  # for the number of elements
    return key


def fake(x: Any) -> Any:
    """The same as CuPy's arrays: a view of memory on the GPU, or a copy there."""
    if isinstance(x, list | tuple):
        return type(x)(fake(part) for part in x)
    if isinstance(x, np.ndarray | np.generic):
        if is_view(x):
            return x.view(FakeArray)
        owner = empty(x.shape, x.dtype)
        owner.view(np.ndarray)[...] = x
        return owner
    return x


def is_view(x: Any) -> bool:
    """Whether the memory of x is that of an array on the GPU."""
    while isinstance(x, np.ndarray):
        if isinstance(x, FakeArray | Lease):
            return True
        x = x.base
    return False


def empty(shape: Any, dtype: Any = float) -> FakeArray:
    """An array in memory of the current pool, which holds what was left there."""
    whole = np.empty(shape, dtype)
    return FakeArray(whole.shape, whole.dtype, allocate(whole.nbytes) if whole.size else None)


# --- recording, as a CUDA graph does: what is done to memory, and not what it came to ---------------


def run(work: Any) -> None:
    """Call a function: now or, while a graph is recorded, when it is launched."""
    graph = FakeStream.current.recording
    work() if graph is None else graph.work.append(work)


def do(work: Any, *operands: Any, writes: Any, **options: Any) -> None:
    """Call a function that writes to memory, or record it."""
    touch(arrays_in([*operands, *options.values()]), arrays_in(writes))
    convert = plain if FakeStream.current.recording is None else lambda x: loose(plain(x))
    operands, options = convert(operands), {name: convert(x) for name, x in options.items()}
    run(lambda: work(*operands, **options))


def made(compute: Any, *operands: Any, **options: Any) -> Any:
    """A new array; while a graph is recorded, its values are computed only when the graph is launched."""
    given = [array for x in (operands, *options.values()) for array in arrays_in(x)]
    operands, options = plain(operands), {name: plain(x) for name, x in options.items()}
    value = compute(*operands, **options)
    if isinstance(value, np.ndarray) and any(np.may_share_memory(value, plain(x)) for x in given):
        return value.view(FakeArray)
    result, recording = fake(value), FakeStream.current.is_capturing()
    touch(given, arrays_in(result))
    if recording and isinstance(result, FakeArray):
        at, operands, options = loose(plain(result)), loose(operands), {n: loose(x) for n, x in options.items()}
        run(lambda: np.copyto(at, compute(*operands, **options)))
    return result


def copy_later(x: FakeArray, out: Any, stream: Any) -> None:
    """Begin to copy to pinned memory of the host, which holds nothing of use until the host has waited for the copy."""
    refuse_recorded(stream)
    touch(reads=[x], stream=stream)
    assert is_pinned(out)
    assert (out.shape, out.dtype) == (x.shape, x.dtype)
    copied = np.array(x.view(np.ndarray))
    out.view(np.uint8)[...] = FREED
    (stream or FakeStream.current).copy_to_host(lambda: np.copyto(out, copied))


def alloc_pinned_memory(size: int) -> Any:
    """Memory of the host for copies that the host need not wait for."""
    memory = np.empty(size, np.uint8)
    pinned.append(weakref.ref(memory))
    return memory


pinned: list[Any] = []


def is_pinned(x: Any) -> bool:
    """Whether an array lies in such memory: to any other, CUDA copies at once."""
    pinned[:] = [found for found in pinned if found() is not None]
    return any(np.may_share_memory(x, found()) for found in pinned)


def waits(x: FakeArray) -> None:
    """The host reads numbers of the GPU, and waits for them."""
    read_on_host(x)


def without_bfloat16(x: Any) -> Any:
    """The result of an elementwise function that CuPy lacks for bfloat16: it has the next wider dtype."""
    return x.astype(np.float32) if x.dtype.name == "bfloat16" else x


class FakeFunction:
    def __init__(self, fn: Any) -> None:
        self.fn = fn

    def __call__(self, *operands: Any, **options: Any) -> Any:
        if getattr(self.fn, "__name__", "") == "at":
            return do(self.fn, operands[0], index(operands[1]), *operands[2:], writes=operands[:1], **options)
        if "out" in options:
            return do(self.fn, *operands, writes=(options["out"],), **options)
        return made(self.fn, *operands, **options)

    def __getattr__(self, name: str) -> Any:  # add.at
        return FakeFunction(getattr(self.fn, name))


class OutOfMemoryError(MemoryError):
    """`cupy.cuda.memory.OutOfMemoryError`."""


def mem_info() -> tuple[int, int]:
    """The free bytes of memory, and all."""
    return 60 * 2**30 - sum(pool.total_bytes() for pool in FakeMemoryPool.everything), 80 * 2**30


@contextlib.contextmanager
def using_allocator(allocator: Any) -> Iterator[None]:
    """`cupy.cuda.using_allocator`."""
    allocators.append(allocator)
    try:
        yield
    finally:
        allocators.pop()


class FakeDevice:
    """`cupy.cuda.Device`, of a card whose compute capability a test may change."""

    compute_capability = "90"

    def __init__(self, device: int | None = None) -> None:
        self.id = device or 0
        self.mem_info = mem_info()

    def __enter__(self) -> "FakeDevice":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def use(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


class FakeCupy(types.ModuleType):
    """NumPy's functions under CuPy's name and rules."""

    def __init__(self, n_gpus: int | Exception = 1) -> None:
        super().__init__("cupy")
        self.__version__ = "14.2.0"
        self.ndarray = FakeArray
        self.cuda = self._cuda()
        self.n_gpus = n_gpus
        self.copied_to_host = 0
        self.pool = FakeMemoryPool()

    def _cuda(self) -> Any:
        runtime = types.SimpleNamespace(
            CUDARuntimeError=FakeCudaError,
            getDeviceCount=self.count,
            getDevice=lambda: 0,
            setDevice=lambda device: None,
            driverGetVersion=lambda: 13000,
            runtimeGetVersion=lambda: 13000,
            memGetInfo=mem_info,
            getDeviceProperties=lambda device: {"name": b"Stand-in", "multiProcessorCount": 132},
            deviceSynchronize=lambda: None,
        )
        return types.SimpleNamespace(
            runtime=runtime,
            driver=types.SimpleNamespace(CUDADriverError=FakeCudaError),
            memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            Stream=FakeStream,
            Event=FakeEvent,
            Device=FakeDevice,
            MemoryPool=FakeMemoryPool,
            get_current_stream=lambda: FakeStream.current,
            get_elapsed_time=lambda start, stop: 1.0,
            set_allocator=self.set_allocator,
            using_allocator=using_allocator,
            alloc_pinned_memory=alloc_pinned_memory,
        )

    def count(self) -> int:
        if isinstance(self.n_gpus, Exception):
            raise self.n_gpus
        return self.n_gpus

    def set_allocator(self, allocator: Any = None) -> None:
        self.allocator = allocator
        allocators[:] = [self.pool.malloc if allocator is None else allocator]

    def get_default_memory_pool(self) -> FakeMemoryPool:
        return self.pool

    def is_available(self) -> bool:
        return isinstance(self.n_gpus, int) and self.n_gpus > 0

    def asarray(self, x: Any, dtype: Any = None) -> Any:
        if isinstance(x, FakeArray):
            return x if x.dtype == (dtype or x.dtype) else x.astype(dtype)
        return self.array(x, dtype)

    def array(self, x: Any, dtype: Any = None) -> Any:
        if isinstance(x, FakeArray):
            return made(np.array, x, dtype)
        refuse_recorded()  # what is copied from the host would be copied again whenever the graph is launched
        copied = fake(np.array(x, dtype))
        touch(writes=[copied])
        return copied

    def empty(self, shape: Any, dtype: Any = float) -> Any:
        return empty(shape, dtype)

    def empty_like(self, x: Any, dtype: Any = None, shape: Any = None) -> Any:
        return empty(x.shape if shape is None else shape, dtype or x.dtype)

    def concatenate(self, arrays: Any, axis: int = 0) -> Any:
        """Like NumPy; CuPy copies a table of the addresses to the GPU where there are many."""
        if len(arrays) > MAX_CONCATENATED:
            refuse_recorded()
        return made(np.concatenate, arrays, axis)

    def stack(self, arrays: Any, axis: int = 0) -> Any:
        """Like NumPy; by `concatenate`."""
        if len(arrays) > MAX_CONCATENATED:
            refuse_recorded()
        return made(np.stack, arrays, axis)

    def tensordot(self, a: Any, b: Any, axes: Any = 2) -> Any:
        """Like NumPy, but of an array without dimensions only where no axes are given, as an int or as tuples."""
        if 0 in (a.ndim, b.ndim) and axes not in (0, ((), ())):
            raise ValueError("An input is zero-dim while axes has dimensions")
        return FakeFunction(np.tensordot)(a, b, axes)

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        """Like NumPy, except for bfloat16."""
        return without_bfloat16(FakeFunction(np.where)(condition, a, b))

    def tril(self, x: Any, k: int = 0) -> Any:
        """Like NumPy, except for bfloat16."""
        return without_bfloat16(FakeFunction(np.tril)(x, k))

    def triu(self, x: Any, k: int = 0) -> Any:
        """Like NumPy, except for bfloat16."""
        return without_bfloat16(FakeFunction(np.triu)(x, k))

    def round(self, x: Any) -> Any:
        """Like NumPy, except for bfloat16."""
        return without_bfloat16(FakeFunction(np.round)(x))

    def argsort(self, x: Any, axis: int = -1, kind: Any = None) -> Any:
        """As NumPy's, where there is a sort at all."""
        if x.dtype.name == "bfloat16":
            raise NotImplementedError("Sorting arrays with dtype 'bfloat16' is not supported")
        assert kind in (None, "stable")
        return FakeFunction(np.argsort)(x, axis=axis, kind="stable")

    def asnumpy(self, x: Any) -> Any:
        assert isinstance(x, FakeArray)
        waits(x)
        self.copied_to_host += 1
        return np.array(x.view(np.ndarray))

    def __getattr__(self, name: str) -> Any:
        found = getattr(np, name)
        return FakeFunction(found) if callable(found) and not isinstance(found, type) else found
