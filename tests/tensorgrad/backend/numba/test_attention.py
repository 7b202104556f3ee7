"""Attention of the numba backend against the plain array code, value by value."""

import importlib
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tensorgrad as tg
from tensorgrad.backend import load
from tests.tensorgrad.backend.numba.reference import DTYPES, TOLERANCE, Plain, normal, require_initialised_operands

numba = pytest.importorskip("numba")

attention = importlib.import_module("tensorgrad.backend.numba.attention")
attention_backward = importlib.import_module("tensorgrad.backend.numba.attention_backward")
attention_columns = importlib.import_module("tensorgrad.backend.numba.attention_columns")
attention_decode = importlib.import_module("tensorgrad.backend.numba.attention_decode")
attention_forward = importlib.import_module("tensorgrad.backend.numba.attention_forward")
microkernel = importlib.import_module("tensorgrad.backend.numba.microkernel")
reductions = importlib.import_module("tensorgrad.backend.numba.reductions")


@pytest.fixture(autouse=True)
def use_kernels_for_small_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MIN_PARALLEL_MULTIPLICATIONS", 0)


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
    tolerance = {"rtol": 0, "atol": TOLERANCE[dtype]}
    np.testing.assert_allclose(y, expected_y, **tolerance)
    np.testing.assert_allclose(lse, expected_lse, **tolerance)
    expected = Plain().attention_backward(dy, q, key, v, expected_y, expected_lse, causal, None, dropout, 0.3)
    results = k.attention_backward(dy, q, key, v, y, lse, causal, None, dropout, 0.3)
    for got, reference in zip(results, expected, strict=True):
        np.testing.assert_allclose(got, reference, **tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_attention(shape: tuple[int, ...], causal: bool, dtype: Any) -> None:
    check(load("numba"), shape, causal, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_attention_with_dropout_has_the_mask_of_the_plain_code(
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


def test_masked_keys_have_no_effect_however_large_they_are() -> None:
    """Masked scores are computed with the rest of their vector, and must not change the result."""
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
def test_attention_runs_as_python(
    shape: tuple[int, ...], causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (attention_forward, attention_backward):
        for name, value in list(vars(module).items()):
            if hasattr(value, "py_func"):
                monkeypatch.setattr(module, name, value.py_func)
        monkeypatch.setattr(module, "contiguous_row", lambda x: x, raising=False)
        monkeypatch.setattr(module, "as_row", lambda x, first, n: x[first : first + n].reshape(-1))
        monkeypatch.setattr(module, "as_panels", lambda x, n: x.reshape(n, -1, x.shape[1]))
    require_initialised_operands(monkeypatch, attention_forward, attention_backward)
    monkeypatch.setattr(attention, "forward", attention_forward.forward)
    monkeypatch.setattr(attention, "backward", attention_backward.backward)
    with np.errstate(all="ignore"):  # masked scores are infinite
        check(load("numba"), shape, causal, np.float64)
        check(load("numba"), shape, causal, np.float64, (0.3, 7, 5, 11))


def test_gradients_of_a_joint_projection_are_views_of_one_array() -> None:
    """The gradient of the input of `split` is the array that attention wrote into."""
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
    """Also with more threads than heads."""
    k = load("numba")
    dy, q, key, v = operands((1, 6, 3, 70, 70, 8, 8), np.float32)
    results = []
    for threads in (1, 2, 3, 8):
        monkeypatch.setattr(k, "threads", threads)
        y, lse = k.attention(q, key, v, True, None, dropout, 0.3)
        results.append([y, lse, *k.attention_backward(dy, q, key, v, y, lse, True, None, dropout, 0.3)])
    for result in results:
        assert all(np.array_equal(got, expected) for got, expected in zip(result, results[0], strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compiled", [True, False])
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(0, 30), spare=st.integers(0, 3))
def test_attention_columns(dtype: Any, compiled: bool, n: int, spare: int) -> None:
    """The first n rows are used and changed, the others are not."""
    x = normal(n + spare, microkernel.nr_of(np.empty(0, dtype)), dtype=dtype)
    y, before = normal(x.shape[1], dtype=dtype), x.copy()
    tolerance = {"rtol": 0, "atol": TOLERANCE[dtype]}
    run = of_columns if compiled else of_columns.py_func
    largest, total = run(x, n, y)
    np.testing.assert_array_equal(largest, before[:n].max(axis=0, initial=-np.inf))
    np.testing.assert_allclose(total, before[:n].astype(np.float64).sum(axis=0), **tolerance)
    np.testing.assert_allclose(x[:n], (before[:n] - y) * y, **tolerance)
    np.testing.assert_array_equal(x[n:], before[n:])


@numba.njit
def of_columns(x: Any, n: int, y: Any) -> Any:
    largest, total = np.empty_like(y), np.empty_like(y)
    attention_columns.largest_of_columns(x, n, largest)
    attention_columns.total_of_columns(x, n, total)
    attention_columns.subtract_from_columns(x, n, y)
    attention_columns.multiply_columns(x, n, y)
    return largest, total


@pytest.mark.parametrize("dtype", DTYPES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=300))
def test_largest(dtype: Any, row: list[float]) -> None:
    assert compiled_largest(np.array(row, dtype)) == max(np.array(row, dtype))


@numba.njit
def compiled_largest(row: Any) -> Any:
    return reductions.largest(row)


# --- attention_decode ---------------------------------------------------------------------------


def mask_of(kind: str, n_batch: int, n_head: int, n_query: int, n_key: int) -> Any:
    """None, or a mask of a shape that broadcasts; in the largest one a query has all keys masked."""
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
def test_attention_decode(
    dtype: Any, n_batch: int, n_group: int, shared: int, n_query: int, n_key: int, size: int, v_size: int,
    kind: str, causal: bool, compiled: bool,
) -> None:  # fmt: skip
    shape = (n_batch, n_group * shared, n_group, n_query, n_key, size, v_size)
    _, q, key, v = operands(shape, dtype)
    key = np.concatenate([key, np.full_like(key, np.nan)], axis=2)[:, :, :n_key]  # a KV cache with unused room
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


def test_attention_decode_keeps_nan_in_its_head() -> None:
    _, q, key, v = operands((1, 2, 2, 1, 9, 8, 8), np.float32)
    key = key.copy()
    key[0, 1, 4] = np.nan
    y, lse = load("numba").attention(q, key, v, True, None, None, 0.3)
    assert np.isfinite(y[0, 0]).all() and np.isfinite(lse[0, 0])
    assert np.isnan(y[0, 1]).all() and np.isnan(lse[0, 1])
