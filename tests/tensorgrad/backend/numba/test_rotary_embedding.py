"""Numba's kernel of the rotary embedding, compared with the plain mathematics."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from tensorgrad.backend.math import Math
from tensorgrad.backend.numba import NumbaBackend, rotary_embedding


class Plain(Math):
    xp = np


PLAIN, FAST = Plain(), NumbaBackend()
TOLERANCE = {"float32": 2e-6, "float64": 1e-13}
SHAPES = [(1, 2), (7, 4), (3, 5, 8), (2, 3, 5, 6), (2, 9, 31, 64)]  # the last one is large enough for threads


def inputs(shape: tuple[int, ...], dtype: str, per_row: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(dtype)
    positions = rng.integers(0, 500, shape[-2])
    if per_row and len(shape) > 2:  # the first axis has positions of its own, the heads share them
        positions = rng.integers(0, 500, (shape[0], *(1 for _ in shape[1:-2]), shape[-2]))
    return x, positions


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_plain_mathematics(shape: tuple[int, ...], dtype: str, per_row: bool, inverse: bool) -> None:
    x, positions = inputs(shape, dtype, per_row)
    expected = PLAIN.rotary_embedding(x, positions, 10000.0, inverse)
    got = FAST.rotary_embedding(x, positions, 10000.0, inverse)
    assert got.dtype == x.dtype
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE[dtype])


def test_reads_the_heads_of_a_projection_in_place() -> None:
    x = np.random.default_rng(1).standard_normal((2, 5, 3, 8)).astype(np.float32).transpose(0, 2, 1, 3)
    read_only = x.copy()
    read_only.flags.writeable = False
    expected = PLAIN.rotary_embedding(x, np.arange(5), 500.0)
    for given in (x, read_only, np.asfortranarray(x), np.ascontiguousarray(x[:, :, ::-1])[:, :, ::-1]):
        np.testing.assert_allclose(FAST.rotary_embedding(given, np.arange(5), 500.0), expected, rtol=0, atol=1e-6)


def test_nothing_to_rotate_and_half_precision_are_left_to_the_plain_mathematics() -> None:
    for x in (np.ones((0, 4), np.float32), np.ones((2, 3, 0, 4), np.float32), np.ones((2, 4), np.float16)):
        got, expected = (k.rotary_embedding(x, np.arange(x.shape[-2]), 10.0) for k in (FAST, PLAIN))
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == x.dtype


def test_any_number_of_threads_gives_the_same_bits() -> None:
    x, positions = inputs(SHAPES[-1], "float32", False)
    before = numba.get_num_threads()
    results = []
    try:
        for n in (1, before):
            numba.set_num_threads(n)
            results.append(FAST.rotary_embedding(x, positions, 10000.0))
    finally:
        numba.set_num_threads(before)
    one_by_one = [FAST.rotary_embedding(row, positions, 10000.0) for row in x]  # the serial version
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], one_by_one)


def test_the_kernel_runs_as_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotary_embedding, "contiguous_row", lambda row: row)
    monkeypatch.setattr(rotary_embedding, "rotate", rotary_embedding.rotate.py_func)
    x, positions = inputs((2, 3, 5, 6), "float64", True)
    expected = PLAIN.rotary_embedding(x, positions, 10000.0)
    np.testing.assert_allclose(FAST.rotary_embedding(x, positions, 10000.0), expected, rtol=0, atol=1e-13)
