"""A stand-in for CuPy made of NumPy, as strict as CuPy, to run the library without a GPU.

Of `cupy.cuda` it has what this project uses. Work is done at once, so streams and events only say that they were asked.
"""

import contextlib
import types
from typing import Any

import numpy as np


class FakeArray(np.ndarray):
    """As strict as CuPy's: it cannot be mixed with NumPy arrays, and results are never NumPy arrays or scalars."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = (), **options: Any) -> Any:
        operands, call = [plain(x) for x in inputs], getattr(ufunc, method)
        if out:
            options["out"] = tuple(plain(x) for x in out)
            do(lambda: call(*operands, **options))
            return out[0]
        return made(lambda: call(*operands, **options))

    def __getitem__(self, key: Any) -> Any:
        key, x = plain(index(key)), plain(self)
        return made(lambda: x[key])

    def __setitem__(self, key: Any, value: Any) -> None:
        key, x, value = plain(index(key)), plain(self), plain(value)
        do(lambda: x.__setitem__(key, value))

    def astype(
        self, dtype: Any, order: Any = "K", casting: Any = "unsafe", subok: bool = True, copy: bool = True
    ) -> Any:
        """Like NumPy."""
        return made(lambda: plain(self).astype(dtype, order, casting, copy=copy))

    def copy(self, order: Any = "C") -> Any:
        """Like NumPy."""
        return made(lambda: plain(self).copy(order))

    def reshape(self, *shape: Any, order: Any = "C") -> Any:
        """Like NumPy: a view if possible, else a copy."""
        x = plain(self)
        if np.shares_memory(x, x.reshape(*shape, order=order)) or not x.size:
            return x.reshape(*shape, order=order).view(FakeArray)
        return made(lambda: x.reshape(*shape, order=order).copy())

    def fill(self, value: Any) -> None:
        """Like NumPy."""
        do(lambda: plain(self).fill(value))

    def item(self, *args: Any) -> Any:
        """Waits for the GPU."""
        waits()
        return super().item(*args)

    def tolist(self) -> Any:
        """Waits for the GPU."""
        waits()
        return plain(self).tolist()

    def __bool__(self) -> bool:
        waits()
        return bool(plain(self))

    def __float__(self) -> float:
        waits()
        return float(plain(self))

    def __int__(self) -> int:
        waits()
        return int(plain(self))

    @property
    def data(self) -> Any:  # type: ignore[override]
        """The memory: an object with `ptr`, as in CuPy."""
        return types.SimpleNamespace(ptr=self.__array_interface__["data"][0])

    def get(self, stream: Any = None, out: Any = None) -> Any:
        """A copy on the host."""
        waits()
        return np.array(self.view(np.ndarray)) if out is None else np.copyto(out, self.view(np.ndarray))

    def set(self, x: Any, stream: Any = None) -> None:
        """Copied from the host."""
        assert x.shape == self.shape
        assert x.dtype == self.dtype
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


def index(key: Any) -> Any:
    """An index as CuPy takes it: with arrays of NumPy, which it copies to the GPU."""
    if isinstance(key, tuple):
        return tuple(index(part) for part in key)
    if isinstance(key, np.ndarray) and not isinstance(key, FakeArray):
        refuse_recorded()
        return fake(key)
    return key


def fake(x: Any) -> Any:
    """The same as CuPy's arrays; one that owns its memory still does."""
    if isinstance(x, list | tuple):
        return type(x)(fake(part) for part in x)
    if isinstance(x, np.ndarray | np.generic):
        if x.base is not None:
            return x.view(FakeArray)
        owner = np.empty_like(x, shape=x.shape).view(FakeArray) if x.dtype.kind == "V" else FakeArray(x.shape, x.dtype)
        owner.view(np.ndarray)[...] = x
        return owner
    return x


# --- recording, as a CUDA graph does: what is done to memory, and not what it came to ---------------


class FakeGraph:
    """`cupy.cuda.graph.Graph`: repeats the recorded operations on the same memory."""

    def __init__(self) -> None:
        self.work: list[Any] = []

    def launch(self, stream: Any = None) -> None:
        """Launch the graph."""
        for work in self.work:
            work()


def recorder() -> FakeGraph | None:
    """The graph that the current stream is recorded to, or None."""
    return FakeStream.current.recording


def do(work: Any) -> None:
    """Run a function that writes to memory: now or, while a graph is recorded, when it is launched."""
    graph = recorder()
    work() if graph is None else graph.work.append(work)


def made(compute: Any) -> Any:
    """A new array; while a graph is recorded, its values are computed only when the graph is launched."""
    value = compute()
    result, graph = fake(value), recorder()
    if graph is not None and isinstance(value, np.ndarray | np.generic) and value.base is None:
        graph.work.append(lambda: np.copyto(plain(result), compute()))
    return result


def waits() -> None:
    """The host reads numbers of the GPU, and waits for them."""
    refuse_recorded()


def refuse_recorded() -> None:
    """Raise the error of CUDA for an operation that cannot be recorded."""
    if recorder() is not None:
        raise FakeCudaError("cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing")


def without_bfloat16(x: Any) -> Any:
    """The result of an elementwise function that CuPy lacks for bfloat16: it has the next wider dtype."""
    return x.astype(np.float32) if x.dtype.name == "bfloat16" else x


class FakeFunction:
    def __init__(self, fn: Any) -> None:
        self.fn = fn

    def __call__(self, *operands: Any, **options: Any) -> Any:
        options = {name: plain(option) for name, option in options.items()}
        in_place = getattr(self.fn, "__name__", "") == "at"
        operands = plain((operands[0], index(operands[1]), *operands[2:]) if in_place else operands)
        if "out" in options or in_place:
            return do(lambda: self.fn(*operands, **options))
        return made(lambda: self.fn(*operands, **options))

    def __getattr__(self, name: str) -> Any:  # add.at
        return FakeFunction(getattr(self.fn, name))


class FakeCudaError(RuntimeError):
    """CuPy's errors of the runtime and of the driver."""


class OutOfMemoryError(MemoryError):
    """`cupy.cuda.memory.OutOfMemoryError`."""


class FakeStream:
    """`cupy.cuda.Stream`: the current one inside its `with`."""

    null: "FakeStream"
    current: "FakeStream"

    recording: FakeGraph | None = None

    def __init__(self, null: bool = False, non_blocking: bool = False, ptds: bool = False) -> None:
        self.ptr = 0 if null else id(self)
        self.synchronized = 0
        self.waited_for: list[FakeEvent] = []
        self._before: list[FakeStream] = []

    def __enter__(self) -> "FakeStream":
        self._before.append(FakeStream.current)
        FakeStream.current = self
        return self

    def __exit__(self, *error: object) -> None:
        FakeStream.current = self._before.pop()

    def use(self) -> "FakeStream":
        FakeStream.current = self
        return self

    def synchronize(self) -> None:
        self.synchronized += 1

    def begin_capture(self, mode: Any = None) -> None:
        assert self is not FakeStream.null, "the default stream cannot be captured"
        self.recording = FakeGraph()

    def end_capture(self) -> FakeGraph:
        graph, self.recording = self.recording, None
        assert graph is not None
        return graph

    def is_capturing(self) -> bool:
        return self.recording is not None

    def record(self, event: "FakeEvent | None" = None) -> "FakeEvent":
        event = FakeEvent() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: "FakeEvent") -> None:
        self.waited_for.append(event)


FakeStream.null = FakeStream.current = FakeStream(null=True)


class FakeEvent:
    """`cupy.cuda.Event`."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self.stream: FakeStream | None = None
        self.synchronized = 0

    def record(self, stream: FakeStream | None = None) -> None:
        self.stream = FakeStream.current if stream is None else stream

    def synchronize(self) -> None:
        self.synchronized += 1


class FakeMemoryPool:
    """`cupy.cuda.MemoryPool`: counts nothing."""

    def used_bytes(self) -> int:
        return 0

    def total_bytes(self) -> int:
        return 0

    def free_all_blocks(self) -> None:
        pass

    def malloc(self, size: int) -> Any:
        return types.SimpleNamespace(ptr=np.empty(size, np.uint8).ctypes.data)


class FakeDevice:
    """`cupy.cuda.Device`, of a card whose compute capability a test may change."""

    compute_capability = "90"

    def __init__(self, device: int | None = None) -> None:
        self.id = device or 0
        self.mem_info = (60 * 2**30, 80 * 2**30)  # free, in all

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
            memGetInfo=lambda: FakeDevice().mem_info,
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
            using_allocator=lambda allocator=None: contextlib.nullcontext(),
            alloc_pinned_memory=lambda size: np.empty(size, np.uint8),
        )

    def count(self) -> int:
        if isinstance(self.n_gpus, Exception):
            raise self.n_gpus
        return self.n_gpus

    def set_allocator(self, allocator: Any = None) -> None:
        self.allocator = allocator

    def get_default_memory_pool(self) -> FakeMemoryPool:
        return self.pool

    def is_available(self) -> bool:
        return isinstance(self.n_gpus, int) and self.n_gpus > 0

    def asarray(self, x: Any, dtype: Any = None) -> Any:
        if isinstance(x, FakeArray):
            return x if x.dtype == (dtype or x.dtype) else x.astype(dtype)
        refuse_recorded()  # what is copied from the host would be copied again whenever the graph is launched
        return fake(np.array(x, dtype))

    def array(self, x: Any, dtype: Any = None) -> Any:
        return fake(np.array(x.view(np.ndarray) if isinstance(x, FakeArray) else x, dtype))

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
        waits()
        self.copied_to_host += 1
        return np.array(x.view(np.ndarray))

    def __getattr__(self, name: str) -> Any:
        found = getattr(np, name)
        return FakeFunction(found) if callable(found) and not isinstance(found, type) else found
