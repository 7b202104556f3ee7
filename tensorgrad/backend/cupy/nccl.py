"""Several GPUs, one per process: NCCL sums their arrays while they compute; host arrays go through MPI."""

import importlib
import os
from typing import Any

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.runtime import BackendUnavailable

# The rank of a process on its machine, as set by Open MPI, MPICH and its derivatives, and Slurm.
LOCAL_RANK = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")
UNIQUE_ID_BYTES = 128  # NCCL_UNIQUE_ID_BYTES of nccl.h, which CuPy does not export
EXTRA = "pip install nvidia-nccl-cu13 (-cu12 for a driver of CUDA 12)"


class NcclGroup:
    """A process group, like `tensorgrad.distributed.Communicator`, with a GPU for each process.

    group: the same processes on the host; it exchanges the NCCL key, and host arrays. Makes this process's GPU the
    current one. Raises BackendUnavailable where NCCL or a GPU is missing.
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
        self.stream = cupy.cuda.Stream(non_blocking=True)  # sums run here, beside backward
        self.types = {
            "float16": self.nccl.NCCL_FLOAT16, "bfloat16": self.nccl.NCCL_BFLOAT16,
            "float32": self.nccl.NCCL_FLOAT32, "float64": self.nccl.NCCL_FLOAT64,
        }  # fmt: skip

    def _own_gpu(self) -> Any:
        local_ranks = [int(os.environ[name]) for name in LOCAL_RANK if name in os.environ]
        local_rank = local_ranks[0] if local_ranks else self.rank
        # All processes check all ranks: if only one of them failed, the others would wait for it for ever.
        gathered = self.group.gather([local_rank, self.cupy.cuda.runtime.getDeviceCount()])
        for rank, (local, n_gpus) in enumerate(gathered):
            if local >= n_gpus:
                raise BackendUnavailable(
                    f"process {rank} is number {int(local) + 1} of its machine, which has {int(n_gpus)} GPUs: "
                    "start at most one process per GPU"
                )
        return self.cupy.cuda.Device(local_rank)

    def all_reduce(self, array: Array) -> Any:
        """Start to replace a contiguous array by its sum over the group, equal bit by bit on every process."""
        if not isinstance(array, self.cupy.ndarray):
            return self.group.all_reduce(array)
        self.stream.wait_event(self.cupy.cuda.get_current_stream().record())
        at = array.data.ptr
        self.comm.allReduce(at, at, array.size, self.types[array.dtype.name], self.nccl.NCCL_SUM, self.stream.ptr)
        return Sum(self.cupy, self.stream.record())

    def broadcast(self, array: Array, root: int = 0) -> None:
        """Overwrite a contiguous array with that of process `root`."""
        if not isinstance(array, self.cupy.ndarray):
            self.group.broadcast(array, root)
            return
        at, kind = array.data.ptr, self.types[array.dtype.name]
        self.comm.broadcast(at, at, array.size, kind, root, self.cupy.cuda.get_current_stream().ptr)

    def __getattr__(self, name: str) -> Any:
        """All other methods of the group: gather, barrier, progress, abort ..."""
        return getattr(self.group, name)


class Sum:
    """A sum in progress."""

    def __init__(self, cupy: Any, done: Any) -> None:
        self.cupy, self.done = cupy, done

    def wait(self) -> None:
        """Make later work on the current stream wait for the sum; the host does not wait."""
        self.cupy.cuda.get_current_stream().wait_event(self.done)
