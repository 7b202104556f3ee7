"""A second process that compiles the kernels for backward and the optimizer, while the first one compiles forward.

Compiling uses one core. The second process writes to the cache on disk, where the first one finds the kernels when it
needs them. A kernel that is not there yet the first process compiles itself.
"""

import functools
import os
import subprocess
import sys

import numpy as np

from tensorgrad.backend import load
from tensorgrad.backend.numba.attention_backward import backward
from tensorgrad.backend.numba.parallel import MIN_PARALLEL_ELEMENTS
from tensorgrad.backend.threads import cpu_count

ROW_ELEMENTS = 128


@functools.cache
def start() -> "subprocess.Popen[bytes] | None":
    """Start the process, once; None if there is only one core, or if the kernels are in the cache already."""
    if cpu_count() < 2 or backward.is_kept():
        return None
    paths = os.pathsep.join(path for path in sys.path if path)
    quiet = subprocess.DEVNULL
    try:
        return subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=quiet, stdout=quiet, stderr=quiet,
            env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip
    except OSError:  # no further process is allowed: this one compiles everything
        return None


def compile_backward() -> None:
    """Run the kernels of backward and of the optimizer in float32, in the order in which a training step needs them."""
    k = load("numba")
    for n_rows in (2 * MIN_PARALLEL_ELEMENTS // ROW_ELEMENTS, 8):  # the parallel and the serial version
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
