"""Matrix products and attention of the numba backend against the plain mathematics, value by value."""

import importlib
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tensorgrad as tg
from tensorgrad.backend import load
from tensorgrad.backend.base import Backend

numba = pytest.importorskip("numba")

gemm = importlib.import_module("tensorgrad.backend.numba.gemm")
attention = importlib.import_module("tensorgrad.backend.numba.attention")
sums = importlib.import_module("tensorgrad.backend.numba.sums")
panels = importlib.import_module("tensorgrad.backend.numba.panels")
tile = importlib.import_module("tensorgrad.backend.numba.tile")

DTYPES = [np.float32, np.float64]
TOLERANCE = {np.float32: 2e-5, np.float64: 1e-12}


class Plain(Backend):
    """The mathematics and nothing else."""

    xp = np
    array_type = np.ndarray


@pytest.fixture(autouse=True)
def small_arrays_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (gemm, attention):
        monkeypatch.setattr(module, "SMALL", 0)


def normal(*shape: int, dtype: Any) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


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


LAYOUTS = {
    "rows": lambda x: x,
    "columns": np.asfortranarray,
    "part of wider rows": lambda x: np.pad(x, ((0, 0), (1, 2)))[:, 1:-2],
    "every other column": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "backwards": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
}
SIZES = st.one_of(st.integers(1, 40), st.sampled_from([127, 128, 136, 384, 385, 400]))


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
    gemm.product(a_layout(a), b_layout(b), c[:, :n], bias, add, threads)
    np.testing.assert_allclose(c[:, :n], expected, rtol=0, atol=TOLERANCE[dtype] * n_inner)
    np.testing.assert_array_equal(c[:, n:], rest)  # nothing is written beside it


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_threads_gives_a_product_of_the_same_bits(dtype: Any) -> None:
    a, b = normal(150, 400, dtype=dtype), normal(400, 170, dtype=dtype)
    results = []
    for threads in (1, 2, 3, 7):
        c = np.empty((150, 170), dtype)
        gemm.product(a, b, c, c[0, :0], False, threads)
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
    for name in ("multiply", "put", "fill_across", "fill_panels"):
        monkeypatch.setattr(gemm, name, getattr(gemm, name).py_func)
    monkeypatch.setattr(panels, "fill_across", panels.fill_across.py_func)
    a, b = normal(9, 4, dtype=np.float64), normal(4, 35, dtype=np.float64)
    for x, y in ((a, b), (b.T, a.T), (a[::-1, ::2], b[::2, ::-1]), (np.asfortranarray(a), np.asfortranarray(b))):
        bias, c = normal(y.shape[1], dtype=np.float64), np.ones((len(x), y.shape[1]))
        gemm.product.py_func(x, y, c, bias, True, threads)
        np.testing.assert_allclose(c, 1 + x @ y + bias)
    for bias in (b[:0, 0], normal(9, dtype=np.float64)):
        y = np.empty((3, 9))
        gemm.few_rows.py_func(b.T[:3], a, bias, y)
        np.testing.assert_allclose(y, b.T[:3] @ a.T + (bias if bias.size else 0))
    stack = normal(2, 3, 4, dtype=np.float64)
    c = np.empty((2, 3, 3))
    gemm.stacked_product.py_func(stack, stack.swapaxes(1, 2), c)
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
    monkeypatch.setattr(attention, "forward", attention.forward.py_func)
    monkeypatch.setattr(attention, "backward", attention.backward.py_func)
    check(load("numba"), shape, causal, np.float64)
    check(load("numba"), shape, causal, np.float64, (0.3, 7, 5, 11))


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
    a = normal(n_rows * tile.ROWS, n_inner, dtype=dtype)
    b = normal(n_inner, n_columns, dtype=dtype)
    given = panels.panels_of(np.asfortranarray(b) if transposed else b)
    lanes = tile.n_lanes(a)
    assert given.shape == (-(-n_columns // lanes), n_inner, lanes)
    c = normal(len(a), len(given) * lanes, dtype=dtype)
    expected = a[:, first:last] @ b[first:last] + add * c[:, :n_columns]
    (multiply if compiled else multiply.py_func)(np.asfortranarray(a) if across else a, first, last, given, c, add)
    np.testing.assert_allclose(c[:, :n_columns], expected, rtol=0, atol=TOLERANCE[dtype])


@numba.njit
def multiply(a: Any, first: int, last: int, given: Any, c: Any, add: bool) -> None:
    for row in range(0, a.shape[0], tile.ROWS):
        for p in range(len(given)):
            tile.tile(a, row, first, last, given, p, c, row, p * given.shape[2], add)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=300))
def test_the_largest_of_a_row(dtype: Any, row: list[float]) -> None:
    assert compiled_largest(np.array(row, dtype)) == max(np.array(row, dtype))


@numba.njit
def compiled_largest(row: Any) -> Any:
    return sums.largest(row)


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
    results, all_threads = [], load("numpy").threads
    with tg.use_backend("numba"):
        for threads in (1, all_threads):
            tg.set_num_threads(threads)
            results.append(load("numba").attention(q, key, v, True, None, None, 0.3)[0])
    assert all(np.array_equal(results[0], y) for y in results)
