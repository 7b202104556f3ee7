"""Dtypes: every op keeps its operands' dtype, promotes like NumPy, and sums half precision in float32."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_table import Call, Row

import tensorgrad as tg
from tensorgrad import Tensor

pytestmark = pytest.mark.usefixtures("numpy_backend")

try:
    import ml_dtypes
except ModuleNotFoundError:
    BFLOAT16: Any = pytest.param("bfloat16", marks=pytest.mark.skip(reason="ml_dtypes is not installed"))
else:
    BFLOAT16 = pytest.param(np.dtype(ml_dtypes.bfloat16), id="bfloat16")

HALVES = [np.dtype("float16"), BFLOAT16]
FLOATS = [np.dtype("float64"), np.dtype("float32"), *HALVES]
# of the largest element: rounding of operands and results; half precision rounds gradients on the way, too
TOLERANCE = {"float64": 1e-12, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1.5e-1}


def parameters(dtypes: list[Any]) -> Any:
    return pytest.mark.parametrize("dtype", dtypes, ids=lambda d: getattr(d, "name", None))


def promoted(call: Call, dtype: Any) -> Any:
    """The dtype that NumPy promotes the operands to; Python numbers do not change it."""
    return np.result_type(*[x for x in call.arrays(dtype) if isinstance(x, np.ndarray) and x.dtype == dtype])


def expected_dtype(row: Row, call: Call, dtype: Any, last: bool) -> Any:
    if row.name == "astype":
        return np.dtype(call.options["dtype"])
    if row.case.loss and last and dtype.itemsize == 2:
        return np.dtype("float32")  # a loss is added up over many rows
    return promoted(call, dtype)


def assert_near(got: Any, expected: Any, tolerance: float) -> None:
    scale = max(1.0, np.abs(expected).max(initial=0.0))
    np.testing.assert_allclose(got.astype(np.float64), expected, rtol=0, atol=tolerance * scale)


@parameters(FLOATS)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(data=st.data())
def test_every_op_keeps_its_dtype_and_is_close_to_float64(row: Row, dtype: Any, data: Any) -> None:
    call = data.draw(row.calls)
    rounded = Call([*call.operands], call.options)
    for x in (x for x in rounded.operands if hasattr(x, "numbers")):
        x.numbers = x.numbers.astype(dtype).astype(np.float64)
    outcomes = []
    for precision in (dtype, np.dtype("float64")):
        inputs = call.tensors(precision)
        result = row.run(*inputs, **call.options)
        outputs = result if isinstance(result, list) else [result]
        loss = sum((y.astype(np.float64) * 0.5).sum() for y in outputs)
        if loss.requires_grad:
            loss.backward()
        outcomes.append((inputs, outputs))
    (inputs, outputs), (exact_inputs, exact_outputs) = outcomes
    for y, exact in zip(outputs, exact_outputs, strict=True):
        assert y.dtype == expected_dtype(row, call, dtype, y is outputs[-1])
        assert_near(y.data, exact.data, TOLERANCE[dtype.name])
    for x, exact in zip(inputs, exact_inputs, strict=True):
        if isinstance(x, Tensor) and x.grad is not None:
            assert x.grad.dtype == dtype
            assert_near(x.grad, exact.grad, TOLERANCE[dtype.name])


# --- Python numbers and promotion -----------------------------------------------------------------

SCALAR_CALLS = {
    "x + 2.0": lambda x: x + 2.0,
    "2.0 - x": lambda x: 2.0 - x,
    "x * 2": lambda x: x * 2,
    "x / 2.0": lambda x: x / 2.0,
    "2 / x": lambda x: 2 / x,
    "x ** 2": lambda x: x**2,
    "x ** 0.5": lambda x: x**0.5,
    "2.0 ** x": lambda x: 2.0**x,
    "x // 2.0": lambda x: x // 2.0,
    "x % 2.0": lambda x: x % 2.0,
    "maximum": lambda x: tg.maximum(x, 0.5),
    "minimum": lambda x: tg.minimum(1, x),
    "where": lambda x: tg.where(x > 0.5, x, 0.25),
    "clip": lambda x: x.clip(0.5, 1.5),
    "clip int": lambda x: x.clip(0, 1),
    "pad": lambda x: tg.pad(x, pad_width=1, constant=0.5),
    "full_like": lambda x: tg.full_like(x, 0.5),
    "mean": lambda x: x.mean(),
    "dropout": lambda x: tg.dropout(x, p=0.3),
    "attention scale": lambda x: tg.attention(*[x.reshape(1, 1, 2, 1)] * 3, scale=np.float64(0.5)),
}


@parameters(FLOATS)
@pytest.mark.parametrize("name", SCALAR_CALLS)
def test_python_numbers_do_not_change_the_dtype(name: str, dtype: Any) -> None:
    x = Tensor(np.array([0.5, 1.5], dtype), requires_grad=True)
    y = SCALAR_CALLS[name](x)
    assert y.dtype == dtype
    if y.requires_grad:
        y.sum().backward()
        assert x.grad is not None
        assert x.grad.dtype == dtype


@pytest.mark.parametrize("a", ["float64", "float32", "float16", "int64", "int32", "uint8", "bool"])
@pytest.mark.parametrize("b", ["float64", "float32", "float16", "int64", "int32", "uint8", "bool"])
def test_two_arrays_promote_like_numpy(a: str, b: str) -> None:
    x, y = np.ones((2, 2), a), np.ones((2, 2), b)
    for ours, numpys in ((tg.add, np.add), (tg.multiply, np.multiply), (tg.divide, np.divide), (tg.matmul, np.matmul),
                         (tg.maximum, np.maximum)):  # fmt: skip
        assert ours(Tensor(x), Tensor(y)).dtype == numpys(x, y).dtype
        assert ours(Tensor(x), y).dtype == numpys(x, y).dtype
    assert tg.concat([Tensor(x), Tensor(y)]).dtype == np.concatenate([x, y]).dtype
    assert tg.where(Tensor(x > 0), Tensor(x), Tensor(y)).dtype == np.where(x > 0, x, y).dtype
    assert tg.einsum("ij,jk->ik", Tensor(x), Tensor(y)).dtype == np.result_type(x, y)
    assert tg.tensordot(Tensor(x), Tensor(y), axes=1).dtype == np.result_type(x, y)


def test_mixed_operands_get_gradients_of_their_own_dtype() -> None:
    x = Tensor(np.ones((2, 3), np.float16), requires_grad=True)
    w = Tensor(np.ones((4, 3), np.float32), requires_grad=True)
    b = Tensor(np.ones(4, np.float64), requires_grad=True)
    y = tg.linear(x, w) + b
    assert y.dtype == np.float64
    y.sum().backward()
    assert [t.grad.dtype for t in (x, w, b)] == ["float16", "float32", "float64"]
    np.testing.assert_array_equal(x.grad, np.full((2, 3), 4))


@pytest.mark.skipif("BFLOAT16.marks", reason="ml_dtypes is not installed")
def test_bfloat16_and_float32_make_float32() -> None:
    x = Tensor(np.ones(2, ml_dtypes.bfloat16), requires_grad=True)
    y = x * Tensor(np.full(2, 3.0, np.float32)) * 0.5  # the number follows the wider of the two
    assert y.dtype == np.float32
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == ml_dtypes.bfloat16
    assert (Tensor(np.ones(2, ml_dtypes.bfloat16)) * Tensor(np.ones(2, bool)) * 0.5).dtype == ml_dtypes.bfloat16


def test_astype() -> None:
    x = Tensor(np.array([1.5, -2.5]), requires_grad=True)
    y = x.astype(np.float16)
    (y * 3).sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == np.float64
    np.testing.assert_array_equal(x.grad, [3, 3])
    assert not x.astype(np.int64).requires_grad  # nothing flows back through a step
    assert x.astype(bool).numpy().tolist() == [True, True]


# --- integers and bool ----------------------------------------------------------------------------

INTEGER_CALLS = {
    "sum": (tg.sum, np.sum),
    "prod": (tg.prod, np.prod),
    "mean": (tg.mean, np.mean),
    "var": (tg.var, np.var),
    "std": (tg.std, np.std),
    "max": (tg.max, np.max),
    "cumulative_sum": (tg.cumulative_sum, np.cumsum),
    "exp": (tg.exp, np.exp),
    "sqrt": (tg.sqrt, np.sqrt),
    "square": (tg.square, np.square),
    "half": (lambda x: x / 2, lambda x: x / 2),
}


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "bool"])
@pytest.mark.parametrize("name", INTEGER_CALLS)
def test_integers_give_the_results_of_numpy(name: str, dtype: str) -> None:
    ours, numpys = INTEGER_CALLS[name]
    values = np.array([1, 2, 9, 3, 7] if dtype != "bool" else [1, 0, 1, 1, 1], dtype)
    got, expected = ours(Tensor(values)), numpys(values.astype(np.float64))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6 if got.dtype == np.float32 else 1e-12)
    dtype = numpys(values).dtype  # NumPy takes the root of a byte in half precision, where e^12 is infinite
    assert got.dtype == (np.float32 if dtype == np.float16 else dtype)


def test_small_integers_do_not_overflow_their_sums_and_products() -> None:
    x = Tensor(np.array([200, 200], np.uint8))
    assert [tg.sum(x).item(), tg.prod(x).item(), tg.cumulative_sum(x).tolist()] == [400, 40000, [200, 400]]


@pytest.mark.parametrize(
    "fn", [tg.softmax, tg.log_softmax, tg.logsumexp, tg.sigmoid, tg.silu, tg.gelu, tg.erf, tg.layer_norm, tg.rms_norm]
)
def test_results_of_integers_are_not_rounded_to_integers(fn: Any) -> None:
    x = np.array([[1, 2, 4]])
    got, expected = fn(Tensor(x)), fn(Tensor(x.astype(np.float64)))
    np.testing.assert_array_equal(got.numpy(), expected.numpy())


def test_only_floats_can_require_a_gradient() -> None:
    for dtype in ("int64", "uint8", "bool"):
        with pytest.raises(TypeError, match=f"requires_grad: {dtype} has no gradient, only floating dtypes have one"):
            Tensor(np.ones(2, dtype), requires_grad=True)


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int32", "uint64"])
def test_any_integers_are_indices(dtype: str) -> None:
    x = np.arange(12.0).reshape(4, 3)
    i = np.array([3, 0, 3], dtype)
    np.testing.assert_array_equal(tg.embedding(Tensor(x), i).numpy(), x[[3, 0, 3]])
    np.testing.assert_array_equal(tg.take(Tensor(x), Tensor(i), axis=0).numpy(), x[[3, 0, 3]])
    np.testing.assert_array_equal(Tensor(x)[Tensor(i)].numpy(), x[[3, 0, 3]])
    np.testing.assert_array_equal(tg.take_along_axis(Tensor(x), i[:, None], axis=0).numpy(), x[[3, 0, 3]])
    logits = Tensor(np.zeros((3, 4)))
    assert tg.cross_entropy(logits, i).item() == pytest.approx(np.log(4))


# --- half precision -------------------------------------------------------------------------------


@parameters(HALVES)
def test_half_precision_is_summed_in_float32(dtype: Any) -> None:
    """4000 ones: a sum in bfloat16 would stop at 256, and in float16 at 2048."""
    n = 4000
    ones = Tensor(np.ones(n, dtype), requires_grad=True)
    exact = np.array(n, dtype)
    assert ones.sum().data == exact
    assert ones.mean().item() == 1
    assert (ones @ ones).data == exact
    assert tg.einsum("i,i->", ones, ones).data == exact
    assert tg.tensordot(ones, ones, axes=1).data == exact
    assert tg.linear(ones, ones.reshape(1, n)).data == exact
    assert tg.cumulative_sum(ones)[-1].data == exact
    assert tg.logsumexp(ones).item() == pytest.approx(1 + np.log(n), rel=1e-2)
    assert tg.var(tg.concat([ones, -ones])).item() == pytest.approx(1, rel=1e-2)
    assert tg.softmax(ones).numpy().astype(np.float64).sum() == pytest.approx(1, rel=1e-2)
    np.testing.assert_allclose(tg.rms_norm(ones).numpy().astype(np.float64), 1, rtol=1e-2)


@parameters(HALVES)
def test_gradients_in_half_precision_are_summed_in_float32(dtype: Any) -> None:
    n = 4000
    exact = float(np.array(n, dtype))
    for fn in (
        lambda one: tg.broadcast_to(one, (n, 1)),
        lambda one: one + Tensor(np.zeros((n, 1), dtype)),
        lambda one: tg.repeat(one, n),
        lambda one: tg.tile(one, n),
        lambda one: one[np.zeros(n, int)],
        lambda one: tg.take(one, np.zeros(n, int), axis=0),
        lambda one: tg.take_along_axis(one, np.zeros(n, int), axis=0),
        lambda one: tg.embedding(one.reshape(1, 1), np.zeros(n, int)),
        lambda one: tg.linear(Tensor(np.ones((n, 1), dtype)), one.reshape(1, 1)),
        lambda one: tg.linear(Tensor(np.ones((n, 1), dtype)), Tensor(np.ones((1, 1), dtype)), one),
        lambda one: Tensor(np.ones((n, 1), dtype)) @ one.reshape(1, 1),
        lambda one: tg.einsum("ij,j->i", Tensor(np.ones((n, 1), dtype)), one),
        lambda one: tg.layer_norm(Tensor(np.array([[1, -1]] * n, dtype)), None, tg.concat([one, one]))[:, :1],
        lambda one: tg.rms_norm(Tensor(np.ones((n, 1), dtype)), one),
    ):
        one = Tensor(np.ones(1, dtype), requires_grad=True)
        y = fn(one)
        assert y.size == n
        y.backward(np.ones(y.shape, dtype))
        assert one.grad is not None
        assert one.grad.dtype == dtype
        assert float(one.grad[0]) == pytest.approx(exact, rel=1e-2)


@parameters(HALVES)
def test_blocks_of_rows_are_summed_in_float32(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """4000 times one half, each in its own block: the softmax of equal logits, minus the target."""
    monkeypatch.setattr(tg.get_backend(), "logits_block", 2)
    x, weight = Tensor(np.ones((4000, 1), dtype)), Tensor(np.zeros((2, 1), dtype), requires_grad=True)
    tg.linear_cross_entropy(x, weight, np.zeros(4000, int), reduction="sum").backward()
    assert weight.grad is not None
    assert weight.grad.astype(float).tolist() == [[-2000], [2000]]


def test_many_ties_in_float16_share_one_gradient() -> None:
    """float16 cannot represent 70000."""
    x = Tensor(np.zeros(70000, np.float16), requires_grad=True)
    x.max().backward(np.array(1000, np.float16))
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.astype(float), 1000 / 70000, rtol=1e-3)


def test_linear_in_half_precision_rounds_once() -> None:
    x, w, b = (Tensor(np.array(values, np.float16)) for values in ([[1, 1]], [[2048, 1]], [1]))
    assert tg.linear(x, w, b).item() == 2050  # float16 has no 2049: it would become 2048, twice


@parameters(HALVES)
def test_optimizers_compute_in_float32(dtype: Any) -> None:
    """A gradient that underflows when it is squared in half precision, and a decay that rounds to 1."""
    for make in (lambda p: tg.optim.AdamW([p], lr=0.25, weight_decay=0.0), lambda p: tg.optim.SGD([p], lr=0.25)):
        p = Tensor(np.ones(1, dtype), requires_grad=True)
        p.grad = np.full(1, 1e-7 if make(p).moments[0] == "exp_avg" else 1, dtype)
        make(p).step()
        assert p.dtype == dtype
        assert p.item() == pytest.approx(0.75, rel=0.1)
    decayed = Tensor(np.full(1, 1.0, dtype), requires_grad=True)
    decayed.grad = np.zeros(1, dtype)
    tg.optim.AdamW([decayed], lr=1.0, weight_decay=0.5).step()
    assert decayed.item() == 0.5


@parameters(HALVES)
def test_a_half_precision_model_trains(dtype: Any) -> None:
    tg.manual_seed(1)
    layer = tg.nn.Linear(4, 3).astype(dtype)
    optimizer = tg.optim.AdamW(layer.parameters(), lr=0.05)
    x = tg.normal((8, 4)).astype(dtype)
    losses = []
    for _ in range(60):
        loss = tg.cross_entropy(layer(x), np.arange(8) % 3)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert all(p.dtype == dtype for p in layer.parameters())


@parameters(HALVES)
def test_half_precision_is_converted_to_python_and_back(dtype: Any) -> None:
    x = Tensor(np.array([0.5, -2.0], dtype))
    assert x.tolist() == [0.5, -2.0]
    assert type(x[0].item()) is float
    assert "0.5" in repr(x)
    assert dtype.name in repr(x)
    np.testing.assert_array_equal(x.astype(np.float32).numpy(), np.array([0.5, -2], np.float32))
