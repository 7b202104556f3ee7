"""Which matrix products are left to NumPy's library, mostly OpenBLAS: those that it computes clearly faster here.

Which of the two is faster depends on the processor and on the shape. So both are timed at the first large product, for
at most MAX_SECONDS, and the result is kept beside the compiled kernels. They round differently: the choice is a part of
what a run depends on, and checkpoints store it. TENSORGRAD_PRODUCTS=numba or numpy forces one of them.
"""

import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba.core.registry import cpu_target

from tensorgrad.backend import blas
from tensorgrad.backend.arrays import Array
from tensorgrad.backend.numba.compile import cache_folder, digest
from tensorgrad.backend.numba.macrokernel import parallel_product

FLOAT32 = np.dtype(np.float32)
MIN_SIDE = 64  # rows, inner length and columns
MIN_MULTIPLICATIONS, MIN_LARGE_MULTIPLICATIONS = 2**22, 2**27
TIMED_SHAPES = {"small": (384, 128, 256), "large": (256, 768, 768)}  # rows, inputs and outputs of a linear layer
KINDS = tuple(f"{size} {product}" for size in TIMED_SHAPES for product in ("forward", "dx", "dweight"))

MAX_SECONDS = 0.3
MIN_PAIRS = 3
MIN_GAIN = 1.05  # time of the kernels / time of NumPy's library

Times = dict[str, list[tuple[float, float]]]  # of each kind, pairs of seconds: by the kernels, by NumPy's library


def kind_of(a: Array, b: Array) -> str | None:
    """Which of KINDS the product a (..., m, k) @ b (k, n) is; None for one that the kernels always compute.

    A forward product reads weight^T, and the gradient of a weight dy^T.
    """
    k, n = b.shape
    m = a.size // k
    multiplications = m * k * n
    if multiplications < MIN_MULTIPLICATIONS or min(m, k, n) < MIN_SIDE:
        return None
    size = "large" if multiplications >= MIN_LARGE_MULTIPLICATIONS else "small"
    product = "dweight" if a.strides[-1] != a.itemsize else "dx" if b.strides[-1] == b.itemsize else "forward"
    return f"{size} {product}"


def forced() -> frozenset[str] | None:
    """The kinds that TENSORGRAD_PRODUCTS leaves to NumPy's library: all or none; None where it is not set."""
    name = os.environ.get("TENSORGRAD_PRODUCTS", "")
    if name not in ("", "numba", "numpy"):
        raise ValueError(f"TENSORGRAD_PRODUCTS is {name!r}: give numba for the kernels' products, numpy for NumPy's")
    return None if not name else frozenset(KINDS if name == "numpy" else ())


def faster_by_numpy(ours: Any, numpys: Any) -> frozenset[str]:
    """The kinds that NumPy's library computes faster here, measured once for this machine.

    ours, numpys: new backends that leave nothing, and everything, to it. Where the result cannot be kept, it is none:
    another process might find others, and two runs would not have the same bits.
    """
    kernel = parallel_product.compiled.get(FLOAT32) or parallel_product.compile(FLOAT32)
    folder = cache_folder(kernel)
    if folder is None:
        return frozenset()
    path = folder / f"products-{_fingerprint()}.json"
    kinds = _read(path)
    if kinds is None:
        kinds = clearly_faster(measure(ours, numpys))
        if not _write(path, kinds):
            return frozenset()
    return kinds


def measure(ours: Any, numpys: Any) -> Times:
    """Time both in turn, for at most MAX_SECONDS.

    On one thread, so that programs on other cores disturb neither, unless NumPy's library keeps to threads of its own.
    """
    end, slowest = time.perf_counter() + MAX_SECONDS, 0.0
    calls = {f"{size} {name}": call for size in TIMED_SHAPES for name, call in _calls(*TIMED_SHAPES[size]).items()}
    times: Times = {kind: [] for kind in calls}
    n_threads = numba.get_num_threads()
    ours.threads = numpys.threads = 1 if blas.find() else n_threads
    numba.set_num_threads(ours.threads)
    try:
        for kind, call in itertools.cycle(calls.items()):
            if time.perf_counter() + 4 * slowest > end:
                break
            pair = _seconds(call, ours), _seconds(call, numpys)
            times[kind].append(pair)
            slowest = max(slowest, *pair)
    finally:
        numba.set_num_threads(n_threads)
    return times


def _seconds(call: Callable[[Any], Array], k: Any) -> float:
    """How long the call takes the second time, with its operands in the cache."""
    call(k)
    start = time.perf_counter()
    call(k)
    return time.perf_counter() - start


def clearly_faster(times: Times) -> frozenset[str]:
    """The kinds that NumPy's library computes faster by MIN_GAIN in three quarters of the measurements, and of enough.

    A tie, or a busy machine, leaves them to the kernels.
    """
    gains = {kind: sorted(ours / numpys for ours, numpys in pairs) for kind, pairs in times.items()}
    return frozenset(kind for kind, gain in gains.items() if len(gain) >= MIN_PAIRS and gain[len(gain) // 4] > MIN_GAIN)


def _calls(rows: int, inputs: int, outputs: int) -> dict[str, Callable[[Any], Array]]:
    """The products of a linear layer as a training step calls them."""
    x, dy = np.ones((rows, inputs), FLOAT32), np.ones((rows, outputs), FLOAT32)
    weight, bias = np.ones((outputs, inputs), FLOAT32), np.ones(outputs, FLOAT32)
    return {
        "forward": lambda k: k.linear(x, weight, bias),
        "dx": lambda k: k.linear_backward_x(dy, weight),
        "dweight": lambda k: k.linear_backward_weight(dy, x),
    }


def _fingerprint() -> str:
    """A hash of all that the times depend on: the processor, NumPy and its library, and the kernels."""
    processor = cpu_target.target_context.codegen().magic_tuple()
    library = blas.find()
    depends = processor, np.__version__, library and library.name(), digest(Path(__file__).parent)
    return hashlib.sha256(repr(depends).encode()).hexdigest()[:16]


def _read(path: Path) -> frozenset[str] | None:
    """What an earlier process kept; None if there is nothing, or if it is damaged."""
    try:
        kinds = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return frozenset(kinds) if isinstance(kinds, list) and all(kind in KINDS for kind in kinds) else None


def _write(path: Path, kinds: Iterable[str]) -> bool:
    """Keep the result; return whether that was possible. A file that is cut short is no JSON, and is measured again."""
    try:
        path.write_text(json.dumps(sorted(kinds)))
    except OSError:
        return False
    return True
