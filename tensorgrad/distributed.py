"""Training in several processes at once: each has the whole model and takes its rows of every batch.

    group = world()  # alone, or those that mpirun started
    reducer = GradientReducer(model.parameters(), group)
    with reducer.overlap():
        loss.backward()  # gradients are exchanged as soon as each is complete, while backward goes on
    reducer.wait()  # every .grad is the sum over all processes, the same on all
    optimizer.step()

In a group of one nothing of this does anything.
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
from typing import Any, NoReturn, Protocol

import numpy as np

from tensorgrad.autograd import Edge, Leaf, Node, Observer
from tensorgrad.backend import Array, BackendUnavailable, backend_of
from tensorgrad.backend.threads import cpu_count
from tensorgrad.tensor import Tensor

BUCKET_BYTES = 2**22  # gradients sent together: large enough to be fast, small enough to begin early

# What the launchers of MPI (MPICH and its kin, Open MPI, Slurm) tell the processes that they start.
LAUNCHED_BY = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "MV2_COMM_WORLD_SIZE")


class Exchange(Protocol):
    """An exchange that is under way."""

    def wait(self) -> None:
        """Return once its result is there; for arrays on a device, once whatever is computed next will find it."""


class Communicator:
    """A group of processes that exchange arrays; this one is a group of one, where nothing is to be done.

    Every method but `progress` and `abort` is called by all processes of the group, in the same order.
    """

    rank = 0  # of this process: 0 to size - 1
    size = 1

    def all_reduce(self, array: Array) -> Exchange:
        """Begin to replace a contiguous array by its sum over the group, the same bits on every process."""
        return _DONE

    def progress(self) -> None:
        """Let exchanges that are under way get on, where nothing does so by itself."""

    def broadcast(self, array: Array, root: int = 0) -> None:
        """Overwrite a contiguous array with the one that process `root` has."""

    def gather(self, values: Sequence[float]) -> Any:
        """Return as many numbers from every process: (size, len(values)) float64, the rows by rank."""
        return np.array([values], np.float64)

    def barrier(self) -> None:
        """Wait until every process has come here."""

    def threads(self) -> int:
        """Return how many threads each process may take, so that those of one machine do not crowd each other."""
        return cpu_count()

    def abort(self, status: int) -> NoReturn:
        """End every process of the group, with that exit status: for errors of one, which others would wait for."""
        sys.exit(status)


ALONE = Communicator()


class _Done:
    def wait(self) -> None:
        pass


_DONE = _Done()


class MPICommunicator(Communicator):
    """The processes that mpirun started, over mpi4py; arrays are NumPy's."""

    def __init__(self, comm: Any) -> None:
        self.comm = comm
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        self._under_way: list[Any] = []

    def all_reduce(self, array: Array) -> Exchange:
        """See `Communicator.all_reduce`."""
        from mpi4py import MPI

        if not isinstance(array, np.ndarray):
            raise TypeError(f"MPICommunicator: all_reduce of {type(array).__name__}: only NumPy's arrays can be sent")
        request = self.comm.Iallreduce(MPI.IN_PLACE, array)
        self._under_way.append(request)
        return _Request(request)

    def progress(self) -> None:
        """See `Communicator.progress`: MPI moves data only while it is called."""
        self._under_way = [request for request in self._under_way if not request.Test()]

    def broadcast(self, array: Array, root: int = 0) -> None:
        """See `Communicator.broadcast`."""
        self.comm.Bcast(array.reshape(-1).view(np.uint8), root)  # bytes: MPI has no bfloat16

    def gather(self, values: Sequence[float]) -> Any:
        """See `Communicator.gather`."""
        own = np.array(values, np.float64)
        rows = np.empty((self.size, len(own)))
        self.comm.Allgather(own, rows)
        return rows

    def barrier(self) -> None:
        """See `Communicator.barrier`."""
        self.comm.Barrier()

    def threads(self) -> int:
        """See `Communicator.threads`."""
        from mpi4py import MPI

        local = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        first_cores = local.allgather(min(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else [0]
        n_sharing: int = local.Get_size() if len(set(first_cores)) == 1 else 1  # otherwise each is bound to its own
        local.Free()
        return max(1, cpu_count() // n_sharing)

    def abort(self, status: int) -> NoReturn:
        """See `Communicator.abort`."""
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(0.3)  # mpirun may throw away what it has not passed on by then
        self.comm.Abort(status)
        os._exit(status)  # some MPIs come back from there, for as long as it takes them to end the others


class _Request:
    def __init__(self, request: Any) -> None:
        self.request = request

    def wait(self) -> None:
        self.request.Wait()


@functools.cache
def world() -> Communicator:
    """Return the group of all processes that were started together: by mpirun, or this one alone.

    Under mpirun an exception that nothing catches ends all processes, not just the one that it happens in, which the
    others would wait for without end. Raises BackendUnavailable where mpi4py is missing or is of another MPI.
    """
    if not any(name in os.environ for name in LAUNCHED_BY):
        return ALONE
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: there is no library of MPI to load
        raise BackendUnavailable(
            f"started by mpirun, but MPI cannot be used ({error}): pip install mpi4py mpich brings both"
        ) from None
    group = MPICommunicator(MPI.COMM_WORLD)
    started = max(int(os.environ.get(name, 1)) for name in LAUNCHED_BY if name.endswith("SIZE"))
    if started != group.size:
        raise BackendUnavailable(
            f"mpirun started {started} processes, but mpi4py sees {group.size}: mpirun is of another MPI than mpi4py, "
            f"which uses {MPI.Get_library_version().split(',')[0].splitlines()[0]}"
        )
    if group.size == 1:
        return ALONE
    sys.excepthook = functools.partial(_abort_all, group)
    return group


def _abort_all(
    group: Communicator, kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    traceback.print_exception(kind, error, trace)
    print(f"process {group.rank} of {group.size} failed: ending all of them", file=sys.stderr)
    group.abort(1)


# --- gradients ------------------------------------------------------------------------------------


class GradientReady(Observer):
    """In a `with`: calls report(leaf) for every leaf as soon as backward has added all there is to its gradient."""

    def __init__(self, report: Callable[[Leaf], None]) -> None:
        self.report = report
        self._missing: Counter[Node] | None = None  # gradients that each leaf has yet to get; None between backwards

    def arrived(self, node: Node, dys: list[Array | None]) -> None:
        """See `Observer.arrived`. The first node is the root of the graph: its leaves' uses are counted."""
        if self._missing is None:
            self._missing = _count_uses(node)

    def added(self, node: Node | None, edge: Edge) -> None:
        """See `Observer.added`."""
        leaf = edge[0]
        if isinstance(leaf, Leaf):
            missing = Counter({leaf: 1}) if self._missing is None else self._missing
            missing[leaf] -= 1
            if not missing[leaf]:
                self.report(leaf)

    def finished(self) -> None:
        """See `Observer.finished`. Fewer gradients come than there are uses where a checkpoint has unused results."""
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
    """Adds up the gradients of all processes, in buckets, each as soon as backward has completed it.

    Which parameters share a bucket, and the order of the buckets, depend on the list of parameters alone, so that sums
    are the same in every run. Losses must be divided by the number of all rows, not of the process's own.
    `with reducer.overlap():` goes around backward, of the last micro-batch only where gradients are accumulated.
    Afterwards call `wait`.
    """

    def __init__(self, parameters: Iterable[Tensor], group: Communicator, bucket_bytes: int = BUCKET_BYTES) -> None:
        self.group = group
        self._buckets: list[_Bucket] = []
        self._places: dict[Leaf, tuple[_Bucket, int]] = {}
        self._started = 0  # buckets that are under way
        if group.size > 1:
            self._fill_buckets(parameters, bucket_bytes)

    def overlap(self) -> AbstractContextManager[Any]:
        """In a `with` around backward: each bucket is exchanged as soon as its gradients are complete."""
        return GradientReady(self._ready) if self.group.size > 1 else nullcontext()

    def _fill_buckets(self, parameters: Iterable[Tensor], bucket_bytes: int) -> None:
        leaves = [p for p in parameters if isinstance(p.node, Leaf)]
        members: list[Tensor] = []
        for p in reversed(leaves):  # as backward completes them, more or less
            same = members and (members[0].dtype, type(members[0].data)) == (p.dtype, type(p.data))
            if members and (not same or sum(m.data.nbytes for m in members) + p.data.nbytes > bucket_bytes):
                self._buckets.append(_Bucket(members))
                members = []
            members.append(p)
        if members:
            self._buckets.append(_Bucket(members))
        for bucket in self._buckets:
            for i, leaf in enumerate(bucket.leaves):
                self._places[leaf] = bucket, i

    def _ready(self, leaf: Leaf) -> None:
        if leaf not in self._places:  # not of these parameters: whoever made it looks after it
            return
        bucket, i = self._places[leaf]
        if bucket.has[i]:
            raise RuntimeError("GradientReducer: a second backward before wait(): the first one's sums are under way")
        bucket.take(i)
        while self._started < len(self._buckets) and all(self._buckets[self._started].has):
            self._start_next()
        self.group.progress()

    def _start_next(self) -> None:
        bucket = self._buckets[self._started]
        bucket.exchange = self.group.all_reduce(bucket.sums)
        self._started += 1

    def wait(self) -> None:
        """Return once every gradient is the sum over the group.

        A parameter without a gradient counts as zeros, and has none afterwards only if it has none anywhere.
        """
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
    """Gradients of a few parameters in one flat array, half precision as float32."""

    def __init__(self, members: list[Tensor]) -> None:
        k = backend_of("GradientReducer", [p.data for p in members])
        self.leaves: list[Any] = [p.node for p in members]
        ends = [int(end) for end in np.cumsum([p.size for p in members])]
        self.sums = k.xp.empty(ends[-1], k.wide(members[0].data.reshape(-1)[:0]).dtype)
        self.parts = [
            self.sums[end - p.size : end].reshape(p.shape) for p, end in zip(members, ends, strict=True)
        ]  # fmt: skip
        self.has = [False] * len(members)  # which of them have a gradient in this step
        self.exchange: Exchange = _DONE

    def take(self, i: int) -> None:
        """Copy a gradient to its place, and let the parameter have it there."""
        gradient = self.leaves[i].grad
        self.has[i] = gradient is not None
        self.parts[i][...] = 0 if gradient is None else gradient
        self.leaves[i].grad = self.parts[i]

    def finish(self, anywhere: list[bool]) -> None:
        """Wait, and hand out the sums to those that have a gradient anywhere in the group."""
        self.exchange.wait()
        for leaf, part, there in zip(self.leaves, self.parts, anywhere, strict=True):
            leaf.grad = part.astype(leaf.dtypes[0], copy=False) if there else None
        self.has = [False] * len(self.leaves)
        self.exchange = _DONE
