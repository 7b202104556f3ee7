"""A step recorded once as a CUDA graph and then replayed: the CPU has one launch to do instead of hundreds."""

import contextlib
from functools import cached_property
from typing import Any

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.cupy.driver import Allocator
from tensorgrad.backend.cupy.dropout import Dropout
from tensorgrad.backend.cupy.optimizer import Optimization
from tensorgrad.backend.runtime import Advance, Function

EAGER_RUNS = (
    3  # before recording: kernels are compiled, products planned, and the pool has the memory that a step needs
)


class Graphs(Dropout, Optimization):
    """Recording what a function does with arrays."""

    def record(self, fn: Function, advance: Advance) -> Function:
        """See `Backend.record`."""
        return CudaGraph(self, fn, advance)

    @cached_property
    def graph_stream(self) -> Any:
        """Where graphs are recorded, as the default stream cannot be."""
        return self.xp.cuda.Stream()


class CudaGraph:
    """`fn(*arrays)`: run EAGER_RUNS times, then recorded, and from then on replayed and called no more.

    Its arguments are copied into arrays of its own, and what it returns is overwritten by the next run. Its memory
    comes from a pool that nobody else takes from: what it freed while it was recorded is still its own in every replay.
    """

    def __init__(self, k: Graphs, fn: Function, advance: Advance) -> None:
        self.k, self.fn, self.advance = k, fn, advance
        self.stream, self.memory = k.graph_stream, Allocator(k.xp, k.xp.cuda.MemoryPool())
        self.runs = 0
        self.inputs: tuple[Array, ...] = ()
        self.results: tuple[Array, ...] = ()
        self.graph: Any = None
        self.drawn: Any = None  # on the GPU: how many masks of dropout were drawn since the recording
        self.first_draw = self.draws = 0  # the number of the first mask that was recorded, and how many were
        self.tables: list[Any] = []  # that recorded kernels read, and others might push out of the cache

    def __call__(self, *arrays: Array) -> tuple[Array, ...]:
        """What fn returns. Raises ValueError for arrays of other shapes, RuntimeError where fn cannot be recorded."""
        caller = self.k.xp.cuda.get_current_stream()
        self.stream.wait_event(caller.record())  # a batch that is on its way there, above all
        results = self._run(arrays)
        caller.wait_event(self.stream.record())
        return results

    def _run(self, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        with self.stream:
            self._take(arrays)
            if self.graph is None and self.runs < EAGER_RUNS:
                self.runs += 1
                with self.k.xp.cuda.using_allocator(self.memory):
                    return self.fn(*self.inputs)
            if self.graph is None:
                self._record()
            else:
                self.drawn.fill((self.advance(self.draws) - self.first_draw) % 2**32)
            self.graph.launch(self.stream)
            return self.results

    def _take(self, arrays: tuple[Array, ...]) -> None:
        if not self.inputs:
            self.inputs = tuple(x.copy() for x in arrays)
            self.k.xp.get_default_memory_pool().free_all_blocks()  # what it keeps for later is of no use to our own
            return
        shapes, own = ([(x.shape, x.dtype.name) for x in some] for some in (arrays, self.inputs))
        if shapes != own:
            raise ValueError(f"CUDA graph: made for arrays {own}, called with {shapes}")
        for mine, x in zip(self.inputs, arrays, strict=True):
            mine[...] = x

    def _record(self) -> None:
        k = self.k
        self.drawn = k.drawn = k.xp.zeros((), "uint32")
        self.first_draw = self.advance(0)
        with k.xp.cuda.using_allocator(self.memory):
            self.stream.begin_capture()
            try:
                self.results = self.fn(*self.inputs)
            except Exception as error:
                with contextlib.suppress(Exception):  # the driver may have given it up already
                    self.stream.end_capture()
                raise RuntimeError(f"CUDA graph: the step cannot be recorded: {error}") from error
            finally:
                k.drawn = None
            self.graph = self.stream.end_capture()
        self.draws = self.advance(0) - self.first_draw
        self.tables = list(k.tables.values())
