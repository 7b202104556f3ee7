"""The kernels of a training step, compiled in several processes before they are needed.

Compiling uses one core, and a training step needs some twenty kernels. Each process compiles one kernel after another
and writes it to the cache on disk, from where the process that trains loads it. What is not there by then, it compiles
itself. What an earlier run has compiled is loaded meanwhile, by a thread, which takes a third of a second. Then LLVM
has nothing more to do, and its pages, 110 MB, leave the process.
"""

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tensorgrad.backend import load
from tensorgrad.backend.numba.compile import NotCached, cache_folder, cached_only
from tensorgrad.backend.numba.progress import show
from tensorgrad.backend.numba.softmax import softmax
from tensorgrad.backend.threads import cpu_count
from tensorgrad.memory import forget_pages

MAX_PROCESSES = 4


def array(*shape: int) -> Any:
    """New ones: float32, as a step computes in."""
    return np.ones(shape, np.float32)


# What calls each kernel, by the name of the backend's method: arrays for which it does not leave the work to NumPy.
ROWS, COLUMN, VECTOR, MATRIX = array(128, 128), array(128, 1), array(128), array(128, 128)
HEADS = array(2, 4, 64, 64)
DROPOUT, INDICES = (0.5, 0, 0, 0), np.zeros(128, np.int64)
CALLS: dict[str, Callable[[Any], Any]] = {
    "layer_norm": lambda k: k.layer_norm(ROWS, VECTOR, None, 1e-5),
    "add_layer_norm": lambda k: k.add_layer_norm(ROWS, ROWS, VECTOR, None, 1e-5),
    "rms_norm": lambda k: k.rms_norm(ROWS, VECTOR, 1e-5),
    "linear": lambda k: k.linear(ROWS, MATRIX, None),
    "attention": lambda k: k.attention(HEADS, HEADS, HEADS, True, None, None, 1.0),
    "rotary_embedding": lambda k: k.rotary_embedding(HEADS, np.arange(64), 1e4),
    "gelu_tanh": lambda k: k.gelu_tanh(ROWS),
    "gelu": lambda k: k.gelu(ROWS),
    "swiglu": lambda k: k.swiglu(ROWS, ROWS),
    "dropout": lambda k: k.dropout(ROWS, DROPOUT),
    "add": lambda k: k.add(array(256, 128), array(256, 128)),
    "cross_entropy": lambda k: k.cross_entropy(ROWS, INDICES, -1, 0.0),
    "cross_entropy_backward": lambda k: k.cross_entropy_backward(VECTOR, ROWS, INDICES, array(128, 2), -1, 0.0),
    "linear_backward_bias": lambda k: k.linear_backward_bias(ROWS),
    "layer_norm_backward": lambda k: k.layer_norm_backward(ROWS, ROWS, VECTOR, COLUMN, COLUMN, None, (True,) * 3),
    "rms_norm_backward": lambda k: (
        k.rms_norm_backward_x(ROWS, ROWS, VECTOR, COLUMN), k.rms_norm_backward_weight(ROWS, ROWS, COLUMN)
    ),
    "gelu_tanh_recompute": lambda k: k.gelu_tanh_recompute(array(8), array(8)),
    "gelu_backward": lambda k: k.gelu_backward(ROWS, ROWS),
    "swiglu_backward": lambda k: k.swiglu_backward(ROWS, ROWS, ROWS),
    "attention_backward": lambda k: k.attention_backward(
        HEADS, HEADS, HEADS, HEADS, HEADS, HEADS[..., :1], True, None, None, 1.0
    ),
    "add_embedding_backward": lambda k: k.add_embedding_backward(array(8, 128), ROWS, INDICES),
    "global_norm": lambda k: k.global_norm([ROWS]),
    "adamw": lambda k: k.adamw(
        *(array(8) for _ in range(4)), lr=0.0, beta1=0.9, beta2=0.9, eps=1.0, weight_decay=0.0, step=1
    ),
}  # fmt: skip


class Compilation:
    """Kernels, by their names in CALLS, that are loaded from the cache or compiled: `done` of `total` are compiled."""

    def __init__(self, names: Sequence[str], n_processes: int) -> None:
        self.total = self.done = 0
        self._names: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._prepare, args=(names, n_processes), daemon=True)
        self._thread.start()

    def _prepare(self, names: Sequence[str], n_processes: int) -> None:
        """Load what the cache has, and compile the rest."""
        missing = load_cached(names)
        if missing:
            show(f"compiling {len(missing)} kernel{'s' * (len(missing) > 1)}, the first time only\n")
        self.total = len(missing)
        for name in missing:
            self._names.put(name)
        threads = [threading.Thread(target=self._drive, daemon=True) for _ in range(min(n_processes, self.total))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        load_cached(missing)
        forget_pages("libllvmlite.so")

    def _drive(self) -> None:
        """Start a process, and give it one name after another; where it ends early, the rest is for others."""
        paths = os.pathsep.join(path for path in sys.path if path)
        try:
            with subprocess.Popen(
                [sys.executable, "-m", __name__], env={**os.environ, "PYTHONPATH": paths}, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            ) as process:  # fmt: skip
                assert process.stdin is not None and process.stdout is not None
                while True:
                    print(self._names.get_nowait(), file=process.stdin, flush=True)
                    if not process.stdout.readline():
                        return
                    with self._lock:
                        self.done += 1
        except (OSError, queue.Empty):  # no further process is allowed, or nothing is left
            return

    def wait(self, until: Callable[[], object] = lambda: False) -> None:
        """Wait for all of it, or until `until` returns something true."""
        while self._thread.is_alive() and not until():
            self._thread.join(0.02)


def start(names: Sequence[str]) -> Compilation | None:
    """Start to load or compile kernels. None with only one core, or without a cache: each is compiled when needed."""
    if cpu_count() < 2 or cache_folder(softmax.compiled) is None:
        return None
    return Compilation(names, min(cpu_count(), MAX_PROCESSES))


def load_cached(names: Sequence[str]) -> list[str]:
    """Load those of these kernels that the cache on disk has; returns the names of the others."""
    k, missing = load("numba"), []
    with cached_only():
        for name in names:
            try:
                CALLS[name](k)
            except NotCached:
                missing.append(name)
    return missing


def main() -> None:
    """Compile the kernels whose names come on stdin, a line each, and answer with a line."""
    k = load("numba")
    for line in sys.stdin:
        CALLS[line.strip()](k)
        print(flush=True)


if __name__ == "__main__":
    main()
