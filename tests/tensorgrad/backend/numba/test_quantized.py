"""Products with quantised weights on Numba, against float64 mathematics with a bound for the error."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorgrad as tg
from tensorgrad.backend.quantization import BLOCK, FORMATS, QuantizedArray, quantize, scales_q8_0
from tests.processes import HANG_S
from tests.tensorgrad.backend.numba.reference import normal

numba = pytest.importorskip("numba")

linear_kernels = importlib.import_module("tensorgrad.backend.numba.linear")
macrokernel = importlib.import_module("tensorgrad.backend.numba.macrokernel")
pack = importlib.import_module("tensorgrad.backend.numba.pack")
quantized = importlib.import_module("tensorgrad.backend.numba.quantized")
quantized_blocks = importlib.import_module("tensorgrad.backend.numba.quantized_blocks")

KERNELS = quantized.create()
TYPES = sorted(FORMATS)
of_every_type = pytest.mark.parametrize("type", TYPES)
ROWS = [1, 2, 4, 5, 8, 9, quantized.MAX_ROWS, quantized.MAX_ROWS + 1]  # every kernel, with rows to fill up and without


def weight_of(m: int, n: int, type: str) -> QuantizedArray:
    return quantize(normal(m, n, dtype=np.float32) * np.geomspace(0.1, 10, m)[:, None], type)


def x_of(n_rows: int, n: int) -> Any:
    """Rows whose elements differ a lot in size, and which have a block of zeros."""
    x = normal(n_rows, n, dtype=np.float32) * np.float32(10) ** normal(n_rows, n, dtype=np.float32)
    x[0, :BLOCK] = 0
    return x


def bound(x: Any, q: QuantizedArray, bias: Any) -> Any:
    """The largest error of x @ weights^T + bias: of half a step of int16 in every x, and of float32's arithmetic.

    Each of fewer than 2 n roundings is at most 2^-24 of a partial sum. Terms of q4_0 and q4_1 are up to twice as large
    as the largest weight of their block.
    """
    weights = abs(q.dequantize().astype(np.float64))
    largest = abs(x.astype(np.float64)).reshape(len(x), -1, BLOCK).max(axis=2)
    step = np.repeat(largest, BLOCK, axis=1) / quantized_blocks.LARGEST / 2
    in_block = weights.reshape(len(weights), -1, BLOCK).max(axis=2).repeat(BLOCK, axis=1)
    scale = 2 * (abs(x) + step) @ in_block.T
    return 1.001 * step @ weights.T + 2**-23 * x.shape[1] * (scale + (0 if bias is None else abs(bias)))


@of_every_type
@settings(max_examples=30)
@given(
    n_rows=st.sampled_from(ROWS), m=st.one_of(st.integers(1, 70), st.just(400)), n_blocks=st.integers(1, 13),
    with_bias=st.booleans(), threads=st.integers(2, 7),
)  # fmt: skip
def test_linear(type: str, n_rows: int, m: int, n_blocks: int, with_bias: bool, threads: int) -> None:
    """Rows and weights that fill up the groups that are computed at a time, and that do not; any number of threads."""
    x, q = x_of(n_rows, n_blocks * BLOCK), weight_of(m, n_blocks * BLOCK, type)
    bias = normal(m, dtype=np.float32) if with_bias else None
    y = KERNELS.linear(x, q, bias)
    expected = x.astype(np.float64) @ q.dequantize().astype(np.float64).T + (0 if bias is None else bias)
    assert (abs(y - expected) <= bound(x, q, bias)).all()
    KERNELS.threads, before = threads, KERNELS.threads
    try:
        np.testing.assert_array_equal(KERNELS.linear(x, q, bias), y)
    finally:
        KERNELS.threads = before


@of_every_type
def test_it_is_as_good_as_float32(type: str) -> None:
    """The error from rounding x to int16, relative to results of this size, is that of 16 bits and not of 8."""
    x, q = normal(8, 576, dtype=np.float32), weight_of(300, 576, type)
    expected = x.astype(np.float64) @ q.dequantize().astype(np.float64).T
    error = abs(KERNELS.linear(x, q, None) - expected) / abs(expected).mean(axis=0)
    assert error.max() < 2**-12


@of_every_type
def test_a_row_does_not_depend_on_the_other_rows(type: str) -> None:
    """So a generated text does not depend on the other texts of its batch."""
    x, q = x_of(quantized.MAX_ROWS, 7 * BLOCK), weight_of(45, 7 * BLOCK, type)
    alone = np.concatenate([KERNELS.linear(row[None], q, None) for row in x])
    for n in (2, 5, 8, 11, len(x)):
        np.testing.assert_array_equal(KERNELS.linear(x[:n], q, None), alone[:n])


@of_every_type
@pytest.mark.parametrize("n_rows", ROWS)
def test_nan_and_infinity_stay_in_their_row_and_column(type: str, n_rows: int) -> None:
    x, q = x_of(n_rows, 3 * BLOCK), weight_of(19, 3 * BLOCK, type)
    blocks = q.blocks.copy()
    blocks[18, FORMATS[type].n_bytes : FORMATS[type].n_bytes + 2] = 0, 0x7C  # the scale of the second block: infinity
    x[-1, 20] = np.inf if n_rows % 2 else np.nan
    bad = np.zeros((n_rows, 19), bool)
    bad[-1], bad[:, 18] = True, True
    y = KERNELS.linear(x, QuantizedArray(type, q.shape, blocks), None)
    np.testing.assert_array_equal(~np.isfinite(y), bad)


@of_every_type
def test_very_small_and_very_large_numbers(type: str) -> None:
    q = weight_of(5, BLOCK, type)
    exact = q.dequantize().astype(np.float64)
    for size in (1e-44, 1e-38, 1e-31, 1e-29, 1e30):
        x = np.full((1, BLOCK), size, np.float32)
        y, expected = KERNELS.linear(x, q, None), x.astype(np.float64) @ exact.T
        assert (abs(y - expected) <= 1e-4 * size * abs(exact).sum(axis=1) + 1e-28).all()


@pytest.mark.parametrize("layout", [np.asfortranarray, lambda x: np.repeat(x, 2, -1)[..., ::2], lambda x: x[::-1]])
def test_any_layout_of_x_and_bias(layout: Any) -> None:
    q, x, bias = weight_of(40, 64, "q8_0"), normal(6, 64, dtype=np.float32), normal(40, dtype=np.float32)
    x.flags.writeable = bias.flags.writeable = False
    y = KERNELS.linear(np.ascontiguousarray(layout(x)), q, np.ascontiguousarray(layout(bias)))
    np.testing.assert_array_equal(KERNELS.linear(layout(x), q, layout(bias)), y)
    np.testing.assert_array_equal(KERNELS.linear(layout(x).reshape(2, 3, 64), q, layout(bias)), y.reshape(2, 3, 40))
    assert KERNELS.linear(x[:0], q, bias).shape == (0, 40)


@of_every_type
@pytest.mark.parametrize("n_rows", [1, 30])
def test_the_gradient_in_float32(type: str, n_rows: int) -> None:
    q = weight_of(700, 128, type)
    weights = q.dequantize().astype(np.float64)
    with tg.use_backend("numba"):
        x = tg.Tensor(normal(n_rows, 128, dtype=np.float32), requires_grad=True)
        dy = normal(n_rows, 700, dtype=np.float32)
        tg.linear(x, tg.Tensor(q)).backward(dy)
    assert (abs(x.grad - dy @ weights) <= 1e-5 * (abs(dy) @ abs(weights))).all()


@of_every_type
def test_every_scale_of_float16(type: str) -> None:
    """Subnormal numbers, infinities and NaN, with and without the processor's own conversion."""
    n_bytes = FORMATS[type].n_bytes
    blocks = np.random.default_rng(0).integers(0, 256, (2**16, n_bytes), np.uint8)
    blocks[:, :2] = np.arange(2**16, dtype="<u2")[:, None].view(np.uint8)
    if type == "q4_1":
        blocks[:, 2:4] = np.random.default_rng(1).permutation(blocks[:, :2])
    q = QuantizedArray(type, (2**16, BLOCK), blocks)
    with np.errstate(invalid="ignore"):
        expected = q.dequantize()
    np.testing.assert_array_equal(KERNELS.embedding(q, np.arange(2**16)), expected)
    one = np.zeros((1, BLOCK), np.float32)
    one[0, 5] = 1
    finite = np.isfinite(expected).all(axis=1)
    y = KERNELS.linear(one, q, None)[0]
    np.testing.assert_array_equal(np.isfinite(y), finite)
    y, exact, largest = y[finite], expected[finite, 5], abs(expected[finite]).max(axis=1)
    assert (abs(y - exact) <= 2e-6 * largest).all()


def checked_dots(values: Any, scales: Any, sums: Any, *rest: Any) -> Any:
    """`dots`, where rows that fill up a group must not hold what lay in memory: it might be denormal, which is slow."""
    assert (scales >= 0).all()
    return quantized_blocks.dots(values, scales, sums, *rest)


@pytest.mark.parametrize("threads", [1, 2, 5])
@of_every_type
def test_they_run_as_python(type: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gemm", "macrokernel", "store", "pack_transposed", "pack_panels"):
        monkeypatch.setattr(macrokernel, name, getattr(macrokernel, name).py_func)
    for module, name in ((pack, "pack_transposed"), (quantized, "pack_transposed"), (quantized, "aligned")):
        monkeypatch.setattr(module, name, getattr(module, name).py_func)
    monkeypatch.setattr(quantized, "gemm", macrokernel.gemm)
    monkeypatch.setattr(macrokernel, "pack_block", lambda *arguments: quantized.pack_dequantized.py_func(*arguments))
    x, q, bias = x_of(3, 2 * BLOCK), weight_of(37, 2 * BLOCK, type), normal(37, dtype=np.float32)
    x[1, BLOCK:] = 1e-35
    for b in (bias, bias[:0]):
        expected = x.astype(np.float64) @ q.dequantize().astype(np.float64).T + (b if b.size else 0)
        limit = bound(x, q, b if b.size else None)
        for rows in (range(1), range(4)):
            y = np.full((3, 37), np.nan, np.float32)
            with monkeypatch.context() as patch, np.errstate(all="ignore"):
                patch.setattr(quantized, "dots", checked_dots)
                patch.setattr(np, "empty", lambda shape, dtype: np.full(shape, -1, dtype))
                quantized.product(x, q.blocks, b, y, tuple(rows), threads)
            assert (abs(y - expected) <= limit).all()
        y = np.full((3, 37), np.nan, np.float32)
        with np.errstate(all="ignore"):
            quantized.dequantizing_product(x, q.blocks, b, y, threads)
        assert (abs(y - expected) <= limit).all()
    rows = np.empty((2, 2 * BLOCK), np.float32)
    quantized.dequantize_rows.py_func(q.blocks, np.array([36, 5]), rows)
    np.testing.assert_array_equal(rows, q.rows(np.array([36, 5])))


def test_scales_are_rounded_to_float16_as_by_numpy() -> None:
    """Normal and subnormal, too small and too large; and halfway between two, with 64 as the largest integer."""
    scales = quantized_blocks.scales_q8_0

    @numba.njit
    def of_all(x: Any, y: Any) -> None:
        for b in range(len(x)):
            scales(x, b, y[b])

    x = np.zeros((2**16, BLOCK), np.float32)
    bits = np.random.default_rng(0).integers(0, 2**11, 2**16) | 2**11
    x[:, 9] = np.ldexp(bits.astype(np.float32), np.random.default_rng(1).integers(-46, 15, 2**16))
    y = np.empty((len(x), 64), np.float32)
    of_all(x, y)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(y, scales_q8_0(x))


def test_quantising_runs_as_python() -> None:
    x = normal(40, BLOCK, dtype=np.float32)
    x[3] = np.arange(BLOCK)
    expected = quantize(x, "q8_0").blocks
    d, q = np.empty((40, 1), np.float32), np.empty((40, BLOCK), np.int8)
    quantized.quantize_q8_0.py_func(x, d[:, 0], q)
    np.testing.assert_array_equal(np.hstack([d.astype(np.float16).view(np.uint8), q.view(np.uint8)]), expected)


PROGRAM = """
import pathlib, re
import numpy as np
import tensorgrad as tg

tg.use_backend("numba")
rng = np.random.default_rng(0)

def run(m, n):
    weight = tg.Tensor(tg.QuantizedArray("q4_0", (m, n), rng.integers(0, 60, (m, n // 32 * 18), np.uint8)))
    for n_rows in (1, 3, 8, 40):
        x = tg.Tensor(rng.standard_normal((n_rows, n)).astype(np.float32), requires_grad=True)
        tg.linear(x, weight).backward(np.ones((n_rows, m), np.float32))
    tg.embedding(weight, np.arange(40))
    return weight.data

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) / 1024

def now():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) / 1024

run(64, 512)  # compiles
before = now()
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak from now on
q = run(8192, 4096)
print(peak() - before, q.nbytes / 2**20, q.size * 4 / 2**20)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a peak since some moment")
def test_the_whole_matrix_is_never_dequantised() -> None:
    """By the peak of a process's memory, which the matrix in float32 alone would exceed."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=False, capture_output=True, text=True, timeout=HANG_S
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    grown, stored, whole = map(float, result.stdout.split())
    assert whole > 6 * stored
    assert grown < stored + whole / 2
