"""Shared by the GPU benchmarks: a card used by CuPy or by PyTorch, times by CUDA events, figures saved at once.

With `stand_in` the same code runs without a GPU, on the tests' emulation of CuPy and on PyTorch on the CPU. Its times
mean nothing, but every line runs.
"""

import atexit
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import common

GIB = 2**30


class Ours:
    """The card, used by the cupy backend."""

    def __init__(self, stand_in: bool) -> None:
        self.stack = ExitStack()
        atexit.register(self.stack.close)
        if stand_in:
            sys.path.insert(0, str(common.ROOT / "tests" / "tensorgrad" / "backend" / "cupy"))
            from emulated_cuda import emulated_gpu

            self.k = self.stack.enter_context(emulated_gpu())
        else:
            import tensorgrad as tg

            self.k = tg.use_backend("cupy").backend
        self.cupy = self.k.xp
        self.stand_in = stand_in
        self.launches = 0
        self._count_launches()

    def describe(self) -> dict[str, Any]:
        """The card and its driver, ready for JSON."""
        runtime = self.cupy.cuda.runtime
        properties = runtime.getDeviceProperties(0)
        return {
            "gpu": properties["name"].decode(),
            "multiprocessors": properties["multiProcessorCount"],
            "memory_gib": runtime.memGetInfo()[1] / GIB,
            "cuda_driver": runtime.driverGetVersion(),
            "cuda_runtime": runtime.runtimeGetVersion(),
        }

    def times(self, fn: Callable[[], Any], repeats: int, warm_up: int = 3) -> list[float]:
        """Milliseconds of each call, by CUDA events around it."""
        for _ in range(warm_up):
            fn()
        events = [(self.cupy.cuda.Event(), self.cupy.cuda.Event()) for _ in range(repeats)]
        for start, end in events:
            start.record()
            fn()
            end.record()
        events[-1][1].synchronize()
        return [float(self.cupy.cuda.get_elapsed_time(start, end)) for start, end in events]

    def used_gib(self) -> float:
        """The memory of the card in use, by all processes: nothing else should run on it."""
        free, total = self.cupy.cuda.runtime.memGetInfo()
        return (total - free) / GIB

    def free_memory(self) -> None:
        """Return unused memory to the card."""
        self.cupy.get_default_memory_pool().free_all_blocks()

    def _count_launches(self) -> None:
        """Count the launches of our kernels and of cuBLASLt. CuPy's own kernels are not counted."""
        launcher, multiply = self.k.launcher, self.k.cublaslt.multiply
        launch = launcher.launch

        def counted(fn: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                self.launches += 1
                return fn(*args, **options)

            return call

        launcher.launch = counted(launch)
        self.k.cublaslt.multiply = counted(multiply)


class Theirs:
    """The card, used by PyTorch; with `stand_in`, the CPU."""

    def __init__(self, stand_in: bool) -> None:
        import torch

        self.torch, self.stand_in = torch, stand_in
        self.device = "cpu" if stand_in else "cuda"
        torch.set_float32_matmul_precision("high")

    def times(self, fn: Callable[[], Any], repeats: int, warm_up: int = 3) -> list[float]:
        """Milliseconds of each call, by CUDA events around it; by the clock on a CPU."""
        for _ in range(warm_up):
            fn()
        if self.stand_in:
            return [self._clocked(fn) for _ in range(repeats)]
        event = self.torch.cuda.Event
        events = [(event(enable_timing=True), event(enable_timing=True)) for _ in range(repeats)]
        for start, end in events:
            start.record()
            fn()
            end.record()
        self.torch.cuda.synchronize()
        return [float(start.elapsed_time(end)) for start, end in events]

    def _clocked(self, fn: Callable[[], Any]) -> float:
        started = time.perf_counter()
        fn()
        return (time.perf_counter() - started) * 1e3

    def used_gib(self) -> float:
        """See Ours."""
        if self.stand_in:
            return 0.0
        free, total = self.torch.cuda.mem_get_info()
        return float(total - free) / GIB

    def free_memory(self) -> None:
        """See Ours."""
        if not self.stand_in:
            self.torch.cuda.empty_cache()


class Figures:
    """The figures of a part, saved after each one, since the part may run out of time."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.values: dict[str, Any] = {}

    def add(self, **values: Any) -> None:
        """Add figures and write the file."""
        self.values |= values
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_suffix(".part")
        aside.write_text(json.dumps(self.values, indent=2) + "\n", encoding="utf-8")
        os.replace(aside, self.path)


def is_out_of_memory(error: Exception) -> bool:
    """Whether the error says that the memory of the card is exhausted."""
    return isinstance(error, MemoryError) or "memory" in f"{type(error).__name__} {error}".lower()
