"""Data-parallel training: every process has the whole model and computes some rows of every batch.

    group = world()  # the process group that mpirun started
    reducer = GradientReducer(model.parameters(), group)
    with reducer.overlap():
        loss.backward()  # gradients are summed over the group while backward continues
    reducer.wait()  # now every .grad is the sum over all processes
    optimizer.step()

In a single process, whose group has size 1, all of this does nothing.
"""

import functools
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, NoReturn

import numpy as np

from tensorgrad.autograd import Edge, Leaf, Node, Observer
from tensorgrad.backend import Array, BackendUnavailable, backend_of
from tensorgrad.backend.threads import cpu_count
from tensorgrad.tensor import Tensor

BUCKET_BYTES = 2**22  # gradients sent together: large enough to be efficient, small enough to start early

# The number of processes, as the launchers of MPI say it: MPICH and its derivatives, Open MPI, MVAPICH, Slurm's srun.
LAUNCHER_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
SLURM_MPI = ("PMI_RANK", "PMIX_RANK")  # one of these is set where srun starts processes of MPI


class Exchange:
    """An exchange of arrays that has been started. This class is one that is over, as in a single process."""

    def wait(self) -> None:
        """Wait for the result. On a device it suffices that all later computations there will use the result."""


class Communicator:
    """A process group whose members exchange arrays. This class is the group of a single process.

    All processes of the group must call the methods in the same order, except `progress` and `abort`.
    """

    rank = 0  # of this process: 0 to size - 1
    size = 1

    def all_reduce(self, array: Array) -> Exchange:
        """Start to replace a contiguous array by its sum over the group, bitwise equal on every process."""
        return Exchange()

    def progress(self) -> None:
        """Advance exchanges that have been started, where the library only does so while it is called."""

    def broadcast(self, array: Array, root: int = 0) -> None:
        """Overwrite a contiguous array with that of the process of rank `root`."""

    def gather(self, values: Sequence[float]) -> Any:
        """Return the values of all processes: (size, len(values)) float64, one row for each rank."""
        return np.array([values], np.float64)

    def barrier(self) -> None:
        """Wait until every process has called this."""

    def threads(self) -> int:
        """Return how many threads each process should use, so that processes of one machine share its cores."""
        return cpu_count()

    def abort(self, status: int) -> NoReturn:
        """End all processes of the group with that exit status; after an error in one the others would wait forever."""
        sys.exit(status)


ALONE = Communicator()


class MPICommunicator(Communicator):
    """The processes that mpirun started, which exchange NumPy arrays by mpi4py."""

    def __init__(self, comm: Any) -> None:
        self.comm = comm
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        self._pending: list[Any] = []

    def all_reduce(self, array: Array) -> Exchange:
        from mpi4py import MPI

        if not isinstance(array, np.ndarray):
            raise TypeError(f"MPICommunicator: all_reduce of {type(array).__name__}: only NumPy arrays can be sent")
        request = self.comm.Iallreduce(MPI.IN_PLACE, array)
        self._pending.append(request)
        return _Request(request)

    def progress(self) -> None:
        """MPI moves data only while it is called."""
        self._pending = [request for request in self._pending if not request.Test()]

    def broadcast(self, array: Array, root: int = 0) -> None:
        self.comm.Bcast(array.reshape(-1).view(np.uint8), root)  # bytes: MPI has no bfloat16

    def gather(self, values: Sequence[float]) -> Any:
        own = np.array(values, np.float64)
        rows = np.empty((self.size, len(own)))
        self.comm.Allgather(own, rows)
        return rows

    def barrier(self) -> None:
        self.comm.Barrier()

    def threads(self) -> int:
        from mpi4py import MPI

        local = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        first_cores = local.allgather(min(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else [0]
        n_sharing: int = local.Get_size() if len(set(first_cores)) == 1 else 1  # else each is bound to its own cores
        local.Free()
        return max(1, cpu_count() // n_sharing)

    def abort(self, status: int) -> NoReturn:
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(0.3)  # mpirun may drop output that it has not forwarded yet
        self.comm.Abort(status)
        os._exit(status)  # some MPIs return from Abort and end the processes later


class _Request(Exchange):
    def __init__(self, request: Any) -> None:
        self.request = request

    def wait(self) -> None:
        self.request.Wait()


@functools.cache
def world() -> Communicator:
    """Return the group of all processes that mpirun started, or of this process alone.

    Under mpirun, an uncaught exception in one process ends all of them: otherwise they would wait for it forever.
    Raises BackendUnavailable if mpi4py is missing or belongs to another MPI than mpirun.
    """
    variable, started = _started()
    if started == 1:
        return ALONE
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: no MPI library can be loaded
        raise BackendUnavailable(
            f"started by mpirun, but MPI cannot be used ({error}): pip install mpi4py mpich brings both"
        ) from None
    group = MPICommunicator(MPI.COMM_WORLD)
    if started != group.size:
        raise BackendUnavailable(
            f"mpirun started {started} processes, but mpi4py sees {group.size}: they belong to different MPIs (mpi4py "
            f"uses {MPI.Get_library_version().split(',')[0].splitlines()[0]}), or {variable}={started} is left over "
            f"from another job: unset {variable}"
        )
    if group.size == 1:
        return ALONE
    sys.excepthook = functools.partial(_abort_all, group)
    return group


def _started() -> tuple[str, int]:
    """Return how many processes a launcher started, and the variable that says so.

    The shell of a scheduler may leave such variables behind, even empty ones: only a number above 1 counts.
    """
    for name in LAUNCHER_VARIABLES:
        size = os.environ.get(name, "")
        if name.startswith("SLURM") and not any(rank in os.environ for rank in SLURM_MPI):
            continue  # srun started them, but not for MPI
        if size.isdecimal() and int(size) > 1:
            return name, int(size)
    return "", 1


def _abort_all(
    group: Communicator, kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    traceback.print_exception(kind, error, trace)
    print(f"process {group.rank} of {group.size} failed: ending all of them", file=sys.stderr)
    group.abort(1)


# --- gradients ------------------------------------------------------------------------------------


class GradientReady(Observer):
    """Calls report(leaf) for every leaf as soon as backward has completed its gradient."""

    def __init__(self, report: Callable[[Leaf], None]) -> None:
        self.report = report
        self._missing: Counter[Node] | None = None  # gradients that each leaf still expects; None between backwards

    def arrived(self, node: Node, dys: list[Array | None]) -> None:
        """The first node is the root of the graph, in which the uses of leaves are counted."""
        if self._missing is None:
            self._missing = _count_uses(node)

    def added(self, node: Node | None, edge: Edge) -> None:
        leaf = edge[0]
        if isinstance(leaf, Leaf):
            missing = Counter({leaf: 1}) if self._missing is None else self._missing
            missing[leaf] -= 1
            if not missing[leaf]:
                self.report(leaf)

    def finished(self) -> None:
        """A leaf gets fewer gradients than it has uses if a checkpoint has unused results."""
        missing, self._missing = self._missing or Counter(), None
        for leaf, count in missing.items():
            if count > 0 and isinstance(leaf, Leaf) and leaf.grad is not None:
                self.report(leaf)


def _count_uses(root: Node) -> Counter[Node]:
    """How often each leaf is an operand in the graph that leads to `root`."""
    uses: Counter[Node] = Counter()
    waiting, seen = [root], {root}
    while waiting:
        for edge in waiting.pop().parents:
            if edge is not None:
                parent = edge[0]
                uses[parent] += parent.is_leaf
                if parent not in seen:
                    seen.add(parent)
                    waiting.append(parent)
    return uses


class GradientReducer:
    """Sums the gradients of all processes in buckets, each as soon as backward has completed it.

    The buckets and their order depend only on the list of parameters, so that sums are equal in every run. Divide the
    loss by the number of rows of all processes. Call backward inside `with reducer.overlap():`, only for the last
    micro-batch if gradients are accumulated, then call `wait`.
    """

    def __init__(self, parameters: Iterable[Tensor], group: Communicator, bucket_bytes: int = BUCKET_BYTES) -> None:
        self.group = group
        self._buckets: list[_Bucket] = []
        self._bucket_of: dict[Leaf, tuple[_Bucket, int]] = {}  # and the index in it
        self._started = 0  # buckets whose exchange has been started
        if group.size > 1:
            self._fill_buckets(parameters, bucket_bytes)

    def overlap(self) -> AbstractContextManager[Any]:
        """Return a context for backward in which each bucket is exchanged as soon as it is complete."""
        return GradientReady(self._ready) if self.group.size > 1 else nullcontext()

    def _fill_buckets(self, parameters: Iterable[Tensor], bucket_bytes: int) -> None:
        leaves = [p for p in parameters if isinstance(p.node, Leaf)]
        members: list[Tensor] = []
        for p in reversed(leaves):  # roughly the order in which backward completes them
            alike = members and (members[0].dtype, type(members[0].data)) == (p.dtype, type(p.data))
            if members and (not alike or sum(m.data.nbytes for m in members) + p.data.nbytes > bucket_bytes):
                self._buckets.append(_Bucket(members))
                members = []
            members.append(p)
        if members:
            self._buckets.append(_Bucket(members))
        for bucket in self._buckets:
            for i, leaf in enumerate(bucket.leaves):
                self._bucket_of[leaf] = bucket, i

    def _ready(self, leaf: Leaf) -> None:
        if leaf not in self._bucket_of:  # a leaf that is none of these parameters
            return
        bucket, i = self._bucket_of[leaf]
        if bucket.has[i]:
            raise RuntimeError("GradientReducer: backward was called a second time; call wait() after the first")
        bucket.take(i)
        while self._started < len(self._buckets) and all(self._buckets[self._started].has):
            self._start_next()
        self.group.progress()

    def _start_next(self) -> None:
        bucket = self._buckets[self._started]
        bucket.exchange = self.group.all_reduce(bucket.sums)
        self._started += 1

    def wait(self) -> None:
        """Wait until every gradient is the sum over the group, where None counts as zeros unless it is None on all."""
        if self.group.size == 1:
            return
        for bucket in self._buckets[self._started :]:
            for i in range(len(bucket.leaves)):
                if not bucket.has[i]:
                    bucket.take(i)
            self._start_next()
        has = [has for bucket in self._buckets for has in bucket.has]
        anywhere = iter(self.group.gather(has).any(axis=0))
        for bucket in self._buckets:
            bucket.finish([bool(next(anywhere)) for _ in bucket.leaves])
        self._started = 0


class _Bucket:
    """The gradients of a few parameters in one flat array, those in half precision as float32."""

    def __init__(self, members: list[Tensor]) -> None:
        k = backend_of("GradientReducer", [p.data for p in members])
        self.leaves: list[Any] = [p.node for p in members]
        ends = [int(end) for end in np.cumsum([p.size for p in members])]
        self.sums = k.xp.empty(ends[-1], k.wide(members[0].data.reshape(-1)[:0]).dtype)
        self.parts = [self.sums[end - p.size : end].reshape(p.shape) for p, end in zip(members, ends, strict=True)]
        self.has = [False] * len(members)  # whether each has a gradient in this step
        self.exchange = Exchange()

    def take(self, i: int) -> None:
        """Copy a gradient into the bucket and make the parameter's gradient a view of it."""
        gradient = self.leaves[i].grad
        self.has[i] = gradient is not None
        self.parts[i][...] = 0 if gradient is None else gradient
        self.leaves[i].grad = self.parts[i]

    def finish(self, anywhere: list[bool]) -> None:
        """Wait, then set the gradients of the parameters that have one on any process, and None for the others."""
        self.exchange.wait()
        for leaf, part, has_any in zip(self.leaves, self.parts, anywhere, strict=True):
            leaf.grad = part.astype(leaf.dtype, copy=False) if has_any else None
        self.has = [False] * len(self.leaves)
        self.exchange = Exchange()
