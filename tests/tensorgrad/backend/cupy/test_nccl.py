"""Several GPUs without one: processes are threads, and NCCL a stand-in that adds up what lies at addresses."""

import ctypes
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from fake_cupy import FakeCupy, FakeDevice
from fake_memory import FakeStream, MemoryMisused, touch

import tensorgrad as tg
from tensorgrad.backend.cupy import nccl
from tensorgrad.backend.cupy.nccl import NcclGroup
from tensorgrad.backend.cupy.transfer import Transfer
from tensorgrad.backend.runtime import BackendUnavailable
from tensorgrad.distributed import Communicator, GradientReducer
from tests.processes import HANG_S

KEY = bytes(range(192, 256)) + bytes(range(64))


class Meeting:
    """A barrier at which threads exchange values."""

    def __init__(self, size: int) -> None:
        self.barrier, self.left = threading.Barrier(size, timeout=HANG_S), [None] * size

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.left[rank] = value
        self.barrier.wait()
        everything = list(self.left)
        self.barrier.wait()
        return everything


class Thread(Communicator):
    """A communicator between threads in place of processes."""

    def __init__(self, rank: int, meeting: Meeting) -> None:
        self.rank, self.size, self.meeting = rank, len(meeting.left), meeting
        self.by_host: list[str] = []

    def all_reduce(self, array: Any) -> Any:
        self.by_host.append("all_reduce")
        array[...] = sum(self.meeting.exchange(self.rank, array.copy()))
        return super().all_reduce(array)

    def broadcast(self, array: Any, root: int = 0) -> None:
        self.by_host.append("broadcast")
        array[...] = self.meeting.exchange(self.rank, array.copy())[root]

    def gather(self, values: Any) -> Any:
        return np.array(self.meeting.exchange(self.rank, values), np.float64)


class FakeNccl(ModuleType):
    """`cupy.cuda.nccl` of CuPy 14 between threads."""

    available = True
    NCCL_SUM, NCCL_FLOAT16, NCCL_FLOAT32, NCCL_FLOAT64, NCCL_BFLOAT16 = 0, 6, 7, 8, 9

    def __init__(self, meeting: Meeting) -> None:
        super().__init__("cupy.cuda.nccl")
        self.meeting = meeting

    def get_unique_id(self) -> bytes:
        return KEY

    def NcclCommunicator(self, size: int, key: bytes, rank: int) -> Any:
        assert isinstance(key, bytes)
        assert key == KEY
        return FakeNcclCommunicator(rank, self.meeting)


class FakeNcclCommunicator:
    def __init__(self, rank: int, meeting: Meeting) -> None:
        self.rank, self.meeting, self.streams = rank, meeting, []  # type: ignore[var-annotated]

    def allReduce(self, source: int, target: int, n: int, kind: int, op: int, stream: int) -> None:
        assert op == FakeNccl.NCCL_SUM
        self.streams.append(stream)
        touch([source], [target], FakeStream.by_ptr[stream])
        at(target, n, kind)[...] = sum(self.meeting.exchange(self.rank, at(source, n, kind).copy()))

    def broadcast(self, source: int, target: int, n: int, kind: int, root: int, stream: int) -> None:
        self.streams.append(stream)
        touch([source], [target], FakeStream.by_ptr[stream])
        at(target, n, kind)[...] = self.meeting.exchange(self.rank, at(source, n, kind).copy())[root]


def at(address: int, n: int, kind: int) -> Any:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = np.dtype({6: np.float16, 7: np.float32, 8: np.float64, 9: ml_dtypes.bfloat16}[kind])
    return np.frombuffer((ctypes.c_char * (n * dtype.itemsize)).from_address(address), dtype)


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> FakeCupy:
    module = FakeCupy(n_gpus=2)
    monkeypatch.setitem(nccl.importlib.sys.modules, "cupy.cuda.nccl", FakeNccl(Meeting(2)))  # type: ignore[attr-defined]
    for name in nccl.LOCAL_RANK:
        monkeypatch.delenv(name, raising=False)
    return module


def in_two_processes(work: Callable[[Thread], Any]) -> list[Any]:
    """The results of both; an exception of one is raised here."""
    meeting, results, errors = Meeting(2), [None, None], []

    def run(rank: int) -> None:
        try:
            results[rank] = work(Thread(rank, meeting))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_gpu_arrays_use_nccl_and_host_arrays_use_mpi(cupy: FakeCupy, dtype: str) -> None:
    def work(thread: Thread) -> Any:
        group = NcclGroup(cupy, thread)
        k = Transfer()
        k.xp, k.array_type = cupy, cupy.ndarray
        x, y, on_host = cupy.asarray([1 + thread.rank, 10], dtype), cupy.asarray([thread.rank], dtype), np.ones(2)
        group.all_reduce(x).wait()
        group.broadcast(y, root=1)
        loss = cupy.asarray(0.5 + thread.rank, dtype)
        total = k.sum_over(group, loss)
        assert (total.shape, float(total), float(loss)) == ((), 2.0, 0.5 + thread.rank)
        by_host = len(thread.by_host)
        group.all_reduce(on_host).wait()
        group.broadcast(on_host)
        assert len(thread.by_host) == by_host + 2
        assert group.comm.streams == [group.stream.ptr, FakeStream.null.ptr, group.stream.ptr]
        assert (group.rank, group.size, group.gather([thread.rank]).tolist()) == (thread.rank, 2, [[0], [1]])
        return x.get().tolist(), y.get().tolist(), on_host.tolist()

    assert in_two_processes(work) == [([3, 20], [1], [2, 2])] * 2


def test_a_sum_that_is_not_waited_for_is_found(cupy: FakeCupy) -> None:
    def work(thread: Thread) -> None:
        group, x = NcclGroup(cupy, thread), cupy.ones(3)
        done = group.all_reduce(x)
        with pytest.raises(MemoryMisused, match="uses an array that another one is still writing"):
            x + 1
        done.wait()
        assert (x + 1).get().tolist() == [3] * 3

    in_two_processes(work)


def test_sums_are_ordered_with_the_work_before_and_after(cupy: FakeCupy) -> None:
    def work(thread: Thread) -> None:
        group, compute = NcclGroup(cupy, thread), cupy.cuda.get_current_stream()
        exchange = group.all_reduce(cupy.ones(3, np.float32))
        assert [event.stream for event in group.stream.waited_for] == [compute]
        assert exchange.done not in compute.waited_for
        exchange.wait()
        assert exchange.done in compute.waited_for and exchange.done.stream is group.stream

    in_two_processes(work)


def test_every_process_uses_the_gpu_of_its_local_rank(
    cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    used: list[int] = []
    monkeypatch.setattr(FakeDevice, "use", lambda device: used.append(device.id))
    in_two_processes(lambda thread: NcclGroup(cupy, thread))
    assert sorted(used) == [0, 1]
    monkeypatch.setenv("SLURM_LOCALID", "1")
    in_two_processes(lambda thread: NcclGroup(cupy, thread))
    assert used[2:] == [1, 1]


def test_errors_say_what_is_missing(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    cupy.n_gpus = 1
    with pytest.raises(
        BackendUnavailable, match="process 1 is number 2 of its machine, which has 1 GPUs: start at most"
    ):
        in_two_processes(lambda thread: NcclGroup(cupy, thread))
    monkeypatch.setattr(FakeNccl, "available", False)
    with pytest.raises(
        BackendUnavailable, match="several GPUs need NCCL, which CuPy does not find: pip install nvidia-nccl"
    ):
        NcclGroup(cupy, Thread(0, Meeting(1)))


def test_gradients_equal_those_of_the_whole_batch(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With buckets of a few bytes, summed during backward."""
    monkeypatch.setattr(gpu.xp, "n_gpus", 2)
    monkeypatch.setitem(nccl.importlib.sys.modules, "cupy.cuda.nccl", FakeNccl(Meeting(2)))  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((4, 6)), [rng.standard_normal((6, 6)) for _ in range(3)]

    def gradients(rows: slice, group: Any) -> Any:
        parameters = [tg.Tensor(gpu.asarray(w), requires_grad=True) for w in weights]
        reducer = GradientReducer(parameters, group, bucket_bytes=300)
        y = tg.Tensor(gpu.asarray(x[rows]))
        for p in parameters:
            y = tg.gelu(tg.linear(y, p))
        with reducer.overlap():
            y.sum().backward()
        reducer.wait()
        return [p.grad.get() for p in parameters if p.grad is not None]

    whole = gradients(slice(None), Communicator())
    halves = in_two_processes(lambda t: gradients(slice(2 * t.rank, 2 * t.rank + 2), gpu.communicator(t)))
    for first, second, wanted in zip(*halves, whole, strict=True):
        np.testing.assert_array_equal(first, second)
        np.testing.assert_allclose(first, wanted, rtol=0, atol=1e-12)


def test_a_group_of_one_needs_no_nccl(gpu: Any) -> None:
    alone = Communicator()
    assert gpu.communicator(alone) is alone
    assert tg.backend.load("numpy").communicator(alone) is alone


def test_many_numbers_are_copied_at_once(gpu: Any) -> None:
    assert isinstance(gpu, Transfer)
    before = gpu.xp.copied_to_host
    values = [gpu.xp.ones((), np.float32), 2.5, gpu.xp.zeros((), np.float64), gpu.xp.ones((1,), np.float32)]
    assert gpu.numbers(values) == [1.0, 2.5, 0.0, 1.0]
    assert gpu.xp.copied_to_host == before + 1
    assert tg.backend.load("numpy").sum_over(Communicator(), 2.5) == 2.5
    assert gpu.numbers([]) == [] and tg.backend.load("numpy").numbers([np.float32(0.5), 2]) == [0.5, 2.0]
