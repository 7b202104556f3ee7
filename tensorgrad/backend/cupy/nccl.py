"""Several GPUs, one a process: NCCL adds up what lies on them while they compute; MPI does the rest."""

import importlib
import os
from typing import Any

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.runtime import BackendUnavailable

# What the launchers of MPI (Open MPI, MPICH and its kin, Slurm) say of where a process stands on its machine.
LOCAL_RANK = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")
UNIQUE_ID_BYTES = 128  # NCCL_UNIQUE_ID_BYTES of nccl.h, which CuPy does not hand on
EXTRA = "pip install nvidia-nccl-cu13 (-cu12 for a driver of CUDA 12)"


class NcclGroup:
    """A group of processes as `tensorgrad.distributed.Communicator` is one, with a GPU for each.

    group: of the same processes, by which they find each other; arrays of the host and numbers go by it from then on,
    too. Makes this process's GPU the current one. Raises BackendUnavailable where NCCL or a GPU is missing.
    """

    def __init__(self, cupy: Any, group: Any) -> None:
        self.cupy, self.group = cupy, group
        self.rank, self.size = group.rank, group.size
        self.nccl = importlib.import_module("cupy.cuda.nccl")
        if not self.nccl.available:
            raise BackendUnavailable(f"several GPUs need NCCL, which CuPy does not find: {EXTRA}")
        self.device = self._own_gpu()
        self.device.use()
        key = np.zeros(UNIQUE_ID_BYTES, np.uint8)
        if self.rank == 0:
            key[:] = np.frombuffer(self.nccl.get_unique_id(), np.uint8)
        group.broadcast(key)
        self.comm = self.nccl.NcclCommunicator(self.size, key.tobytes(), self.rank)
        self.stream = cupy.cuda.Stream(non_blocking=True)  # sums are made here, while backward goes on
        self.types = {
            "float16": self.nccl.NCCL_FLOAT16, "bfloat16": self.nccl.NCCL_BFLOAT16,
            "float32": self.nccl.NCCL_FLOAT32, "float64": self.nccl.NCCL_FLOAT64,
        }  # fmt: skip

    def _own_gpu(self) -> Any:
        named = [int(os.environ[name]) for name in LOCAL_RANK if name in os.environ]
        n_gpus = self.cupy.cuda.runtime.getDeviceCount()
        place = named[0] if named else self.rank
        # All find out together: one that gave up alone would be waited for without end.
        places = self.group.gather([place, n_gpus])
        for rank, (where, gpus) in enumerate(places):
            if where >= gpus:
                raise BackendUnavailable(
                    f"process {rank} is number {int(where) + 1} of its machine, which has {int(gpus)} GPUs: "
                    "start at most one process a GPU"
                )
        return self.cupy.cuda.Device(place)

    def all_reduce(self, array: Array) -> Any:
        """Begin to replace a contiguous array by its sum over the group, the same bits on every process."""
        if not isinstance(array, self.cupy.ndarray):
            return self.group.all_reduce(array)
        self.stream.wait_event(self.cupy.cuda.get_current_stream().record())
        at = array.data.ptr
        self.comm.allReduce(at, at, array.size, self.types[array.dtype.name], self.nccl.NCCL_SUM, self.stream.ptr)
        return Sum(self.cupy, self.stream.record())

    def broadcast(self, array: Array, root: int = 0) -> None:
        """Overwrite a contiguous array with the one that process `root` has."""
        if not isinstance(array, self.cupy.ndarray):
            self.group.broadcast(array, root)
            return
        at, kind = array.data.ptr, self.types[array.dtype.name]
        self.comm.broadcast(at, at, array.size, kind, root, self.cupy.cuda.get_current_stream().ptr)

    def __getattr__(self, name: str) -> Any:
        """What else a group can do: gather, barrier, progress, abort ..."""
        return getattr(self.group, name)


class Sum:
    """A sum that is under way."""

    def __init__(self, cupy: Any, done: Any) -> None:
        self.cupy, self.done = cupy, done

    def wait(self) -> None:
        """Let whatever is computed next on the current stream find the sum; the host does not wait."""
        self.cupy.cuda.get_current_stream().wait_event(self.done)
