"""The memory and the streams of the stand-in for CuPy.

A pool gives freed memory out again, as CuPy's does, and overwrites it in between. What uses freed memory by its address
is an error, except in a recorded graph, which may: there it reads NaN, or the numbers of another array.

Work is done at once, in the order of the calls. On a GPU only the work of one stream is ordered, and that of two
streams where one waits for an event of the other, or the host for one of them. So every access is compared with the
last ones of other streams: one that nothing orders after them is an error, although it did no harm here.
"""

import bisect
import ctypes
import weakref
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

GRANULE = 512  # bytes; CuPy's pool gives out multiples of it
FREED = 255  # what freed memory is overwritten with: NaN in every floating dtype


class FakeCudaError(RuntimeError):
    """CuPy's errors of the runtime and of the driver."""


class MemoryMisused(AssertionError):
    """Memory was used after it was freed, or by two streams of which neither waits for the other."""


# --- streams and events ---------------------------------------------------------------------------


class Clock:
    """How much of every stream's work is certain to have been done."""

    def __init__(self) -> None:
        self.done: dict[Any, int] = {}

    def wait_for(self, other: "Clock") -> None:
        """All that the other is sure of is done, too."""
        for stream, time in list(other.done.items()):
            self.done[stream] = max(time, self.done.get(stream, 0))

    def knows(self, access: "tuple[Any, int] | None") -> bool:
        """Whether an access, (stream, time), has certainly been done."""
        return access is None or access[1] <= self.done.get(access[0], 0)


class FakeGraph:
    """`cupy.cuda.graph.Graph`: repeats the recorded operations on the same memory."""

    def __init__(self) -> None:
        self.work: list[Any] = []

    def launch(self, stream: Any = None) -> None:
        """Launch the graph."""
        with FakeStream.current if stream is None else stream:
            for work in self.work:
                work()


class FakeStream:
    """`cupy.cuda.Stream`: the current one inside its `with`."""

    null: "FakeStream"
    current: "FakeStream"
    host = Clock()
    blocking: "weakref.WeakSet[FakeStream]" = weakref.WeakSet()  # that wait for the default stream, and it for them

    by_ptr: "weakref.WeakValueDictionary[int, FakeStream]" = weakref.WeakValueDictionary()

    to_host: "list[tuple[tuple[FakeStream, int], Any]]" = []  # copies, and after which work they are done

    recording: FakeGraph | None = None

    def __init__(self, null: bool = False, non_blocking: bool = False, ptds: bool = False) -> None:
        self.ptr = 0 if null else id(self)
        self.by_ptr[self.ptr] = self
        self.clock = Clock()
        self.non_blocking = non_blocking
        self.synchronized = 0
        self.waited_for: list[FakeEvent] = []
        self._before: list[FakeStream] = []
        if not null and not non_blocking:
            self.blocking.add(self)

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
        refuse_recorded(self)
        self.synchronized += 1
        self.host_waits_for(self.clock)

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
        self.clock.wait_for(event.clock)

    def copy_to_host(self, copy: Any) -> None:
        """A copy whose result the host sees when it has waited for the work of this stream so far."""
        FakeStream.to_host.append(((self, self.clock.done[self]), copy))

    @classmethod
    def host_waits_for(cls, clock: Clock) -> None:
        """The host is sure of what another clock is sure of."""
        cls.host.wait_for(clock)
        for at, copy in cls.to_host:
            if cls.host.knows(at):
                copy()
        cls.to_host[:] = [(at, copy) for at, copy in cls.to_host if not cls.host.knows(at)]

    def next_time(self) -> int:
        """The time of the next work on this stream, after all that it waits for."""
        self.clock.wait_for(self.host)
        for other in list(self.blocking) if self is FakeStream.null else [] if self.non_blocking else [FakeStream.null]:
            self.clock.wait_for(other.clock)
        self.clock.done[self] = self.clock.done.get(self, 0) + 1
        return self.clock.done[self]


FakeStream.null = FakeStream.current = FakeStream(null=True)


class FakeEvent:
    """`cupy.cuda.Event`."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self.stream: FakeStream | None = None
        self.clock = Clock()
        self.synchronized = 0

    def record(self, stream: FakeStream | None = None) -> None:
        self.stream = FakeStream.current if stream is None else stream
        self.clock = Clock()
        self.clock.wait_for(self.stream.clock)

    def synchronize(self) -> None:
        refuse_recorded(self.stream)
        self.synchronized += 1
        FakeStream.host_waits_for(self.clock)


def refuse_recorded(stream: FakeStream | None = None) -> None:
    """Raise the error of CUDA for an operation that cannot be recorded."""
    if (stream or FakeStream.current).is_capturing():
        raise FakeCudaError("cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing")


# --- memory ---------------------------------------------------------------------------------------


class Block:
    """A piece of memory that a pool owns, and the last accesses to it as (stream, time)."""

    def __init__(self, size: int, stream: FakeStream) -> None:
        raw = np.empty(size + GRANULE, np.uint8)
        start = -raw.ctypes.data % GRANULE
        self.bytes = raw[start : start + size]
        self.address, self.size, self.stream = self.bytes.ctypes.data, size, stream
        self.bytes[:] = FREED
        self.written: tuple[Any, int] | None = None
        self.read: dict[Any, int] = {}
        self.free = True
        self.recorded = False  # by a graph, which may use it whoever owns it by then


class Lease(np.ndarray):
    """The memory of one array: it returns to its pool with the last view."""

    block: Block

    @property
    def ptr(self) -> int:
        """The address."""
        return self.block.address


class FakeMemoryPool:
    """`cupy.cuda.MemoryPool`: what a stream has freed is given out again for the same number of granules."""

    everything: "list[FakeMemoryPool]" = []  # a pool that is dropped keeps its memory: in CuPy 14.2 it does

    def __init__(self) -> None:
        self.free: dict[tuple[FakeStream, int], list[Block]] = {}
        self.blocks: dict[int, Block] = {}
        self.addresses: list[int] = []
        self.used = 0
        self.everything.append(self)

    def malloc(self, size: int) -> Lease:
        """Memory for the work of the current stream."""
        size, stream = -(-size // GRANULE) * GRANULE, FakeStream.current
        free = self.free.get((stream, size))
        block = free.pop() if free else self._new_block(size, stream)
        lease = block.bytes.view(Lease)
        lease.block, block.free = block, False
        self.used += size
        weakref.finalize(lease, self._release, block).atexit = False
        return lease

    def _new_block(self, size: int, stream: FakeStream) -> Block:
        block = Block(size, stream)
        self.blocks[block.address] = block
        bisect.insort(self.addresses, block.address)
        return block

    def _release(self, block: Block) -> None:
        block.bytes[:], block.free = FREED, True
        self.used -= block.size
        self.free.setdefault((block.stream, block.size), []).append(block)

    def block_at(self, address: int) -> Block | None:
        """The block that contains an address; None if it is not the pool's."""
        i = bisect.bisect(self.addresses, address) - 1
        block = self.blocks[self.addresses[i]] if i >= 0 else None
        return block if block is not None and address < block.address + block.size else None

    def used_bytes(self) -> int:
        return self.used

    def total_bytes(self) -> int:
        return sum(block.size for block in self.blocks.values())

    def free_all_blocks(self) -> None:
        for blocks in self.free.values():
            for block in blocks:
                del self.blocks[block.address]
                self.addresses.remove(block.address)
                graveyard.append(block)
        self.free.clear()


graveyard: list[Block] = []  # returned to the GPU, but readable: it is an error there, and NaN here
allocators: list[Any] = []  # the current one last


def allocate(size: int) -> Lease:
    """Memory by the current allocator."""
    if not allocators:
        allocators.append(FakeMemoryPool().malloc)
    lease: Lease = allocators[-1](size)
    return lease


def unowned(x: Any) -> Any:
    """The same memory by its address, which keeps nothing alive."""
    if not isinstance(x, np.ndarray) or not x.size:
        return x
    start, end = byte_bounds(x)
    memory = (ctypes.c_char * (end - start)).from_address(start)
    same = np.ndarray(x.shape, x.dtype, memory, x.ctypes.data - start, x.strides)
    same.flags.writeable = x.flags.writeable
    return same


# --- accesses -------------------------------------------------------------------------------------


def block_of(x: Any) -> Block | None:
    """The block that an array, or an address, lies in; None for one that is not on the GPU."""
    if isinstance(x, int):
        return next((found for pool in FakeMemoryPool.everything if (found := pool.block_at(x))), None)
    while isinstance(x, np.ndarray):
        if isinstance(x, Lease):
            return x.block
        x = np.ndarray.base.__get__(x)  # type: ignore[attr-defined]
    return None


def touch(reads: Any = (), writes: Any = (), stream: FakeStream | None = None) -> None:
    """Work that reads and writes arrays, or what lies at addresses: now or whenever a recorded graph is launched."""
    blocks = [[block for x in some if (block := block_of(x))] for some in (reads, writes)]
    graph = (stream or FakeStream.current).recording
    if graph is None:
        access(*blocks, stream or FakeStream.current)
        return
    for block in (*blocks[0], *blocks[1]):
        block.recorded = True
    graph.work.append(lambda: access(*blocks, FakeStream.current))


def access(reads: list[Block], writes: list[Block], stream: FakeStream) -> None:
    """Raise MemoryMisused where another stream's last access may not have been done yet."""
    now, clock = stream.next_time(), stream.clock
    for block in (*reads, *writes):
        if block.free and not block.recorded:
            raise MemoryMisused(f"{block.size} bytes of memory are used after they were freed")
        if not clock.knows(block.written):
            raise MemoryMisused("a stream uses an array that another one is still writing: it does not wait for it")
    for block in writes:
        if not all(clock.knows(read) for read in block.read.items()):
            raise MemoryMisused("a stream writes to memory that another one is still reading: it does not wait for it")
    for block in reads:
        block.read[stream] = now
    for block in writes:
        block.written, block.read = (stream, now), {}


def read_on_host(x: Any) -> None:
    """The host reads an array: it waits for the current stream."""
    refuse_recorded()
    touch(reads=[x])
    FakeStream.host_waits_for(FakeStream.current.clock)


def reset() -> None:
    """Forget all memory, at the end of a stand-in for a GPU."""
    for everything in (FakeMemoryPool.everything, graveyard, allocators, FakeStream.to_host):
        everything.clear()
