"""Process groups: a single process, gradients summed in buckets, and real processes with MPI."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorgrad import Tensor, distributed, nn
from tensorgrad.backend import BackendUnavailable
from tensorgrad.distributed import Communicator, GradientReady, GradientReducer, world

pytestmark = pytest.mark.usefixtures("numpy_backend")


@pytest.fixture(autouse=True)
def clear_the_process_group() -> Any:
    world.cache_clear()
    yield
    world.cache_clear()


class Threads(Communicator):
    """A group of threads, which exchange values in shared lists; a sum is there only after `wait`."""

    def __init__(self, rank: int, size: int, common: dict[Any, list[Any]], meeting: threading.Barrier) -> None:
        self.rank, self.size = rank, size
        self.common, self.meeting = common, meeting
        self.calls: list[Any] = []  # the sizes of the reduced arrays, in order
        self.exchanged = 0

    def _meet(self, value: Any) -> list[Any]:
        self.exchanged += 1
        self.common.setdefault(self.exchanged, [None] * self.size)[self.rank] = value
        self.meeting.wait(10)
        return self.common[self.exchanged]

    def all_reduce(self, array: Any) -> Any:
        self.calls.append(array.size)
        sums = sum(self._meet(array.copy()))
        array[...] = np.nan  # until `wait`

        class Pending:
            def wait(self) -> None:
                array[...] = sums

        return Pending()

    def gather(self, values: Sequence[float]) -> Any:
        return np.array(self._meet(list(values)), np.float64)


def in_threads(n: int, work: Any) -> list[Any]:
    """Return the results of `work(group)` in each of n threads."""
    common: dict[Any, list[Any]] = {i: [None] * n for i in range(1, 1000)}
    meeting = threading.Barrier(n)
    groups = [Threads(rank, n, common, meeting) for rank in range(n)]
    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(work, groups))


def parameters(dtype: Any = np.float64) -> list[Any]:
    shapes = [(4, 3), (5,), (), (2, 1, 3), (7,)]
    return [Tensor(np.ones(shape, dtype), requires_grad=True) for shape in shapes]


def loss_of(params: list[Any], rank: int, used: Sequence[int]) -> Any:
    """A loss whose gradient with respect to each used parameter i is (rank + 1) (i + 1)."""
    loss = None
    for i in used:
        term = params[i].sum() * float((rank + 1) * (i + 1))
        loss = term if loss is None else loss + term
    return loss


@pytest.mark.parametrize("bucket_bytes", [1, 100, 2**22])
def test_gradients_are_summed_over_the_group(bucket_bytes: int) -> None:
    def work(group: Threads) -> Any:
        params = parameters()
        reducer = GradientReducer(params, group, bucket_bytes)
        for _ in range(2):  # the second time, buckets are reused
            for p in params:
                p.grad = None
            with reducer.overlap():
                loss_of(params, group.rank, range(5)).backward()
            reducer.wait()
        return [p.grad for p in params], group.calls

    results = in_threads(3, work)
    for grads, calls in results:
        for i, grad in enumerate(grads):
            np.testing.assert_array_equal(grad, np.full(grad.shape, 6.0 * (i + 1)))
        assert calls == results[0][1]
    assert len(results[0][1]) == {1: 10, 100: 6, 2**22: 2}[bucket_bytes]


def test_a_parameter_with_a_gradient_on_some_processes_counts_as_zeros_on_the_others() -> None:
    used = [[0, 1, 2], [1, 4]]  # by rank; no process uses parameter 3

    def work(group: Threads) -> Any:
        params = parameters()
        reducer = GradientReducer(params, group, 60)
        with reducer.overlap():
            loss_of(params, group.rank, used[group.rank]).backward()
        reducer.wait()
        return [None if p.grad is None else float(p.grad.flat[0]) for p in params]

    assert in_threads(2, work) == [[1.0, 2.0 + 4.0, 3.0, None, 10.0]] * 2


def test_accumulated_gradients_are_reduced_with_the_last_backward() -> None:
    """Parameter 0 gets its gradient in the first backward only."""

    def work(group: Threads) -> Any:
        params = parameters()
        reducer = GradientReducer(params, group, 60)
        loss_of(params, group.rank, range(5)).backward()
        assert group.calls == []
        with reducer.overlap():
            loss_of(params, group.rank, range(1, 5)).backward()
        reducer.wait()
        return [float(p.grad.flat[0]) for p in params]

    assert in_threads(2, work) == [[3.0, 12.0, 18.0, 24.0, 30.0]] * 2


def test_a_bucket_is_sent_before_backward_ends() -> None:
    """The gradient of the last layer is complete first, and is sent before that of the first layer is computed."""
    seen: list[int] = []

    def work(group: Threads) -> Any:
        layers = [nn.Linear(4, 4, bias=False) for _ in range(3)]
        reducer = GradientReducer([layer.weight for layer in layers], group, 1)

        def report(leaf: Any) -> None:
            reducer._ready(leaf)
            if group.rank == 0:
                seen.append(len(group.calls))

        x = Tensor(np.ones((2, 4), np.float32))
        for layer in layers:
            x = layer(x)
        with GradientReady(report):
            x.sum().backward()
        reducer.wait()

    in_threads(2, work)
    assert seen == [1, 2, 3]


def test_half_precision_is_summed_as_float32() -> None:
    """1 + 2^-8 + 2^-8, which bfloat16 would round at every addition."""

    def work(group: Threads) -> Any:
        p = Tensor(np.ones(3, ml_dtypes.bfloat16), requires_grad=True)
        p.grad = np.full(3, 1.0 if group.rank == 0 else 2.0**-8, ml_dtypes.bfloat16)
        reducer = GradientReducer([p], group)
        reducer.wait()
        return p.grad

    for grad in in_threads(3, work):
        assert grad.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(grad, np.full(3, 1 + 2.0**-7, ml_dtypes.bfloat16))


def test_a_second_backward_before_wait_raises() -> None:
    def work(group: Threads) -> Any:
        params = parameters()
        reducer = GradientReducer(params, group, 1)
        with reducer.overlap():
            loss_of(params, 0, range(5)).backward()
        error = pytest.raises(RuntimeError, match=r"^GradientReducer: backward was called a second time; call wait\(\)")
        with error, reducer.overlap():
            loss_of(params, 0, range(5)).backward()

    in_threads(2, work)


def test_in_a_single_process_nothing_is_exchanged() -> None:
    group = world()
    assert type(group) is Communicator
    assert (group.rank, group.size) == (0, 1)
    params = parameters()
    reducer = GradientReducer(params, group)
    assert isinstance(reducer.overlap(), nullcontext)
    with reducer.overlap():
        loss_of(params, 0, range(5)).backward()
    before = [p.grad for p in params]
    reducer.wait()
    assert all(p.grad is grad for p, grad in zip(params, before, strict=True))
    array = np.arange(3.0)
    group.all_reduce(array).wait()
    group.broadcast(array)
    group.barrier()
    group.progress()
    np.testing.assert_array_equal(array, np.arange(3.0))
    np.testing.assert_array_equal(group.gather([1, 2]), [[1.0, 2.0]])
    with pytest.raises(SystemExit) as stopped:
        group.abort(3)
    assert stopped.value.code == 3


def test_mpirun_without_mpi4py_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setitem(distributed.sys.modules, "mpi4py", None)
    with pytest.raises(BackendUnavailable, match=r"^started by mpirun, but MPI cannot be used .*pip install mpi4py"):
        world()


@pytest.mark.parametrize(
    "variables",
    [
        {"PMIX_RANK": "0"},
        {"PMI_SIZE": ""},
        {"PMI_SIZE": "many"},
        {"PMI_SIZE": "1", "PMI_RANK": "0"},
        {"PMIX_RANK": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8"},
        {"SLURM_STEP_NUM_TASKS": "4"},
    ],
)
def test_variables_that_a_scheduler_leaves_behind_start_no_mpi(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(distributed.sys.modules, "mpi4py", None)
    assert world() is distributed.ALONE


@pytest.mark.parametrize(
    "variables",
    [
        {"OMPI_COMM_WORLD_SIZE": "2", "PMIX_RANK": "1"},
        {"MV2_COMM_WORLD_SIZE": "2"},
        {"PMIX_RANK": "1", "SLURM_STEP_NUM_TASKS": "2"},
        {"PMI_SIZE": "", "OMPI_COMM_WORLD_SIZE": "2"},
    ],
)
def test_every_launcher_is_recognized(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(distributed.sys.modules, "mpi4py", None)
    with pytest.raises(BackendUnavailable, match="^started by mpirun"):
        world()


def test_a_size_that_is_left_over_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class World:
        Get_rank, Get_size = staticmethod(lambda: 0), staticmethod(lambda: 1)

    mpi = SimpleNamespace(COMM_WORLD=World, Get_library_version=lambda: "MPI 9, of a test")
    monkeypatch.setitem(distributed.sys.modules, "mpi4py", SimpleNamespace(MPI=mpi))
    monkeypatch.setenv("PMI_SIZE", "4")
    with pytest.raises(BackendUnavailable, match="or PMI_SIZE=4 is left over from another job: unset PMI_SIZE$"):
        world()


# --------------------------------------------------------------------------------------------------
# Real processes

EXCHANGES = """
import numpy as np
from tensorgrad.distributed import world
group = world()
big = np.arange(300_000, dtype=np.float32) * (group.rank + 1)
small = np.full(3, group.rank + 1.0)
exchanges = [group.all_reduce(big), group.all_reduce(small)]
group.progress()
for exchange in exchanges:
    exchange.wait()
group.progress()
assert (big == np.arange(300_000, dtype=np.float32) * 6).all() and (small == 6).all()
assert (group.gather([group.rank, 7]) == [[0, 7], [1, 7], [2, 7]]).all()
sent = np.full(4, group.rank)
group.broadcast(sent, root=2)
assert (sent == 2).all()
group.barrier()
if group.rank == 1:
    print("all exchanged", group.size)
"""


def test_mpi_exchanges(mpirun: Any) -> None:
    result = mpirun(3, "-c", EXCHANGES)
    assert (result.returncode, result.stdout) == (0, "all exchanged 3\n"), result.stderr


def test_an_exception_in_one_process_ends_all(mpirun: Any) -> None:
    program = """
from tensorgrad.distributed import world
group = world()
if group.rank == 1:
    raise RuntimeError("this one fails")
group.barrier()
"""
    result = mpirun(2, "-c", program)
    assert result.returncode != 0
    assert "RuntimeError: this one fails" in result.stderr
    assert "process 1 of 2 failed: ending all of them" in result.stderr


def test_a_process_that_is_killed_ends_all(mpirun: Any) -> None:
    program = """
import os, signal
from tensorgrad.distributed import world
group = world()
if group.rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
group.barrier()
"""
    result = mpirun(2, "-c", program)
    assert result.returncode != 0
    assert "KILLED BY SIGNAL: 9" in result.stdout + result.stderr or "signal 9" in result.stdout + result.stderr


def test_a_single_process_under_mpirun(mpirun: Any) -> None:
    result = mpirun(1, "-c", "from tensorgrad.distributed import world; print(type(world()).__name__)")
    assert (result.returncode, result.stdout) == (0, "Communicator\n"), result.stderr


# --- gradients reported as soon as they are complete ----------------------------------------------


def leaf(*values: float) -> Any:
    return Tensor(np.array(values, np.float64), requires_grad=True)


def test_gradient_ready_reports_every_leaf_once_with_its_complete_gradient() -> None:
    a, b, c, unused = leaf(1, 2), leaf(3, 4), leaf(5, 6), leaf(7, 8)
    y = a * b
    loss = (y * c + a).sum() + (y * a).sum()  # `a` is used three times, at both ends of the graph
    seen: list[tuple[Any, Any]] = []
    with GradientReady(lambda node: seen.append((node, node.grad.copy()))):
        loss.backward()
    assert len(seen) == 3
    gradients = dict(seen)
    for x in (a, b, c):
        np.testing.assert_array_equal(gradients[x.node], x.grad)
    np.testing.assert_array_equal(a.grad, b.data * c.data + 1 + 2 * a.data * b.data)
    assert unused.grad is None


def test_gradient_ready_reports_during_backward(logging_op: Any) -> None:
    first, second = leaf(1, 2), leaf(3, 4)
    order: list[str] = []
    names = {first.node: "first", second.node: "second"}
    loss = (logging_op(order, "between")(first * first) * second).sum()
    with GradientReady(lambda node: order.append(names[node])):
        loss.backward()
    assert order == ["second", "between", "first"]


def test_gradient_ready_of_a_leaf_as_root_and_of_a_multi_output_node() -> None:
    x = leaf(0, 1, 2, 3, 4, 5)
    seen: list[Any] = []
    with GradientReady(seen.append):
        x.backward(np.ones(6))
    parts = x.split(3)
    with GradientReady(seen.append):
        (parts[0] * parts[2]).sum().backward()
    assert seen == [x.node, x.node]
    np.testing.assert_array_equal(x.grad, [5, 6, 1, 1, 1, 2])


@given(st.data())
def test_gradient_ready_reports_complete_gradients_in_any_graph(data: Any) -> None:
    leaves = [leaf(i + 1) for i in range(4)]
    values = list(leaves)
    for _ in range(data.draw(st.integers(1, 12))):
        x, y = (values[data.draw(st.integers(0, len(values) - 1))] for _ in range(2))
        values.append(x * 0.5 + y)
    seen: dict[Any, float] = {}

    def report(node: Any) -> None:
        assert node not in seen
        seen[node] = float(node.grad[0])

    with GradientReady(report):
        values[-1].sum().backward()
    assert seen == {x.node: float(x.grad[0]) for x in leaves if x.grad is not None}
