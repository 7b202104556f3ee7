"""A second process that compiles what the end of a first training step needs, while the first compiles its beginning.

Compiling keeps one core busy. What the other one compiles goes through the cache on disk: the first process finds it
there when it comes to it, or, where it came sooner, compiles it itself.
"""

import functools
import os
import subprocess
import sys

import numpy as np

from tensorgrad.backend import load
from tensorgrad.backend.numba.attention_backward import backward
from tensorgrad.backend.numba.compile import MIN_PARALLEL_ELEMENTS
from tensorgrad.backend.threads import cpu_count

ROW_ELEMENTS = 128


@functools.cache
def start() -> "subprocess.Popen[bytes] | None":
    """Start it, once; None where one core is all there is, or what it would compile is there already."""
    if cpu_count() < 2 or backward.is_kept():
        return None
    paths = os.pathsep.join(path for path in sys.path if path)
    quiet = subprocess.DEVNULL
    try:
        return subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=quiet, stdout=quiet, stderr=quiet,
            env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip
    except OSError:  # no room for another process: this one compiles all
        return None


def compile_backward() -> None:
    """Run the kernels of backward and of the update in float32, in the order in which a step comes to them."""
    k = load("numba")
    for n_rows in (2 * MIN_PARALLEL_ELEMENTS // ROW_ELEMENTS, 8):  # shared among threads, and on one
        x, row = np.ones((n_rows, ROW_ELEMENTS), np.float32), np.ones((n_rows, 1), np.float32)
        k.layer_norm_backward(x, x, x[0], row, row, None, (True, True, False))
        k.gelu_tanh_recompute(x.copy(), x.copy())
        if n_rows > 8:
            q = np.ones((4, 4, 64, 64), np.float32)
            k.attention_backward(q, q, q, q, q, q[..., :1], True, None, None, 1.0)
        k.global_norm([x])
        k.scale([x], 1.0)
        k.adamw(x, x, x.copy(), x.copy(), lr=0.0, beta1=0.9, beta2=0.9, eps=1.0, weight_decay=0.0, step=1)


if __name__ == "__main__":
    compile_backward()
