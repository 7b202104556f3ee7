"""A step recorded once as a CUDA graph and then replayed: the CPU launches one graph instead of hundreds of kernels."""

import contextlib
from functools import cached_property
from typing import Any

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.cupy.driver import Allocator
from tensorgrad.backend.cupy.dropout import Dropout
from tensorgrad.backend.cupy.optimizer import Optimization
from tensorgrad.backend.runtime import Advance, Function

EAGER_RUNS = 3  # before recording: they compile kernels, plan products and fill the memory pool


class Graphs(Dropout, Optimization):
    """Recording of CUDA graphs."""

    def record(self, fn: Function, advance: Advance, tune: bool = False) -> Function:
        return CudaGraph(self, fn, advance, tune)

    @cached_property
    def graph_stream(self) -> Any:
        """The stream on which graphs are recorded; CUDA cannot record on the default stream."""
        return self.xp.cuda.Stream()


def _closed(*arrays: Array) -> tuple[Array, ...]:
    raise RuntimeError("it has been closed")


class CudaGraph:
    """`fn(*arrays)`: called EAGER_RUNS times, then recorded, and from then on replayed.

    Arguments are copied into arrays of the graph, and results are overwritten by the next run. Memory comes from a pool
    of the graph's own: memory that fn freed while it was recorded stays reserved for every replay, until `close`.
    """

    def __init__(self, k: Graphs, fn: Function, advance: Advance, tune: bool) -> None:
        self.k, self.fn, self.advance, self.tune = k, fn, advance, tune
        self.stream, self.memory = k.graph_stream, Allocator(k.xp, k.xp.cuda.MemoryPool())
        self.runs = 0
        self.inputs: tuple[Array, ...] = ()
        self.results: tuple[Array, ...] = ()
        self.graph: Any = None
        self.step_offset: Any = None  # on the GPU: how many dropout masks were drawn since the recording
        self.first_mask = self.n_masks = 0  # the number of the first recorded mask, and the number of recorded masks
        self.tables: list[Any] = []  # read by recorded kernels: keeps them alive when the cache drops them

    def __call__(self, *arrays: Array) -> tuple[Array, ...]:
        """The results of fn. Raises ValueError for arrays of other shapes, RuntimeError if fn cannot be recorded."""
        caller = self.k.xp.cuda.get_current_stream()
        self.stream.wait_event(caller.record())  # for example for a batch that is being copied
        results = self._run(arrays)
        caller.wait_event(self.stream.record())
        return results

    def close(self) -> None:
        """Wait for the last run, and return the memory to the GPU: in CuPy 14.2 a pool that is dropped keeps it."""
        self.stream.synchronize()
        self.fn, self.runs = _closed, EAGER_RUNS
        self.graph = self.step_offset = None
        self.inputs, self.results, self.tables = (), (), []
        self.memory.pool.free_all_blocks()

    def _run(self, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        with self.stream:
            self._copy_inputs(arrays)
            if self.graph is None and self.runs < EAGER_RUNS:
                self.runs += 1
                return self._run_eagerly()
            if self.graph is None:
                self._record()
            elif self.n_masks:
                self.step_offset.fill((self.advance(self.n_masks) - self.first_mask) % 2**32)
            self.graph.launch(self.stream)
            return self.results

    def _run_eagerly(self) -> tuple[Array, ...]:
        before = self.k.autotune
        self.k.autotune = self.tune or before
        try:
            with self.k.xp.cuda.using_allocator(self.memory):
                return self.fn(*self.inputs)
        finally:
            self.k.autotune = before

    def _copy_inputs(self, arrays: tuple[Array, ...]) -> None:
        if not self.inputs and arrays:
            self.inputs = tuple(x.copy() for x in arrays)
            self.k.xp.get_default_memory_pool().free_all_blocks()  # which the graph's own pool cannot use
            return
        shapes, recorded = ([(x.shape, x.dtype.name) for x in some] for some in (arrays, self.inputs))
        if shapes != recorded:
            raise ValueError(f"CUDA graph: recorded for arrays {recorded}, called with {shapes}")
        for own, x in zip(self.inputs, arrays, strict=True):
            own[...] = x

    def _record(self) -> None:
        k = self.k
        self.step_offset = k.step_offset = k.xp.zeros((), "uint32")
        self.first_mask = self.advance(0)
        with k.xp.cuda.using_allocator(self.memory):
            self.stream.begin_capture()
            try:
                self.results = self.fn(*self.inputs)
            except Exception as error:
                with contextlib.suppress(Exception):  # the capture may have been invalidated already
                    self.stream.end_capture()
                raise RuntimeError(f"CUDA graph: the step cannot be recorded: {error}") from error
            finally:
                k.step_offset = None
            self.graph = self.stream.end_capture()
        self.n_masks = self.advance(0) - self.first_mask
        self.tables = list(k.tables.values())
