"""Batches to the GPU while it computes: from pinned memory, on a stream of their own; nobody waits."""

from functools import cached_property
from typing import Any

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.cupy.kernels import Kernels
from tensorgrad.backend.cupy.nccl import NcclGroup

SLOTS = 2  # batches on their way or in use: one is computed with while the next is copied


class Slot:
    """Pinned memory on the host, memory on the GPU, and when they may be written into again."""

    def __init__(self, cupy: Any, like: tuple[Any, ...]) -> None:
        self.pinned = []
        for x in like:
            memory = cupy.cuda.alloc_pinned_memory(x.nbytes)
            self.pinned.append(np.frombuffer(memory, x.dtype, x.size).reshape(x.shape))
        self.arrays = tuple(cupy.empty(x.shape, x.dtype) for x in like)
        self.copied: Any = None  # event: the GPU has read the pinned memory
        # event: whatever was computed with the arrays; or with those before them, whose memory the pool gave out again
        self.used: Any = cupy.cuda.get_current_stream().record()


class Transfer(Kernels):
    """The ways between host and GPU, and from GPU to GPU, that keep nobody waiting."""

    _group: NcclGroup | None = None

    @cached_property
    def _slots(self) -> dict[Any, list[Slot]]:
        return {}

    def communicator(self, group: Any) -> Any:
        """The same processes with a GPU each."""
        if group.size == 1:
            return group
        if self._group is None or self._group.group is not group:
            self._group = NcclGroup(self.xp, group)
        return self._group

    def sum_over(self, group: Any, value: Array) -> Array:
        """The same on the GPU; nobody waits."""
        value = value.reshape(1).copy()
        group.all_reduce(value).wait()
        return value.reshape(())

    def numbers(self, values: list[Any]) -> list[float]:
        """Python floats of arrays on the GPU, which are gathered there and copied at once."""
        arrays = [self.xp.asarray(x, "float64").reshape(()) for x in values]
        return self.to_numpy(self.xp.stack(arrays)).tolist() if arrays else []

    def number(self, x: Array) -> Any:
        """The array itself: to know its number would be to wait for it."""
        return x

    def stage(self, *arrays: Any) -> tuple[Array, ...]:
        """Host arrays on the GPU, copied while the step before is computed.

        They are valid until `stage` was called twice more for arrays of these shapes.
        """
        key = tuple((x.shape, x.dtype) for x in arrays)
        slots = self._slots.setdefault(key, [])
        slot = Slot(self.xp, arrays) if len(slots) < SLOTS else slots.pop(0)
        compute = self.xp.cuda.get_current_stream()
        if slots:  # what the current stream has been given so far works with the slot before
            slots[-1].used = compute.record()
        slots.append(slot)
        if slot.copied is not None:
            slot.copied.synchronize()  # long since done: that was two steps ago
        self.copy_stream.wait_event(slot.used)
        for x, pinned, on_gpu in zip(arrays, slot.pinned, slot.arrays, strict=True):
            pinned[...] = x
            on_gpu.set(pinned, stream=self.copy_stream)
        slot.copied = self.copy_stream.record()
        compute.wait_event(slot.copied)
        return slot.arrays
