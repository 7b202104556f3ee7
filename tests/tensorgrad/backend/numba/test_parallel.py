"""`prange`: a kernel's loop on all threads of every threading layer, its errors, and what its threads may not write."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.processes import HANG_S

numba = pytest.importorskip("numba")

from tensorgrad.backend.numba import parallel  # noqa: E402
from tensorgrad.backend.numba.parallel import ALONE, START, kernel, prange  # noqa: E402

ROOT = Path(__file__).parents[4]


@kernel
def count(counts: Any, of_how_many: Any, thread: Any = ALONE) -> None:
    """Add 1 to every element, and note the number of parts."""
    for i in prange(counts.size, thread):
        counts[i] += 1
        of_how_many[i] = thread[1]


@pytest.mark.parametrize("n_threads", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [0, 1, 2, 5, 6, 7, 100])
def test_the_parts_are_the_whole_in_order_and_of_nearly_one_size(n: int, n_threads: int) -> None:
    parts = [prange(n, (number, n_threads)) for number in range(n_threads)]
    assert [i for part in parts for i in part] == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert list(prange(n, START)) == list(prange(n, ALONE)) == list(range(n))


@pytest.mark.parametrize("n", [0, 1, 2, 5, 1000, 2**15, 2**15 + 3])
def test_every_index_is_computed_once(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "MIN_PARALLEL_ELEMENTS", 0)
    before = numba.get_num_threads()
    try:
        for n_threads in range(1, before + 1):
            numba.set_num_threads(n_threads)
            counts, of_how_many = np.zeros(n), np.zeros(n)
            count(counts, of_how_many)
            assert (counts == 1).all() and (of_how_many == n_threads).all()
    finally:
        numba.set_num_threads(before)


def test_small_arrays_are_left_to_the_calling_thread() -> None:
    counts, of_how_many = np.zeros(8), np.zeros(8)
    count(counts, of_how_many)
    assert (counts == 1).all() and (of_how_many == 1).all()


@kernel
def fail_at(x: Any, place: int, thread: Any = ALONE) -> None:
    """Raise an error where a thread comes to `place`."""
    for i in prange(x.size, thread):
        if i == place:
            raise ValueError("this one")
        x[i] = 1


@pytest.mark.parametrize("place", [0, 2**15 - 1])
def test_an_error_of_any_thread_is_raised(place: int) -> None:
    x = np.zeros(2**15)
    with pytest.raises(ValueError, match="this one"):
        fail_at(x, place)
    fail_at(x, -1)
    assert (x == 1).all()


LAYERS = """
import numpy as np, numba
from tensorgrad.backend.numba.parallel import kernel, prange

@kernel
def count(counts, of_how_many, thread):
    for i in prange(counts.size, thread):
        counts[i] += 1
        of_how_many[i] = thread[1]

counts, of_how_many = np.zeros(2**15), np.zeros(2**15)
for _ in range(20):
    count(counts, of_how_many)
print(numba.threading_layer(), counts.min(), counts.max(), of_how_many.min(), of_how_many.max())
"""


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_threading_layers(layer: str) -> None:
    environment = {**os.environ, "NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "3", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", LAYERS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [layer, "20.0", "20.0", "3.0", "3.0"]


@kernel
def row_sums(x: Any, y: Any, thread: Any = ALONE) -> None:
    """y = the sums of rows, of which it takes views: they have no owner."""
    for i in prange(x.shape[0], thread):
        row = x[i]
        total = 0.0
        for j in range(row.size):
            total += row[j]
        y[i] = total


def test_no_reference_is_left() -> None:
    x, y = np.ones((2**10, 2**6)), np.zeros(2**10)
    before = sys.getrefcount(x)
    for _ in range(3):
        row_sums(x, y)
    assert sys.getrefcount(x) == before and (y == 2**6).all()
