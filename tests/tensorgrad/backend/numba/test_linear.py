"""Matrix products of the numba backend against the plain array code, value by value."""

import importlib
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tensorgrad.backend import load
from tests.tensorgrad.backend.numba.reference import DTYPES, TOLERANCE, Plain, normal, require_initialised_operands

numba = pytest.importorskip("numba")
ir = pytest.importorskip("llvmlite.ir")
llvm = pytest.importorskip("llvmlite.binding")

linear = importlib.import_module("tensorgrad.backend.numba.linear")
linear_skinny = importlib.import_module("tensorgrad.backend.numba.linear_skinny")
macrokernel = importlib.import_module("tensorgrad.backend.numba.macrokernel")
microkernel = importlib.import_module("tensorgrad.backend.numba.microkernel")
pack = importlib.import_module("tensorgrad.backend.numba.pack")


@pytest.fixture(autouse=True)
def use_kernels_for_small_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "MIN_PARALLEL_MULTIPLICATIONS", 0)


LAYOUTS = {
    "C order": lambda x: x,
    "Fortran order": np.asfortranarray,
    "part of wider rows": lambda x: np.pad(x, ((0, 0), (1, 2)))[:, 1:-2],
    "every other column": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "reversed": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
}
SIZES = st.one_of(st.integers(1, 40), st.sampled_from([65, 127, 128, 136, 384, 385, 400, 515]))

PAIRS = {
    "matrices": lambda a: (a(5, 7), a(7, 3)),
    "wide": lambda a: (a(3, 5), a(5, 70)),
    "one row": lambda a: (a(1, 7), a(7, 3)),
    "one column": lambda a: (a(5, 7), a(7, 1)),
    "one inner": lambda a: (a(5, 1), a(1, 3)),
    "one of each": lambda a: (a(1, 1), a(1, 1)),
    "rows of a batch": lambda a: (a(2, 5, 7), a(7, 3)),
    "transposed": lambda a: (a(7, 5).T, a(3, 7).T),
    "stacks": lambda a: (a(2, 3, 5, 7), a(2, 3, 7, 4)),
    "stacks, transposed": lambda a: (a(2, 3, 7, 5).swapaxes(-1, -2), a(2, 3, 4, 7).swapaxes(-1, -2)),
    "heads of a projection": lambda a: (a(2, 5, 3, 4).swapaxes(1, 2), a(2, 3, 4, 6)),
    "stacks that broadcast": lambda a: (a(3, 1, 5, 7), a(2, 7, 4)),
    "every other row": lambda a: (a(10, 7)[::2], a(7, 3)),
    "every other column": lambda a: (a(5, 14)[:, ::2], a(7, 6)[:, ::2]),
    "reversed": lambda a: (a(5, 7)[::-1], a(7, 3)[:, ::-1]),
    "stride 0": lambda a: (np.broadcast_to(a(7), (5, 7)), np.broadcast_to(a(7, 1), (7, 3))),
    "empty": lambda a: (a(0, 7), a(7, 3)),
    "empty inner": lambda a: (a(5, 0), a(0, 3)),
    "large": lambda a: (a(130, 64), a(64, 257)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PAIRS)
def test_matmul(name: str, dtype: Any) -> None:
    a, b = PAIRS[name](lambda *shape: normal(*shape, dtype=dtype))
    y = load("numba").matmul(a, b)
    assert y.dtype == dtype
    np.testing.assert_allclose(y, Plain().matmul(a, b), rtol=0, atol=20 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 8), (5, 8), (2, 3, 8), (2, 1, 8), (1, 8), (70, 8)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear(shape: tuple[int, ...], with_bias: bool, dtype: Any) -> None:
    x, weight = normal(*shape, dtype=dtype), normal(6, 8, dtype=dtype)
    bias = normal(6, dtype=dtype) if with_bias else None
    expected = Plain().linear(x, weight, bias)
    np.testing.assert_allclose(load("numba").linear(x, weight, bias), expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n_rows=st.integers(1, linear_skinny.MAX_SKINNY_ROWS), n_inner=SIZES, m=SIZES, data=st.data())
def test_skinny_linear(
    dtype: Any, n_rows: int, n_inner: int, m: int, data: st.DataObject
) -> None:
    """Sizes that are multiples of a group or a vector, and sizes that are not; any number of threads."""
    x, weight = normal(n_rows, n_inner, dtype=dtype), normal(m, n_inner, dtype=dtype)
    bias = normal(m if data.draw(st.booleans()) else 0, dtype=dtype)
    results = [np.full((n_rows, m), np.nan, dtype) for _ in range(2)]
    for y, threads in zip(results, (1, data.draw(st.integers(2, 7))), strict=True):
        linear_skinny.skinny_linear(x, weight, bias, y, threads)
    expected = x.astype(np.float64) @ weight.astype(np.float64).T + (bias if bias.size else 0)
    np.testing.assert_allclose(results[0], expected, rtol=0, atol=TOLERANCE[dtype] * n_inner)
    np.testing.assert_array_equal(*results)  # any number of threads gives the same bits


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_a_skinny_product_does_not_depend_on_the_other_rows(dtype: Any) -> None:
    """So a generated text does not depend on the other texts of its batch."""
    x, weight, bias = (normal(*shape, dtype=dtype) for shape in ((linear_skinny.MAX_SKINNY_ROWS, 77), (45, 77), (45,)))
    alone = np.empty((len(x), 45), dtype)
    for i in range(len(x)):
        linear_skinny.skinny_linear(x[i : i + 1], weight, bias, alone[i : i + 1], 2)
    for n in range(1, linear_skinny.MAX_SKINNY_ROWS + 1):
        y = np.empty((n, 45), dtype)
        linear_skinny.skinny_linear(x[:n], weight, bias, y, 2)
        np.testing.assert_array_equal(y, alone[:n])


def test_rows_too_long_to_prefetch_the_next_group() -> None:
    n = linear_skinny.MAX_GROUP_PREFETCH_BYTES // 8  # eight rows of float32: four times the limit
    x, weight, y = normal(1, n, dtype=np.float32), normal(9, n, dtype=np.float32), np.empty((1, 9), np.float32)
    linear_skinny.skinny_linear(x, weight, weight[:0, 0], y, 2)
    expected = x.astype(np.float64) @ weight.astype(np.float64).T
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-2)


@pytest.mark.parametrize("x_layout", ["C order", "every other column", "reversed"])
@pytest.mark.parametrize("layout", ["C order", "Fortran order", "part of wider rows", "every other column", "reversed"])
@pytest.mark.parametrize("n_rows", [1, 3, 4, 7])
def test_linear_of_any_layout(n_rows: int, layout: str, x_layout: str) -> None:
    x, weight, bias = (normal(*shape, dtype=np.float32) for shape in ((n_rows, 21), (66, 21), (132,)))
    bias = bias[::-2]
    bias.flags.writeable = layout != "C order"
    y = load("numba").linear(LAYOUTS[x_layout](x), LAYOUTS[layout](weight), bias)
    np.testing.assert_allclose(y, Plain().linear(x, weight, bias), rtol=0, atol=20 * TOLERANCE[np.float32])


@pytest.mark.parametrize("n_rows", [1, 2, 3, 4])
def test_nan_and_infinity_stay_in_their_row_and_column_of_a_skinny_product(n_rows: int) -> None:
    """The last row of weight fills up a group; the last row of x fills up the rows that a kernel is compiled for."""
    x, weight = normal(n_rows, 21, dtype=np.float32), normal(19, 21, dtype=np.float32)
    x[-1, 20], weight[18, 3] = np.inf, np.nan
    bad = np.zeros((n_rows, 19), bool)
    bad[-1], bad[:, 18] = True, True
    np.testing.assert_array_equal(~np.isfinite(load("numba").linear(x, weight, None)), bad)


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_matmul_adds_in_place(dtype: Any) -> None:
    a, b, c = (normal(*shape, dtype=dtype) for shape in ((5, 7), (7, 3), (5, 3)))
    expected, kept = c + a @ b, c
    load("numba").add_matmul(c, a, b)
    assert c is kept
    np.testing.assert_allclose(c, expected, rtol=0, atol=TOLERANCE[dtype])


def test_half_precision_and_integers_use_numpy() -> None:
    k = load("numba")
    x = normal(3, 4, dtype=np.float16)
    assert k.matmul(x, x.T).dtype == np.float16
    assert k.linear(x, x, None).dtype == np.float16
    assert k.matmul(np.eye(3, dtype=int), np.ones((3, 2), int)).tolist() == [[1, 1]] * 3


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(m=SIZES, n_inner=SIZES, n=SIZES, data=st.data())
def test_products_of_all_sizes_and_layouts(dtype: Any, m: int, n_inner: int, n: int, data: st.DataObject) -> None:
    """Sizes that are multiples of the blocks and sizes that are not; more parts than threads."""
    a_layout, b_layout = (LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))] for _ in range(2))
    add, with_bias, threads = data.draw(st.booleans()), data.draw(st.booleans()), data.draw(st.integers(1, 5))
    a, b = normal(m, n_inner, dtype=dtype), normal(n_inner, n, dtype=dtype)
    bias, c = normal(n if with_bias else 0, dtype=dtype), normal(m, n + 3, dtype=dtype)
    expected, rest = a @ b + add * c[:, :n] + (bias if with_bias else 0), c[:, n:].copy()
    macrokernel.parallel_product(a_layout(a), b_layout(b), c[:, :n], bias, add, threads)
    np.testing.assert_allclose(c[:, :n], expected, rtol=0, atol=TOLERANCE[dtype] * n_inner)
    np.testing.assert_array_equal(c[:, n:], rest)  # nothing is written outside c


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [162, 170])  # the last 2 columns are dot products, the last 10 a panel
def test_any_number_of_threads_gives_a_product_of_the_same_bits(n: int, dtype: Any) -> None:
    a, b = normal(150, 400, dtype=dtype), normal(400, n, dtype=dtype)
    results = []
    for threads in (1, 2, 3, 7):
        c = np.empty((150, n), dtype)
        macrokernel.parallel_product(a, b, c, c[0, :0], False, threads)
        results.append(c)
    assert all(np.array_equal(results[0], c) for c in results)


@pytest.mark.parametrize("n", [33, 37])  # the last column is a dot product, or in a panel
def test_nan_and_infinity_stay_in_their_row_and_column(n: int) -> None:
    """The padding of packed panels and of the last rows must not spread them."""
    a, b = normal(9, 5, dtype=np.float32), normal(5, n, dtype=np.float32)
    a[8, 2], b[3, n - 1] = np.inf, np.nan
    y = load("numba").matmul(a, b)
    bad = np.zeros((9, n), bool)
    bad[8], bad[:, n - 1] = True, True
    np.testing.assert_array_equal(~np.isfinite(y), bad)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_products_run_as_python(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gemm", "macrokernel", "store", "pack_transposed", "pack_panels"):
        monkeypatch.setattr(macrokernel, name, getattr(macrokernel, name).py_func)
    monkeypatch.setattr(pack, "pack_transposed", pack.pack_transposed.py_func)
    require_initialised_operands(monkeypatch, macrokernel)
    a, b = normal(9, 4, dtype=np.float64), normal(4, 34, dtype=np.float64)
    for x, y in ((a, b), (b.T, a.T), (a[::-1, ::2], b[::2, ::-1]), (np.asfortranarray(a), np.asfortranarray(b))):
        bias, c = normal(y.shape[1], dtype=np.float64), np.ones((len(x), y.shape[1]))
        macrokernel.parallel_product.py_func(x, y, c, bias, True, threads)
        np.testing.assert_allclose(c, 1 + x @ y + bias)
    x, weight = normal(3, 7, dtype=np.float64), normal(41, 7, dtype=np.float64)
    for bias in (weight[:0, 0], normal(len(weight), dtype=np.float64)):
        for compiled_for, rows in ((2, (1, 2)), (4, (0, 1, 2, 2))):
            y = np.zeros((3, len(weight)))
            linear_skinny.SKINNY_KERNELS[compiled_for].py_func(x, weight, bias, y, rows, threads)
            expected = x @ weight.T + (bias if bias.size else 0)
            np.testing.assert_allclose(y, [expected[i] if i in rows else np.zeros(len(weight)) for i in range(3)])
    stack = normal(2, 3, 4, dtype=np.float64)
    c = np.empty((2, 3, 3))
    macrokernel.batched_product.py_func(stack, stack.swapaxes(1, 2), c)
    np.testing.assert_allclose(c, stack @ stack.swapaxes(1, 2))


# --- microkernel ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compiled", [True, False])
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n_rows=st.integers(1, 3), n_inner=st.integers(0, 40), n_columns=st.integers(1, 70), data=st.data())
def test_microkernels_make_up_a_product(
    dtype: Any, compiled: bool, n_rows: int, n_inner: int, n_columns: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, n_inner))
    last = data.draw(st.integers(first, n_inner))
    fortran, transposed, add = (data.draw(st.booleans()) for _ in range(3))
    a = normal(n_rows * microkernel.MR, n_inner, dtype=dtype)
    b = normal(n_inner, n_columns, dtype=dtype)
    nr = microkernel.nr_of(a)
    given = np.full((-(-n_columns // nr), n_inner, nr), np.nan, dtype)
    pack.pack_panels(np.asfortranarray(b) if transposed else b, given)
    c = normal(len(a), len(given) * nr, dtype=dtype)
    expected = a[:, first:last] @ b[first:last] + add * c[:, :n_columns]
    (multiply if compiled else multiply.py_func)(np.asfortranarray(a) if fortran else a, first, last, given, c, add)
    np.testing.assert_allclose(c[:, :n_columns], expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize(("scalar", "size"), [(ir.FloatType(), 4), (ir.DoubleType(), 8)])
@pytest.mark.parametrize(
    ("target", "cpu", "height", "vector_bytes", "registers"),
    [
        ("x86_64-unknown-linux-gnu", "haswell", 6, 32, 1),  # AVX2
        ("x86_64-unknown-linux-gnu", "skylake-avx512", 8, 64, 1),
        ("aarch64-unknown-linux-gnu", "neoverse-n1", 4, 32, 2),  # NEON: a vector takes two registers
    ],
)
def test_all_sums_stay_in_registers(
    target: str, cpu: str, height: int, vector_bytes: int, registers: int, scalar: Any, size: int, transposed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In the machine code of the inner loop, also for processors that this one is not."""
    monkeypatch.setattr(microkernel, "MR", height)
    monkeypatch.setattr(microkernel, "VECTOR_BYTES", vector_bytes)
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = ir.Module()
    microkernel.microkernel_function(module, scalar, size, transposed).linkage = "external"
    machine = llvm.Target.from_triple(target).create_target_machine(cpu=cpu, features="-prefer-256-bit", opt=3)
    compiled = llvm.parse_assembly(str(module))
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(compiled, passes)
    loops = re.split(r"\n(?=\.L\w+:)", machine.emit_assembly(compiled))
    counts = [len(re.findall(r"\b(?:vfmadd|fmla)", loop)) for loop in loops]
    assert max(counts) == microkernel.UNROLL * height * microkernel.NR_VECTORS * registers
    to_stack = r"[xyz]mm\d+, \S*\(%rsp\)|\(%rsp\), %[xyz]mm|(?:ld|st)[rp]\s+q.*\[sp"
    assert re.findall(to_stack, loops[np.argmax(counts)]) == []


@numba.njit
def multiply(a: Any, first: int, last: int, given: Any, c: Any, add: bool) -> None:
    for row in range(0, a.shape[0], microkernel.MR):
        for p in range(len(given)):
            microkernel.microkernel(a, row, first, last, given, p, c, row, p * given.shape[2], add)
