"""Matrix products and attention of the numba backend against the plain mathematics, value by value."""

import importlib
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tensorgrad as tg
from tensorgrad.backend import load
from tensorgrad.backend.runtime import Backend

numba = pytest.importorskip("numba")

macrokernel = importlib.import_module("tensorgrad.backend.numba.macrokernel")
linear_skinny = importlib.import_module("tensorgrad.backend.numba.linear_skinny")
linear = importlib.import_module("tensorgrad.backend.numba.linear")
attention = importlib.import_module("tensorgrad.backend.numba.attention")
attention_decode = importlib.import_module("tensorgrad.backend.numba.attention_decode")
attention_columns = importlib.import_module("tensorgrad.backend.numba.attention_columns")
attention_forward = importlib.import_module("tensorgrad.backend.numba.attention_forward")
attention_backward = importlib.import_module("tensorgrad.backend.numba.attention_backward")
reductions = importlib.import_module("tensorgrad.backend.numba.reductions")
pack = importlib.import_module("tensorgrad.backend.numba.pack")
microkernel = importlib.import_module("tensorgrad.backend.numba.microkernel")

DTYPES = [np.float32, np.float64]
TOLERANCE = {np.float32: 2e-5, np.float64: 1e-12}


class Plain(Backend):
    """The mathematics and nothing else."""

    xp = np
    array_type = np.ndarray


@pytest.fixture(autouse=True)
def small_arrays_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (linear, attention):
        monkeypatch.setattr(module, "MIN_PARALLEL_MULTIPLICATIONS", 0)


def normal(*shape: int, dtype: Any) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


LAYOUTS = {
    "rows": lambda x: x,
    "columns": np.asfortranarray,
    "part of wider rows": lambda x: np.pad(x, ((0, 0), (1, 2)))[:, 1:-2],
    "every other column": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "backwards": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
}
SIZES = st.one_of(st.integers(1, 40), st.sampled_from([127, 128, 136, 384, 385, 400]))


# --- products -----------------------------------------------------------------------------------

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
    "backwards": lambda a: (a(5, 7)[::-1], a(7, 3)[:, ::-1]),
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


ROWS = st.one_of(st.integers(1, linear_skinny.MAX_SKINNY_ROWS), st.integers(linear_skinny.MAX_SKINNY_ROWS + 1, 40))


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n_rows=ROWS, n_inner=SIZES, m=SIZES, data=st.data())
def test_weights_that_are_read_where_they_lie(
    dtype: Any, n_rows: int, n_inner: int, m: int, data: st.DataObject
) -> None:
    """Groups and bands that are whole, and what is over; rows that end within a vector; more threads than there are."""
    x, weight = normal(n_rows, n_inner, dtype=dtype), normal(m, n_inner, dtype=dtype)
    bias = normal(m if data.draw(st.booleans()) else 0, dtype=dtype)
    if n_rows > linear_skinny.MAX_SKINNY_ROWS and m < linear_skinny.BAND_ROWS:
        assert not linear_skinny.reads_in_place(x, weight)
        return
    results = [np.full((n_rows, m), np.nan, dtype) for _ in range(2)]
    for y, threads in zip(results, (1, data.draw(st.integers(2, 7))), strict=True):
        linear_skinny.skinny_linear(x, weight, bias, y, threads)
    expected = x.astype(np.float64) @ weight.astype(np.float64).T + (bias if bias.size else 0)
    np.testing.assert_allclose(results[0], expected, rtol=0, atol=TOLERANCE[dtype] * n_inner)
    np.testing.assert_array_equal(*results)  # any number of threads gives the same bits


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n_rows=st.integers(1, 70), m=st.sampled_from([1, 5, 383, 384, 385, 800]), n=SIZES, data=st.data())
def test_weights_that_backward_reads_where_they_lie(
    dtype: Any, n_rows: int, m: int, n: int, data: st.DataObject
) -> None:
    """One block of weights and several, columns that are no whole tiles, more threads than there are tiles."""
    n += microkernel.MR - 1
    dy, weight = normal(n_rows, m, dtype=dtype), normal(m, n, dtype=dtype)
    lay_out = LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))]
    results = [np.full((n_rows, n), np.nan, dtype) for _ in range(2)]
    for dx, threads in zip(results, (1, data.draw(st.integers(2, 7))), strict=True):
        linear_skinny.unpacked_product_backward(lay_out(dy), weight, dx, threads)
    expected = dy.astype(np.float64) @ weight.astype(np.float64)
    np.testing.assert_allclose(results[0], expected, rtol=0, atol=TOLERANCE[dtype] * m)
    np.testing.assert_array_equal(*results)  # any number of threads gives the same bits


@pytest.mark.parametrize(
    ("n_rows", "m", "n", "takes"),
    [
        (32, 4096, microkernel.MR + 1, True),
        (32, 4096, microkernel.MR - 1, False),
        (600, 4096, microkernel.MR + 1, False),
        (32, 256, 32, True),
        (32, 255, 32, False),
    ],
)
def test_backward_of_a_much_larger_matrix(n_rows: int, m: int, n: int, takes: bool) -> None:
    dy, weight = normal(2, n_rows // 2, m, dtype=np.float32), normal(m, n, dtype=np.float32)
    assert linear_skinny.backward_reads_in_place(dy.reshape(n_rows, m), weight) == takes
    assert not linear_skinny.backward_reads_in_place(dy.reshape(n_rows, m), np.asfortranarray(weight))
    for lay_out in (lambda x: x, np.asfortranarray):
        dx = load("numba").linear_backward_x(dy, lay_out(weight))
        assert dx.shape == (2, n_rows // 2, n)
        np.testing.assert_allclose(dx, Plain().linear_backward_x(dy, weight), rtol=0, atol=TOLERANCE[np.float32] * m)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_of_a_few_rows_has_the_bits_that_it_has_alone(dtype: Any) -> None:
    """So a text is written as it would be alone, whatever is written beside it."""
    x, weight, bias = (normal(*shape, dtype=dtype) for shape in ((linear_skinny.MAX_SKINNY_ROWS, 77), (45, 77), (45,)))
    alone = np.empty((len(x), 45), dtype)
    for i in range(len(x)):
        linear_skinny.skinny_linear(x[i : i + 1], weight, bias, alone[i : i + 1], 2)
    for n in range(1, linear_skinny.MAX_SKINNY_ROWS + 1):
        y = np.empty((n, 45), dtype)
        linear_skinny.skinny_linear(x[:n], weight, bias, y, 2)
        np.testing.assert_array_equal(y, alone[:n])


def test_weights_whose_rows_are_too_long_to_ask_for_the_next_group() -> None:
    n = linear_skinny.MAX_GROUP_PREFETCH_BYTES // 8  # bytes of eight rows of float32 are four times as many
    x, weight, y = normal(1, n, dtype=np.float32), normal(9, n, dtype=np.float32), np.empty((1, 9), np.float32)
    linear_skinny.skinny_linear(x, weight, weight[:0, 0], y, 2)
    expected = x.astype(np.float64) @ weight.astype(np.float64).T
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-2)


@pytest.mark.parametrize("x_layout", ["rows", "every other column", "backwards"])
@pytest.mark.parametrize("layout", ["rows", "columns", "part of wider rows", "every other column", "backwards"])
@pytest.mark.parametrize("n_rows", [1, 3, 4, 7])
def test_linear_of_any_layout(n_rows: int, layout: str, x_layout: str) -> None:
    x, weight, bias = (normal(*shape, dtype=np.float32) for shape in ((n_rows, 21), (66, 21), (66,)))
    bias.flags.writeable = False
    y = load("numba").linear(LAYOUTS[x_layout](x), LAYOUTS[layout](weight), bias)
    np.testing.assert_allclose(y, Plain().linear(x, weight, bias), rtol=0, atol=20 * TOLERANCE[np.float32])


@pytest.mark.parametrize("n_rows", [1, 2, 3, 4])
def test_a_few_rows_keep_what_is_not_finite_to_themselves(n_rows: int) -> None:
    """The last row of the weights stands in where a group is not whole, the last of x where a kernel is for more."""
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


def test_half_precision_and_integers_are_left_to_the_plain_mathematics() -> None:
    k = load("numba")
    x = normal(3, 4, dtype=np.float16)
    assert k.matmul(x, x.T).dtype == np.float16
    assert k.linear(x, x, None).dtype == np.float16
    assert k.matmul(np.eye(3, dtype=int), np.ones((3, 2), int)).tolist() == [[1, 1]] * 3


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(m=SIZES, n_inner=SIZES, n=SIZES, data=st.data())
def test_products_of_all_sizes_and_layouts(dtype: Any, m: int, n_inner: int, n: int, data: st.DataObject) -> None:
    """Blocks of the operands that are whole, and what is left over of them; parts for more threads than there are."""
    a_layout, b_layout = (LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))] for _ in range(2))
    add, with_bias, threads = data.draw(st.booleans()), data.draw(st.booleans()), data.draw(st.integers(1, 5))
    a, b = normal(m, n_inner, dtype=dtype), normal(n_inner, n, dtype=dtype)
    bias, c = normal(n if with_bias else 0, dtype=dtype), normal(m, n + 3, dtype=dtype)
    expected, rest = a @ b + add * c[:, :n] + (bias if with_bias else 0), c[:, n:].copy()
    macrokernel.parallel_product(a_layout(a), b_layout(b), c[:, :n], bias, add, threads)
    np.testing.assert_allclose(c[:, :n], expected, rtol=0, atol=TOLERANCE[dtype] * n_inner)
    np.testing.assert_array_equal(c[:, n:], rest)  # nothing is written beside it


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_threads_gives_a_product_of_the_same_bits(dtype: Any) -> None:
    a, b = normal(150, 400, dtype=dtype), normal(400, 170, dtype=dtype)
    results = []
    for threads in (1, 2, 3, 7):
        c = np.empty((150, 170), dtype)
        macrokernel.parallel_product(a, b, c, c[0, :0], False, threads)
        results.append(c)
    assert all(np.array_equal(results[0], c) for c in results)


def test_what_is_not_finite_stays_in_its_row_and_column() -> None:
    """What fills a panel or a strip up must not meet it."""
    a, b = normal(9, 5, dtype=np.float32), normal(5, 33, dtype=np.float32)
    a[8, 2], b[3, 32] = np.inf, np.nan
    y = load("numba").matmul(a, b)
    bad = np.zeros((9, 33), bool)
    bad[8], bad[:, 32] = True, True
    np.testing.assert_array_equal(~np.isfinite(y), bad)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_bodies_without_the_compiler(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("macrokernel", "store", "pack_transposed", "pack_panels"):
        monkeypatch.setattr(macrokernel, name, getattr(macrokernel, name).py_func)
    monkeypatch.setattr(pack, "pack_transposed", pack.pack_transposed.py_func)
    a, b = normal(9, 4, dtype=np.float64), normal(4, 35, dtype=np.float64)
    for x, y in ((a, b), (b.T, a.T), (a[::-1, ::2], b[::2, ::-1]), (np.asfortranarray(a), np.asfortranarray(b))):
        bias, c = normal(y.shape[1], dtype=np.float64), np.ones((len(x), y.shape[1]))
        macrokernel.parallel_product.py_func(x, y, c, bias, True, threads)
        np.testing.assert_allclose(c, 1 + x @ y + bias)
    monkeypatch.setattr(linear_skinny, "pack_transposed", pack.pack_transposed)
    for name in ("pack_panels", "aligned"):
        monkeypatch.setattr(pack, name, getattr(pack, name).py_func)
    monkeypatch.setattr(linear_skinny, "aligned", pack.aligned)
    monkeypatch.setattr(linear_skinny, "packed_panels", pack.packed_panels.py_func)
    x, weight = normal(3, 7, dtype=np.float64), normal(linear_skinny.BAND_ROWS + 9, 7, dtype=np.float64)
    for bias in (weight[:0, 0], normal(len(weight), dtype=np.float64)):
        for compiled_for, rows in ((2, (1, 2)), (4, (0, 1, 2, 2))):
            y = np.zeros((3, len(weight)))
            linear_skinny.SKINNY_KERNELS[compiled_for].py_func(x, weight, bias, y, rows, threads)
            expected = x @ weight.T + (bias if bias.size else 0)
            np.testing.assert_allclose(y, [expected[i] if i in rows else np.zeros(len(weight)) for i in range(3)])
        y = np.zeros((3, len(weight)))
        linear_skinny.unpacked_product.py_func(x, weight, bias, y, threads)
        np.testing.assert_allclose(y, expected)
    monkeypatch.setattr(linear_skinny, "pack_panels", pack.pack_panels)
    dy, weight, dx = normal(3, 390, dtype=np.float64), normal(390, 21, dtype=np.float64), np.full((3, 21), np.nan)
    linear_skinny.unpacked_product_backward.py_func(dy, weight, dx, threads)
    np.testing.assert_allclose(dx, dy @ weight)
    stack = normal(2, 3, 4, dtype=np.float64)
    c = np.empty((2, 3, 3))
    macrokernel.batched_product.py_func(stack, stack.swapaxes(1, 2), c)
    np.testing.assert_allclose(c, stack @ stack.swapaxes(1, 2))


# --- attention ----------------------------------------------------------------------------------

# batch, heads, key heads, queries, keys, head size, size of values
SHAPES = [
    (1, 1, 1, 1, 1, 1, 1),
    (2, 4, 2, 5, 5, 3, 3),
    (1, 1, 1, 1, 7, 4, 4),
    (1, 3, 1, 6, 9, 4, 2),
    (2, 2, 2, 70, 70, 8, 8),
    (1, 2, 1, 3, 130, 4, 4),
    (1, 2, 1, 130, 3, 4, 4),
    (1, 2, 2, 130, 100, 4, 6),
]


def operands(shape: tuple[int, ...], dtype: Any) -> tuple[Any, Any, Any, Any]:
    """dy, q, key, v, as views of projections: the heads of a token side by side."""
    n_batch, n_head, n_group, n_query, n_key, size, v_size = shape
    return tuple(
        normal(n_batch, n, heads, width, dtype=dtype).swapaxes(1, 2)
        for n, heads, width in (
            (n_query, n_head, v_size), (n_query, n_head, size), (n_key, n_group, size), (n_key, n_group, v_size),
        )
    )  # type: ignore[return-value]  # fmt: skip


def check(k: Any, shape: tuple[int, ...], causal: bool, dtype: Any, dropout: Any = None) -> None:
    dy, q, key, v = operands(shape, dtype)
    y, lse = k.attention(q, key, v, causal, None, dropout, 0.3)
    expected_y, expected_lse = Plain().attention(q, key, v, causal, None, dropout, 0.3)
    near = {"rtol": 0, "atol": TOLERANCE[dtype]}
    np.testing.assert_allclose(y, expected_y, **near)
    np.testing.assert_allclose(lse, expected_lse, **near)
    expected = Plain().attention_backward(dy, q, key, v, expected_y, expected_lse, causal, None, dropout, 0.3)
    results = k.attention_backward(dy, q, key, v, y, lse, causal, None, dropout, 0.3)
    for got, want in zip(results, expected, strict=True):
        np.testing.assert_allclose(got, want, **near)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_attention(shape: tuple[int, ...], causal: bool, dtype: Any) -> None:
    check(load("numba"), shape, causal, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_attention_with_dropout_draws_the_numbers_of_the_plain_mathematics(
    shape: tuple[int, ...], causal: bool, dtype: Any
) -> None:
    check(load("numba"), shape, causal, dtype, (0.3, 2**40 + 7, 5, 11))  # p, seed, stream, step


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    heads=st.sampled_from([(1, 1), (2, 1), (3, 3), (4, 2)]),
    lengths=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    widths=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    causal=st.booleans(),
    dropout=st.sampled_from([None, (0.3, 7, 5, 11)]),
)
def test_attention_of_all_sizes(
    heads: tuple[int, int], lengths: tuple[int, int], widths: tuple[int, int], causal: bool, dropout: Any
) -> None:
    check(load("numba"), (2, *heads, *lengths, *widths), causal, np.float64, dropout)


def test_attention_of_rows_that_are_far_apart_in_size() -> None:
    """What a row may not see is worked on with the rest of its vector, and must leave no trace, however large it is."""
    k = load("numba")
    dy, q, key, v = operands((1, 1, 1, 70, 70, 8, 8), np.float32)
    key[:, :, 1::2] *= 1e4
    v[:, :, -1] = 1e30
    y, lse = k.attention(q, key, v, True, None, None, 1.0)
    expected = Plain().attention(*(x.astype(np.float64) for x in (q, key, v)), True, None, None, 1.0)
    np.testing.assert_allclose(y[:, :, :-1], expected[0][:, :, :-1], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(lse, expected[1], rtol=1e-5)
    assert all(
        np.isfinite(dx).all() for dx in k.attention_backward(dy, q, key, v * 0, y * 0, lse, True, None, None, 1.0)
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_attention_of_the_numpy_backend(shape: tuple[int, ...], causal: bool) -> None:
    check(load("numpy"), shape, causal, np.float64)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", [(2, 4, 2, 5, 5, 3, 3), (1, 2, 1, 66, 3, 4, 4), (1, 1, 1, 3, 70, 2, 2)])
def test_the_bodies_of_attention_without_the_compiler(
    shape: tuple[int, ...], causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (attention_forward, attention_backward):
        for name, value in list(vars(module).items()):
            if hasattr(value, "py_func"):
                monkeypatch.setattr(module, name, value.py_func)
        monkeypatch.setattr(module, "packed_row", lambda x: x, raising=False)
        monkeypatch.setattr(module, "as_row", lambda x, first, n: x[first : first + n].reshape(-1))
        monkeypatch.setattr(module, "as_panels", lambda x, n: x.reshape(n, -1, x.shape[1]))
    monkeypatch.setattr(attention, "forward", attention_forward.forward)
    monkeypatch.setattr(attention, "backward", attention_backward.backward)
    with np.errstate(all="ignore"):  # what fills up a tile may be anything, and is not looked at
        check(load("numba"), shape, causal, np.float64)
        check(load("numba"), shape, causal, np.float64, (0.3, 7, 5, 11))


# --- attention of a few queries -----------------------------------------------------------------


def mask_of(kind: str, n_batch: int, n_head: int, n_query: int, n_key: int) -> Any:
    """None, or a mask of one of the shapes that broadcast, with a row that may see nothing in the largest."""
    if kind == "none":
        return None
    shape = {
        "keys": (n_key,),
        "texts": (n_batch, 1, 1, n_key),
        "heads": (n_head, n_query, 1),
        "all": (n_batch, n_head, n_query, n_key),
    }[kind]
    mask = np.random.default_rng(n_key).random(shape) < 0.7
    if kind == "all":
        mask[0, 0, 0] = False
    return mask


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n_batch=st.integers(1, 3),
    n_group=st.integers(1, 3),
    shared=st.integers(1, 3),
    n_query=st.integers(1, attention_decode.MAX_DECODE_QUERIES),
    n_key=st.integers(1, 140),
    size=st.integers(1, 70),
    v_size=st.integers(1, 70),
    kind=st.sampled_from(["none", "keys", "texts", "heads", "all"]),
    causal=st.booleans(),
    compiled=st.booleans(),
)
def test_attention_of_a_few_queries(
    dtype: Any, n_batch: int, n_group: int, shared: int, n_query: int, n_key: int, size: int, v_size: int,
    kind: str, causal: bool, compiled: bool,
) -> None:  # fmt: skip
    shape = (n_batch, n_group * shared, n_group, n_query, n_key, size, v_size)
    _, q, key, v = operands(shape, dtype)
    key = np.concatenate([key, np.full_like(key, np.nan)], axis=2)[:, :, :n_key]  # a cache with room behind
    mask = mask_of(kind, n_batch, n_group * shared, n_query, n_key)
    if mask is not None and n_key % 2:
        mask.flags.writeable = False
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(attention_decode, "decode", attention_decode.decode.py_func)
        y, lse = load("numba").attention(q, key, v, causal, mask, None, 0.2)
    assert y.dtype == lse.dtype == dtype
    wide = (x.astype(np.float64) for x in (q, key, v))
    expected_y, expected_lse = Plain().attention(*wide, causal, mask, None, 0.2)
    np.testing.assert_allclose(y, expected_y, rtol=0, atol=5 * TOLERANCE[dtype])
    np.testing.assert_allclose(lse, expected_lse, rtol=0, atol=5 * TOLERANCE[dtype])


def test_a_nan_among_a_few_queries_stays_in_its_head() -> None:
    _, q, key, v = operands((1, 2, 2, 1, 9, 8, 8), np.float32)
    key = key.copy()
    key[0, 1, 4] = np.nan
    y, lse = load("numba").attention(q, key, v, True, None, None, 0.3)
    assert np.isfinite(y[0, 0]).all() and np.isfinite(lse[0, 0])
    assert np.isnan(y[0, 1]).all() and np.isnan(lse[0, 1])


# --- tiles --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compiled", [True, False])
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n_rows=st.integers(1, 3), n_inner=st.integers(0, 40), n_columns=st.integers(1, 70), data=st.data())
def test_tiles_make_up_a_product(
    dtype: Any, compiled: bool, n_rows: int, n_inner: int, n_columns: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, n_inner))
    last = data.draw(st.integers(first, n_inner))
    across, transposed, add = (data.draw(st.booleans()) for _ in range(3))
    a = normal(n_rows * microkernel.MR, n_inner, dtype=dtype)
    b = normal(n_inner, n_columns, dtype=dtype)
    given = pack.packed_panels(np.asfortranarray(b) if transposed else b)
    nr = microkernel.nr_of(a)
    assert given.shape == (-(-n_columns // nr), n_inner, nr)
    c = normal(len(a), len(given) * nr, dtype=dtype)
    expected = a[:, first:last] @ b[first:last] + add * c[:, :n_columns]
    (multiply if compiled else multiply.py_func)(np.asfortranarray(a) if across else a, first, last, given, c, add)
    np.testing.assert_allclose(c[:, :n_columns], expected, rtol=0, atol=TOLERANCE[dtype])


@numba.njit
def multiply(a: Any, first: int, last: int, given: Any, c: Any, add: bool) -> None:
    for row in range(0, a.shape[0], microkernel.MR):
        for p in range(len(given)):
            microkernel.microkernel(a, row, first, last, given, p, c, row, p * given.shape[2], add)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=300))
def test_the_largest_of_a_row(dtype: Any, row: list[float]) -> None:
    assert compiled_largest(np.array(row, dtype)) == max(np.array(row, dtype))


@numba.njit
def compiled_largest(row: Any) -> Any:
    return reductions.largest(row)


def test_gradients_of_one_projection_come_back_as_one_array_without_a_copy() -> None:
    """What `split` returns is the array that attention wrote into."""
    with tg.use_backend("numba"):
        x = tg.normal((2, 5, 24), dtype=np.float64, requires_grad=True)
        heads = [part.reshape(2, 5, 2, 4).permute_dims(0, 2, 1, 3) for part in tg.split(x, 3, axis=-1)]
        y = tg.attention(*heads, causal=True)
        y.backward(np.ones(y.shape))
    assert x.grad is not None and x.grad.shape == (2, 5, 24)
    with tg.use_backend("numpy"):
        other = tg.Tensor(x.data, requires_grad=True)
        heads = [part.reshape(2, 5, 2, 4).permute_dims(0, 2, 1, 3) for part in tg.split(other, 3, axis=-1)]
        tg.attention(*heads, causal=True).backward(np.ones(y.shape))
    np.testing.assert_allclose(x.grad, other.grad, rtol=0, atol=1e-12)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    _, q, key, v = operands((2, 2, 2, 70, 70, 8, 8), np.float32)
    results, few, all_threads = [], [], load("numpy").threads
    with tg.use_backend("numba"):
        for threads in (1, all_threads):
            tg.set_num_threads(threads)
            results.append(load("numba").attention(q, key, v, True, None, None, 0.3)[0])
            few.append(load("numba").attention(q[:, :, :3], key, v, True, None, None, 0.3)[0])
    assert all(np.array_equal(results[0], y) for y in results)
    assert all(np.array_equal(few[0], y) for y in few)


@pytest.mark.parametrize("dropout", [None, (0.3, 7, 5, 11)])
def test_any_number_of_threads_gives_attention_the_same_bits(dropout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However its heads are shared out, also to more threads than there are heads."""
    k = load("numba")
    dy, q, key, v = operands((1, 6, 3, 70, 70, 8, 8), np.float32)
    results = []
    for threads in (1, 2, 3, 8):
        monkeypatch.setattr(k, "threads", threads)
        y, lse = k.attention(q, key, v, True, None, dropout, 0.3)
        results.append([y, lse, *k.attention_backward(dy, q, key, v, y, lse, True, None, dropout, 0.3)])
    for result in results:
        assert all(np.array_equal(got, wanted) for got, wanted in zip(result, results[0], strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compiled", [True, False])
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(0, 30), spare=st.integers(0, 3))
def test_columns(dtype: Any, compiled: bool, n: int, spare: int) -> None:
    """All rows that are asked for, and none that is not."""
    x = normal(n + spare, microkernel.nr_of(np.empty(0, dtype)), dtype=dtype)
    y, before = normal(x.shape[1], dtype=dtype), x.copy()
    near = {"rtol": 0, "atol": TOLERANCE[dtype]}
    run = of_columns if compiled else of_columns.py_func
    largest, total = run(x, n, y)
    np.testing.assert_array_equal(largest, before[:n].max(axis=0, initial=-np.inf))
    np.testing.assert_allclose(total, before[:n].astype(np.float64).sum(axis=0), **near)
    np.testing.assert_allclose(x[:n], (before[:n] - y) * y, **near)
    np.testing.assert_array_equal(x[n:], before[n:])


@numba.njit
def of_columns(x: Any, n: int, y: Any) -> Any:
    largest, total = np.empty_like(y), np.empty_like(y)
    attention_columns.largest_of_columns(x, n, largest)
    attention_columns.total_of_columns(x, n, total)
    attention_columns.subtract_from_columns(x, n, y)
    attention_columns.multiply_columns(x, n, y)
    return largest, total
