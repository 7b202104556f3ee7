"""Transfers between host and GPU that overlap with computation: pinned memory, and a separate stream."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.cupy.kernels import Kernels
from tensorgrad.backend.cupy.nccl import NcclGroup

MAX_SLOTS = 2  # one batch is computed with while the next is copied


class Slot:
    """Pinned memory on the host, memory on the GPU, and the events after which they may be overwritten."""

    def __init__(self, cupy: Any, like: tuple[Any, ...]) -> None:
        self.pinned = [pinned_like(cupy, x) for x in like]
        self.arrays = tuple(cupy.empty(x.shape, x.dtype) for x in like)
        self.copied: Any = None  # event: the GPU has read the pinned memory
        # event: kernels that read the arrays, or earlier arrays at the same memory, have finished
        self.used: Any = cupy.cuda.get_current_stream().record()


def pinned_like(cupy: Any, x: Any) -> Any:
    """An array on the host of the shape and dtype of x, in memory that copies to and from the GPU need not wait for."""
    return np.frombuffer(cupy.cuda.alloc_pinned_memory(x.nbytes), x.dtype, x.size).reshape(x.shape)


class Transfer(Kernels):
    """Transfers between host and GPU, and between GPUs, without synchronisation."""

    _group: NcclGroup | None = None

    @cached_property
    def _slots(self) -> dict[Any, list[Slot]]:
        return {}

    def communicator(self, group: Any) -> Any:
        """The same process group, with one GPU per process."""
        if group.size == 1:
            return group
        if self._group is None or self._group.group is not group:
            self._group = NcclGroup(self.xp, group)
        return self._group

    def sum_over(self, group: Any, value: Array) -> Array:
        """The sum of a value over a process group, on the GPU, without synchronisation."""
        value = value.reshape(1).copy()
        group.all_reduce(value).wait()
        return value.reshape(())

    def numbers(self, values: list[Any]) -> list[float]:
        """Values of arrays on the GPU as Python floats, copied to the host together."""
        arrays = [self.xp.asarray(x, "float64").reshape(()) for x in values]
        return self.to_numpy(self.xp.stack(arrays)).tolist() if arrays else []

    def number(self, x: Array) -> Any:
        return x

    def start_reading(self, x: Array) -> Callable[[], Any]:
        """Copy x to the host behind what is queued so far; the result waits for the copy, not for what follows."""
        pinned = pinned_like(self.xp, x)
        x.get(out=pinned, blocking=False)
        copied = self.xp.cuda.get_current_stream().record()

        def read() -> Any:
            copied.synchronize()
            return pinned

        return read

    def stage(self, *arrays: Any) -> tuple[Array, ...]:
        """Copy while the step before is computed; valid until `stage` is called twice more for these shapes."""
        key = tuple((x.shape, x.dtype) for x in arrays)
        slots = self._slots.setdefault(key, [])
        slot = Slot(self.xp, arrays) if len(slots) < MAX_SLOTS else slots.pop(0)
        compute = self.xp.cuda.get_current_stream()
        if slots:  # kernels that are already queued read the previous slot
            slots[-1].used = compute.record()
        slots.append(slot)
        if slot.copied is not None:
            slot.copied.synchronize()  # usually done long ago: it was two steps ago
        self.copy_stream.wait_event(slot.used)
        for x, pinned, on_gpu in zip(arrays, slot.pinned, slot.arrays, strict=True):
            pinned[...] = x
            on_gpu.set(pinned, stream=self.copy_stream)
        slot.copied = self.copy_stream.record()
        compute.wait_event(slot.copied)
        return slot.arrays
