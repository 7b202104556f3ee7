"""The stand-ins for CuPy and cuBLASLt refuse what the real ones refuse, and show what would go wrong unnoticed."""

from typing import Any

import numpy as np
import pytest
from fake_cublaslt import FakeCublasLt
from fake_cupy import FakeArray, FakeCupy, made
from fake_memory import FakeCudaError, FakeMemoryPool, FakeStream, MemoryMisused, allocate, allocators, touch

from tensorgrad.backend.cupy.cublaslt import CublasLtError, Matrix, Product
from tensorgrad.random import Stream, default_generator

NOT_RECORDED = "operation not permitted when stream is capturing"


@pytest.fixture
def xp() -> Any:
    cupy = FakeCupy()
    cupy.cuda.set_allocator(None)
    return cupy


@pytest.mark.parametrize(
    "use",
    [
        lambda xp, x: xp.asarray(np.ones(2)),
        lambda xp, x: xp.array([1.0, 2.0]),
        lambda xp, x: x.set(np.ones(4)),
        lambda xp, x: x[np.array([0, 1])],
        lambda xp, x: x[x > 1],  # how many there are is counted on the GPU
        lambda xp, x: xp.concatenate([x] * 9),  # the table of their addresses is copied there
        lambda xp, x: xp.stack([x] * 9),
        lambda xp, x: x.sum().item(),
        lambda xp, x: xp.asnumpy(x),
        lambda xp, x: FakeStream.current.synchronize(),
    ],
)
def test_a_graph_records_no_copy_between_host_and_gpu(xp: Any, use: Any) -> None:
    x = xp.ones(4)
    stream = FakeStream()
    with stream:
        stream.begin_capture()
        assert xp.concatenate([x] * 8).shape == (32,)
        with pytest.raises(FakeCudaError, match=NOT_RECORDED):
            use(xp, x)
        stream.end_capture()


# --- memory that is given out again ---------------------------------------------------------------


def test_freed_memory_is_given_out_again_and_holds_nan(xp: Any) -> None:
    x = xp.ones(100, np.float32)
    at, part = x.data.ptr, x[10:20]
    del x
    assert part.get().tolist() == [1] * 10  # a view keeps it
    del part
    y = xp.empty(90, np.float32)  # of the same number of granules
    assert y.data.ptr == at and np.isnan(y.get()).all()
    with FakeStream():
        assert xp.empty(90, np.float32).data.ptr != at


def test_freed_memory_must_not_be_used_by_its_address(xp: Any) -> None:
    at = xp.ones(4).data.ptr
    with pytest.raises(MemoryMisused, match="512 bytes of memory are used after they were freed"):
        touch(writes=[at])


def test_memory_that_a_graph_does_not_own_is_overwritten_before_it_is_replayed(xp: Any) -> None:
    """As if a step were recorded without a pool of its own."""
    x, stream = xp.ones(4), FakeStream()
    with stream:
        y = xp.zeros(4)
        for owned in (True, False):
            pool = FakeMemoryPool() if owned else None
            stream.begin_capture()
            allocators.append(pool.malloc if pool else allocators[-1])
            scratch = x + 1
            allocators.pop()
            graph = stream.end_capture()
            at = scratch.data.ptr
            del scratch
            others = xp.full(4, 7.0)
            assert (others.data.ptr == at) is not owned
            graph.launch()
            assert (others.get() == 7).all() is np.bool_(owned)
            del others
        assert y.get().tolist() == [0] * 4


def test_a_dropped_pool_keeps_its_memory(xp: Any) -> None:
    free = xp.cuda.runtime.memGetInfo()[0]
    pool = xp.cuda.MemoryPool()
    allocators.append(pool.malloc)
    made(np.ones, 1000)
    allocators.pop()
    assert (pool.used_bytes(), pool.total_bytes()) == (0, 8192)
    del pool
    assert xp.cuda.runtime.memGetInfo()[0] == free - 8192


# --- streams that do not wait ---------------------------------------------------------------------


def test_what_one_stream_writes_another_must_wait_for(xp: Any) -> None:
    writer, reader = FakeStream(non_blocking=True), FakeStream(non_blocking=True)
    with writer:
        x = xp.ones(4)
    with reader:
        with pytest.raises(MemoryMisused, match="uses an array that another one is still writing"):
            x + 1
        reader.wait_event(writer.record())
        y = x + 1
    with writer:
        with pytest.raises(MemoryMisused, match="writes to memory that another one is still reading"):
            x[...] = 2
        reader.synchronize()  # the host waits, and then asks for the work
        x[...] = 2
    assert isinstance(y, FakeArray)


def test_memory_is_given_out_while_another_stream_reads_what_was_in_it(xp: Any) -> None:
    """A pool orders memory by the stream that allocated it, and knows nothing of others that read it."""
    other = FakeStream(non_blocking=True)
    x = xp.ones(4)
    with other:
        other.wait_event(FakeStream.null.record())
        y = x + 1
    del x
    with pytest.raises(MemoryMisused, match="still reading"):
        xp.zeros(4)
    assert y.shape == (4,)


def test_the_default_stream_and_blocking_ones_wait_for_each_other(xp: Any) -> None:
    with FakeStream():
        x = xp.ones(4)
    x += 1
    with FakeStream():
        assert (x + 1).get().tolist() == [3] * 4


@pytest.mark.parametrize("forgotten", ["the batch's copy", "the caller", "the graph"])
def test_no_wait_of_a_training_step_can_be_left_out(gpu: Any, monkeypatch: pytest.MonkeyPatch, forgotten: str) -> None:
    caller, wait = FakeStream(non_blocking=True), FakeStream.wait_event
    streams = {"the batch's copy": gpu.copy_stream, "the caller": caller, "the graph": gpu.graph_stream}

    def wait_event(stream: FakeStream, event: Any) -> None:
        if event.stream is not streams[forgotten]:
            wait(stream, event)

    def draws(n: int) -> int:
        return default_generator.next_step(Stream.DROPOUT, n)

    monkeypatch.setattr(FakeStream, "wait_event", wait_event)
    graph = gpu.record(lambda x: (x * 2,), draws)
    with caller, pytest.raises(MemoryMisused):
        for i in range(5):
            (y,) = graph(*gpu.stage(np.full(3, float(i))))
            y + 1


# --- cuBLASLt -------------------------------------------------------------------------------------


def test_cublaslt_refuses_what_its_documentation_does_not_allow() -> None:
    def matrix(rows: int, cols: int, **more: Any) -> Matrix:
        return Matrix("float16", rows, cols, more.pop("ld", rows), **more)

    memory = [allocate(4096).view(np.uint8) for _ in range(4)]
    a, b, d, space = (x.ctypes.data for x in memory)
    good = Product(matrix(8, 16), matrix(16, 8), matrix(8, 8), False, False, "float32")
    library = FakeCublasLt()
    library.multiply(good, a, b, d, 0, 0.0, space, 0)
    assert not library.unaligned
    for wrong, why in (
        (good._replace(a=matrix(8, 16, ld=7)), "layout of a"),
        (good._replace(b=matrix(16, 8, alignment=1)), "alignment of b"),
        (good._replace(d=matrix(8, 8)._replace(dtype="bfloat16")), "dtypes"),
        (good._replace(d=matrix(8, 8, batch=2)), "numbers of matrices"),
        (good._replace(epilogue="bias"), "bias"),
        (good._replace(epilogue="dgelu"), "aux"),
    ):
        with pytest.raises(CublasLtError, match=f"INVALID_VALUE for .*: the {why}"):
            library.multiply(wrong, a, b, d, 0, 0.0, space, 0)
    for addresses, why in (((a + 2, b, d, 0, 0.0, space), "alignment of a"), ((a, b, d, 0, 0.0, 0), "workspace")):
        with pytest.raises(CublasLtError, match=f"the {why}"):
            library.multiply(good, *addresses, 0)  # type: ignore[arg-type]
    matrices = {"a": matrix(8, 12), "d": matrix(12, 8)}  # of d, whose columns are 12 numbers from each other
    with pytest.raises(CublasLtError, match="the leading dimension of the aux"):
        library.multiply(good._replace(**matrices, epilogue="gelu"), a, b, d, 0, 0.0, space, 0, a)
    for slow in (good._replace(a=matrix(8, 16, ld=9)), good._replace(d=matrix(7, 8), a=matrix(7, 16))):
        library.multiply(slow, a, b, d, 0, 0.0, space, 0)
        assert library.unaligned.pop() is slow
