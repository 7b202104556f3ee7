"""What the table of ops does not draw: conventions, ends of the range, empty arrays, errors, ops without gradients."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tensorgrad as tg
from tensorgrad import Tensor
from tensorgrad.gradcheck.cases import cases

pytestmark = pytest.mark.usefixtures("numpy_backend")


def leaf(*values: Any) -> Any:
    return Tensor(np.array(values, np.float64), requires_grad=True)


def gradient(fn: Callable[..., Any], *operands: Any, dy: Any = None) -> list[Any]:
    """The gradients of fn(*operands), or of its sum where no dy is given."""
    tensors = [leaf(*x) if isinstance(x, list) else x for x in operands]
    y = fn(*tensors)
    y.backward(np.ones(y.shape) if dy is None else np.array(dy, np.float64))
    return [x.grad.tolist() for x in tensors if isinstance(x, Tensor) and x.grad is not None]


# --- conventions ----------------------------------------------------------------------------------


def test_ties_share_the_gradient_equally() -> None:
    assert gradient(tg.max, [3, 1, 3, 3], dy=6) == [[2, 0, 2, 2]]
    assert gradient(lambda x: tg.min(x, axis=1), [[1, 1], [2, 1]], dy=[4, 4]) == [[[2, 2], [0, 4]]]
    assert gradient(tg.maximum, [1, 2, 3], [2, 2, 2], dy=[8, 8, 8]) == [[0, 4, 8], [8, 4, 0]]
    assert gradient(tg.minimum, [1, 2, 3], [2, 2, 2], dy=[8, 8, 8]) == [[8, 4, 0], [0, 4, 8]]
    assert gradient(lambda x: tg.maximum(x, 0), [-1, 0, 1]) == [[0, 0.5, 1]]


def test_gradients_at_corners() -> None:
    assert gradient(tg.relu, [-1, 0, 1]) == [[0, 0, 1]]
    assert gradient(tg.abs, [-2, 0, 2]) == [[-1, 0, 1]]
    assert gradient(tg.sign, [-2, 0, 2]) == [[0, 0, 0]]
    assert gradient(lambda x: tg.clip(x, min=-1, max=1), [-2, -1, 0, 1, 2]) == [[0, 1, 1, 1, 0]]
    assert gradient(tg.clip, [-2, 5]) == [[1, 1]]
    assert gradient(tg.std, [2, 2, 2]) == [[0, 0, 0]]


def test_powers_at_zero() -> None:
    assert gradient(lambda x: x**0, [0, 2]) == [[0, 0]]
    assert gradient(lambda x: x**0.0, [0, 2]) == [[0, 0]]
    assert gradient(lambda x: x**1, [0, -2]) == [[1, 1]]
    assert gradient(lambda x: x**3, [0, -2]) == [[0, 12]]
    assert gradient(tg.pow, [0, 0, 0], [0, 1, 2]) == [[0, 1, 0], [0, 0, 0]]  # 0^b does not change with b > 0
    assert gradient(lambda b: 0.0**b, [1, 2]) == [[0, 0]]
    assert gradient(lambda b: 2.0**b, [0, 1]) == [[math.log(2), 2 * math.log(2)]]
    assert gradient(lambda b: 2**b, [0]) == [[math.log(2)]]


def test_products_with_zeros() -> None:
    assert gradient(tg.prod, [2, 0, 3]) == [[0, 6, 0]]
    assert gradient(tg.prod, [0, 0, 3]) == [[0, 0, 0]]
    assert gradient(lambda x: tg.prod(x, axis=(2, 0)), [[[2.0, 3.0]], [[0.0, 5.0]]]) == [[[[0, 0]], [[30, 0]]]]


def test_a_loss_without_targets_is_zero() -> None:
    logits = leaf([1.0, 2.0], [3.0, 1.0])
    for reduction, wanted in (("mean", 0), ("sum", 0), ("none", [0, 0])):
        logits.grad = None
        loss = tg.cross_entropy(logits, np.array([-1, -1]), ignore_index=-1, reduction=reduction)
        assert loss.tolist() == wanted
        loss.backward(np.ones(loss.shape))
        assert not logits.grad.any()
    assert tg.cross_entropy(tg.zeros((0, 3)), np.zeros(0, int)).item() == 0


def test_a_class_can_be_ignored() -> None:
    logits = leaf([1.0, 2.0], [3.0, 1.0])
    loss = tg.cross_entropy(logits, np.array([0, 1]), ignore_index=0)
    assert loss.item() == pytest.approx(math.log(1 + math.e**2))
    loss.backward()
    assert logits.grad[0].tolist() == [0, 0]


def test_rows_that_may_attend_to_nothing_give_zeros() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (Tensor(rng.standard_normal((1, 2, 3, 4)), requires_grad=True) for _ in range(3))
    mask = np.array([[True, False, True], [False, False, False], [True, True, True]])
    y = tg.attention(q, k, v, mask=mask)
    assert not y.data[:, :, 1].any()
    assert y.data[:, :, 0].any()
    y.backward(np.ones(y.shape))
    assert not q.grad[:, :, 1].any()
    for x in (q, k, v):
        assert np.isfinite(x.grad).all()
    more_queries = tg.attention(q, k[:, :, :2], v[:, :, :2], causal=True)  # the first comes before every key
    assert not more_queries.data[:, :, 0].any()
    np.testing.assert_allclose(more_queries.data[:, :, 1], v.data[:, :, 0], rtol=1e-12)


def test_the_last_query_sees_every_key() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 2, 5, 4)) for _ in range(3))
    whole = tg.attention(Tensor(q), k, v, causal=True).numpy()
    for n in range(1, 6):  # as with a cache: the last n queries alone
        np.testing.assert_allclose(tg.attention(Tensor(q[:, :, -n:]), k, v, causal=True).numpy(), whole[:, :, -n:])


def test_masks_in_every_form() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (Tensor(rng.standard_normal((2, 2, 3, 4))) for _ in range(3))
    mask = rng.random((3, 3)) < 0.6
    wanted = tg.attention(q, k, v, mask=mask).numpy()
    for same in (Tensor(mask), mask.tolist(), np.asfortranarray(mask), mask[None], np.broadcast_to(mask, (2, 1, 3, 3))):
        np.testing.assert_array_equal(tg.attention(q, k, v, mask=same).numpy(), wanted)


def test_axes_that_are_none_at_all() -> None:
    x = np.array([[1.5, -2.0]])
    for fn in (tg.sum, tg.max, tg.mean, tg.prod, tg.logsumexp):
        np.testing.assert_allclose(fn(Tensor(x), axis=()).numpy(), x, rtol=1e-12)


# --- the ends of the range ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_what_is_small_keeps_its_digits(dtype: Any) -> None:
    x = np.array([-80, -40, -20, -5, 0, 5, 40], dtype)
    exact = 1 / (1 + np.exp(-x.astype(np.longdouble)))
    tolerance = 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(tg.sigmoid(Tensor(x)).numpy(), exact, rtol=tolerance)
    np.testing.assert_allclose(tg.silu(Tensor(x)).numpy(), x * exact, rtol=tolerance)
    np.testing.assert_allclose(tg.log(tg.sigmoid(Tensor(x[:4]))).numpy(), x[:4], rtol=0.02)


def test_nothing_overflows() -> None:
    """Warnings are errors here, so not even on the way."""
    big = np.array([-1e4, -750.0, 0.0, 750.0, 1e4])
    x = Tensor(big, requires_grad=True)
    for fn in (tg.sigmoid, tg.silu, tg.tanh, tg.gelu, lambda x: tg.gelu(x, approximate="tanh"), tg.erf, tg.softmax,
               tg.log_softmax, tg.logsumexp, tg.relu):  # fmt: skip
        x.grad = None
        y = fn(x)
        y.backward(np.ones(y.shape))
        assert np.isfinite(y.data).all()
        assert np.isfinite(x.grad).all()
    assert tg.sigmoid(x).tolist() == [0, 0, 0.5, 1, 1]
    assert tg.logsumexp(x).item() == 1e4
    assert tg.cross_entropy(x, np.array(0)).item() == 2e4


def test_minus_infinity_is_the_logarithm_of_nothing() -> None:
    x = Tensor(np.array([[-np.inf, 0.0, 0.0], [-np.inf] * 3]), requires_grad=True)
    y = tg.logsumexp(x, axis=1)
    assert y.tolist() == [math.log(2), -math.inf]
    y.backward(np.ones(2))
    assert x.grad.tolist() == [[0, 0.5, 0.5], [0, 0, 0]]
    assert tg.softmax(x[0]).tolist() == [0, 0.5, 0.5]
    assert tg.cross_entropy(x[0], np.array(1)).item() == pytest.approx(math.log(2))


def test_a_quotient_whose_square_is_out_of_range() -> None:
    a, b = (Tensor(np.array([value], np.float32), requires_grad=True) for value in (1e-30, 1e-25))
    (a / b).backward(np.ones(1))
    np.testing.assert_allclose(b.grad, [-1e20], rtol=1e-5)
    a, b = (Tensor(np.array([value], np.float16), requires_grad=True) for value in (60000, 300))
    (a / b).backward(np.ones(1))
    np.testing.assert_allclose(b.grad.astype(float), [-2 / 3], rtol=1e-2)


@pytest.mark.parametrize(
    "name",
    ["exp", "sin", "tanh", "abs", "sign", "square", "negative", "isnan", "isinf", "isfinite", "floor", "ceil", "round"],
)
def test_special_values_are_numpys(name: str) -> None:
    x = np.array([np.nan, -0.0, 0.0, 1e-320, -2.5, 0.5, 1.5])
    x = x if name == "sin" else np.append(x, [np.inf, -np.inf])
    got, wanted = getattr(tg, name)(Tensor(x)).numpy(), getattr(np, name)(x)
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(wanted)) if got.dtype != bool else None


def test_not_a_number_goes_through() -> None:
    x = Tensor(np.array([np.nan, 1.0]))
    for fn in (tg.sigmoid, tg.silu, tg.relu, tg.gelu, tg.erf, lambda x: tg.maximum(x, 0.0), lambda x: x.clip(min=0)):
        assert np.isnan(fn(x).numpy()).tolist() == [True, False]
    for fn in (tg.sum, tg.max, tg.min, tg.mean, tg.logsumexp, tg.var):
        assert math.isnan(fn(x).item())
    weight = tg.zeros((1, 3))
    weight.data[0, 0] = np.nan
    assert math.isnan(tg.cross_entropy(weight, np.array([1])).item())


# --- empty arrays ---------------------------------------------------------------------------------


def test_empty_operands() -> None:
    def none(*shape: int) -> Any:
        return Tensor(np.zeros(shape), requires_grad=True)

    for fn, operands, shape in (
        (tg.matmul, [none(2, 3, 4), none(4, 0)], (2, 3, 0)),
        (tg.matmul, [none(2, 0, 4), none(4, 3)], (2, 0, 3)),
        (tg.matmul, [none(2, 3, 0), none(0, 5)], (2, 3, 5)),
        (tg.matmul, [none(0), none(0)], ()),
        (tg.linear, [none(2, 0), none(3, 0), none(3)], (2, 3)),
        (tg.linear, [none(0, 4), none(3, 4)], (0, 3)),
        (tg.mlp, [none(2, 0), none(0, 0), none(0), none(3, 0), none(3)], (2, 3)),
        (tg.embedding, [none(3, 0), np.array([0, 2])], (2, 0)),
        (tg.embedding, [none(3, 2), np.zeros((2, 0), int)], (2, 0, 2)),
        (tg.layer_norm, [none(0, 3), none(3), none(3)], (0, 3)),
        (tg.attention, [none(0, 2, 3, 4), none(0, 2, 3, 4), none(0, 2, 3, 4)], (0, 2, 3, 4)),
        (tg.attention, [none(1, 2, 0, 4), none(1, 1, 3, 4), none(1, 1, 3, 4)], (1, 2, 0, 4)),
        (lambda x: tg.softmax(x), [none(0, 3)], (0, 3)),
        (tg.sum, [none(0, 3)], ()),
        (tg.prod, [none(0)], ()),
        (lambda *x: tg.concat(x), [none(0, 2), none(3, 2)], (3, 2)),
        (lambda x: tg.dropout(x), [none(0)], (0,)),
    ):
        y = fn(*operands)
        assert y.shape == shape
        y.backward(np.ones(shape))
        for x in operands:
            if isinstance(x, Tensor):
                assert x.grad is not None
                assert x.grad.shape == x.shape
    assert tg.prod(none(0)).item() == 1


def test_concat_flattens_without_an_axis() -> None:
    x = leaf([1, 2], [3, 4])
    y = tg.concat([x, np.array([[5.0]])], axis=None)
    assert y.tolist() == [1, 2, 3, 4, 5]
    y.backward(np.arange(5.0))
    assert x.grad.tolist() == [[0, 1], [2, 3]]


def test_padding_without_dimensions() -> None:
    x = Tensor(3.0, requires_grad=True)
    tg.pad(x, pad_width=2).backward()
    assert x.grad == 1


def test_repeats_and_shifts_in_any_integers() -> None:
    x = leaf(1, 2, 3)
    np.testing.assert_array_equal(tg.repeat(x, np.int64(2)).numpy(), [1, 1, 2, 2, 3, 3])
    np.testing.assert_array_equal(tg.repeat(x, Tensor([0, 2, 1])).numpy(), [2, 2, 3])
    np.testing.assert_array_equal(tg.roll(x, np.int64(1)).numpy(), [3, 1, 2])


# --- errors ---------------------------------------------------------------------------------------

X = np.ones((2, 3))
HEADS = Tensor(np.ones((1, 4, 2, 8)))
ERRORS: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
    (lambda x: x + np.ones(4), ValueError, r"add: \(2, 3\), \(4,\): operands could not be broadcast"),
    (lambda x: tg.where(x, x, x), TypeError, "where: condition has dtype float64; bool is needed"),
    (lambda x: tg.gelu(x, approximate="fast"), ValueError, "gelu: approximate='fast' is neither 'none' nor 'tanh'"),
    (lambda x: x.sum(axis=2), ValueError, "sum: axis 2 is out of range for 2 dimensions"),
    (lambda x: x.sum(axis=(0, -2)), ValueError, r"sum: axis \(0, -2\) names an axis twice"),
    (lambda x: x[:, :0].max(axis=1), ValueError, r"max: shape \(2, 0\) has no elements along axis 1"),
    (lambda x: x[:0].mean(), ValueError, r"mean: shape \(0, 3\) has no elements along axis None"),
    (lambda x: x[:1].var(axis=0, correction=1), ValueError,
     r"var: shape \(1, 3\) along axis 0 with correction 1 divides by 0"),
    (lambda x: tg.cumulative_sum(x), ValueError, r"cumulative_sum: axis is needed for shape \(2, 3\)"),
    (lambda x: x.reshape(4), ValueError, r"reshape: \(2, 3\): cannot reshape array of size 6"),
    (lambda x: x.permute_dims(0, 0), ValueError, r"permute_dims: axis \(0, 0\) names an axis twice"),
    (lambda x: x.permute_dims(0), ValueError, r"permute_dims: axes \(0,\) do not name all 2 dimensions"),
    (lambda x: tg.matrix_transpose(x[0]), ValueError, r"matrix_transpose: shape \(3,\) has fewer than two dimensions"),
    (lambda x: tg.expand_dims(x, 3), ValueError, "expand_dims: axis 3 is out of range for 3 dimensions"),
    (lambda x: x.squeeze(0), ValueError, r"squeeze: \(2, 3\): cannot select an axis to squeeze out"),
    (lambda x: x.broadcast_to(3, 3), ValueError, r"broadcast_to: \(2, 3\): operands could not be broadcast"),
    (lambda x: tg.concat([]), ValueError, "concat: no tensors to join"),
    (lambda x: tg.concat([x, x], axis=2), ValueError, "concat: axis 2 is out of range for 2 dimensions"),
    (lambda x: tg.concat([x, x[:, :2]]), ValueError, r"concat: \(2, 3\), \(2, 2\): all the input array dimensions"),
    (lambda x: tg.stack([]), ValueError, "stack: no tensors to join"),
    (lambda x: tg.stack([x, x[0]]), ValueError, r"stack: \(2, 3\), \(3,\): all input arrays must have the same shape"),
    (lambda x: tg.split(x, 2, axis=1), ValueError, "split: axis 1 of size 3 has no 2 equal parts"),
    (lambda x: tg.split(x, 0), ValueError, "split: axis 0 of size 2 has no 0 equal parts"),
    (lambda x: tg.split(x, [1, 2]), ValueError, r"split: sizes \[1, 2\] do not add up to 2, the size of axis 0"),
    (lambda x: tg.split(x, [3, -1]), ValueError, r"split: sizes \[3, -1\] do not add up to 2"),
    (lambda x: tg.pad(x, pad_width=[(1, 1)] * 3), ValueError,
     r"pad: pad_width .* is not one \(before, after\) for each"),
    (lambda x: tg.pad(x, pad_width=-1), ValueError, "pad: pad_width -1 is not one"),
    (lambda x: tg.tril(x[0]), ValueError, r"tril: shape \(3,\) has fewer than two dimensions"),
    (lambda x: tg.triu(x[0]), ValueError, r"triu: shape \(3,\) has fewer than two dimensions"),
    (lambda x: tg.take(x, np.array([0])), ValueError, r"take: axis is needed for shape \(2, 3\)"),
    (lambda x: tg.take(x, np.array([0.0]), axis=0), TypeError, "take: indices have dtype float64; an integer"),
    (lambda x: tg.take(x, np.array([0, 2]), axis=0), IndexError, "take: index 2 is out of range for 2 entries"),
    (lambda x: tg.take(x, np.array([0, -4]), axis=1), IndexError, "take: index -4 is out of range for 3 entries"),
    (lambda x: tg.take_along_axis(x, np.array([0])), ValueError,
     r"take_along_axis: indices \(1,\) and x \(2, 3\) differ"),
    (lambda x: tg.take_along_axis(x, np.array([[3]])), IndexError, "take_along_axis: index 3 is out of range for 3"),
    (lambda x: tg.embedding(x, np.array([0, 2])), IndexError, "embedding: index 2 is out of range for 2 entries"),
    (lambda x: tg.embedding(x, np.array([-1])), IndexError, "embedding: index -1 is out of range for 2 entries"),
    (lambda x: tg.embedding(x, x), TypeError, "embedding: indices have dtype float64; an integer"),
    (lambda x: tg.embedding(x[0], np.array([0])), ValueError, r"embedding: weight \(3,\) is not a table \(V, C\)"),
    (lambda x: x @ x, ValueError, r"matmul: \(2, 3\) @ \(2, 3\): inner sizes 3 and 2 differ"),
    (lambda x: x @ 2.0, ValueError, r"matmul: \(2, 3\) @ \(\): an operand has no dimension; use multiply"),
    (lambda x: tg.linear(x, x[:, :2]), ValueError, r"linear: x \(2, 3\) does not fit weight \(2, 2\): "),
    (lambda x: tg.mlp(x, x[:, :2], None, x), ValueError, r"^mlp: x \(2, 3\) does not fit weight1 \(2, 2\): "),
    (lambda x: tg.mlp(x, x, None, x), ValueError, r"^mlp: weight2 \(2, 3\) does not fit weight1 \(2, 3\): \(p, m\)"),
    (lambda x: tg.mlp(x, x, x[0], x.T), ValueError, r"^mlp: bias1 \(3,\) does not fit weight1 \(2, 3\): \(2,\) is"),
    (lambda x: tg.mlp(x, x, None, x.T, x[0, :2]), ValueError, r"^mlp: bias2 \(2,\) does not fit weight2 \(3, 2\): "),
    (lambda x: tg.mlp(x, x, None, x.T, approximate="exact"), ValueError, "mlp: approximate='exact' is neither 'none'"),
    (lambda x: tg.linear(x, x, x), ValueError, r"linear: bias \(2, 3\) does not fit weight \(2, 3\): \(2,\) is needed"),
    (lambda x: tg.tensordot(x, x, axes=1), ValueError,
     r"tensordot: \(2, 3\) over axes \[1\] does not fit \(2, 3\) over"),
    (lambda x: tg.tensordot(x, x, axes=3), ValueError, r"tensordot: \(2, 3\) and \(2, 3\) have no 3 axes to sum over"),
    (lambda x: tg.tensordot(x[0], Tensor(np.ones((3, 3))), axes=2), ValueError, "tensordot: .* have no 2 axes to sum"),
    (lambda x: tg.einsum("ij", x, x), ValueError, "einsum: 'ij' has 1 terms for 2 operands"),
    (lambda x: tg.einsum("ijk->i", x), ValueError, "einsum: term 'ijk' of 'ijk->i' does not fit an operand of 2"),
    (lambda x: tg.einsum("i->i", x), ValueError, "einsum: term 'i' of 'i->i' does not fit an operand of 2 dimensions"),
    (lambda x: tg.einsum("ij,ij->k", x, x), ValueError, r"einsum: \(2, 3\), \(2, 3\): "),
    (lambda x: tg.softmax(x, axis=2), ValueError, "softmax: axis 2 is out of range for 2 dimensions"),
    (lambda x: tg.layer_norm(x, x), ValueError, r"layer_norm: \(2, 3\) does not fit x \(2, 3\): \(3,\) is needed"),
    (lambda x: tg.layer_norm(x[:, :0]), ValueError, r"layer_norm: x \(2, 0\) has no elements to normalise"),
    (lambda x: tg.add_layer_norm(x, x[:1]), ValueError, r"add_layer_norm: residual \(1, 3\) does not have the"),
    (lambda x: tg.add_rms_norm(x, x[0]), ValueError, r"add_rms_norm: residual \(3,\) does not have the shape of x"),
    (lambda x: tg.rms_norm(x.sum()), ValueError, r"rms_norm: x \(\) has no elements to normalise"),
    (lambda x: tg.cross_entropy(x, np.zeros(3, int)), ValueError,
     r"cross_entropy: targets \(3,\) do not fit logits \(2, 3\)"),
    (lambda x: tg.cross_entropy(x, np.zeros(2)), TypeError, "cross_entropy: targets have dtype float64"),
    (lambda x: tg.cross_entropy(x, np.array([0, 3])), IndexError,
     "cross_entropy: index 3 is out of range for 3 entries"),
    (lambda x: tg.cross_entropy(x, np.array([0, -1])), IndexError, "cross_entropy: index -1 is out of range for 3"),
    (lambda x: tg.cross_entropy(x, np.array([0, 1]), reduction="avg"), ValueError,
     "cross_entropy: reduction='avg' is none of"),
    (lambda x: tg.cross_entropy(x, np.array([0, 1]), label_smoothing=2), ValueError,
     "cross_entropy: label_smoothing 2 is"),
    (lambda x: tg.attention(x, x, x), ValueError, r"attention: q \(2, 3\), key \(2, 3\), v \(2, 3\) are not"),
    (lambda x: tg.attention(HEADS, HEADS[:, :3], HEADS[:, :3]), ValueError,
     "attention: q .* does not fit key .*: equal batch sizes"),
    (lambda x: tg.attention(HEADS, HEADS, HEADS[:, :, :1]), ValueError, "attention: q .* are not"),
    (lambda x: tg.attention(HEADS, HEADS, HEADS, mask=np.ones((2, 2))), TypeError,
     "attention: mask has dtype float64; bool"),
    (lambda x: tg.attention(HEADS, HEADS, HEADS, mask=np.ones((3, 1, 2, 2), bool)), ValueError,
     r"attention: mask \(3, 1, 2, 2\) does not broadcast to \(1, 4, 2, 2\), \(B, H, T, S\)"),
    (lambda x: tg.attention(HEADS, HEADS, HEADS, mask=np.ones((1, 1, 4, 2, 2), bool)), ValueError, "attention: mask"),
    (lambda x: tg.attention(HEADS, HEADS, HEADS, dropout_p=1.5), ValueError,
     "attention: probability 1.5 is not between"),
    (lambda x: tg.rotary_embedding(x, np.arange(2)), ValueError,
     r"rotary_embedding: x \(2, 3\) is not \(..., T, D\) with D"),
    (lambda x: tg.rotary_embedding(x[:, :2], np.arange(3)), ValueError, r"rotary_embedding: positions \(3,\) do not"),
    (lambda x: tg.rotary_embedding(x[:, :2], np.zeros((5, 2))), ValueError, r"rotary_embedding: positions \(5, 2\) do"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), ERRORS, ids=[message[:40] for _, _, message in ERRORS])
def test_errors_name_the_op_and_what_would_be_right(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="^" + message) as caught:
        call(Tensor(X, requires_grad=True))
    assert "\n" not in str(caught.value)


def test_operands_that_can_have_no_gradient_say_so() -> None:
    positions = Tensor(np.arange(2.0), requires_grad=True)
    with pytest.raises(RuntimeError, match="rotary_embedding: the gradient of an operand that requires one is None"):
        tg.rotary_embedding(Tensor(np.ones((2, 4))), positions).sum().backward()


# --- ops without gradients ------------------------------------------------------------------------

COMPARISONS = ["equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "logical_and", "logical_or",
               "logical_xor", "floor_divide", "remainder"]  # fmt: skip
BITS = ["bitwise_and", "bitwise_or", "bitwise_xor"]
ONE = ["logical_not", "isnan", "isinf", "isfinite", "floor", "ceil", "round"]
SEARCHES = ["argmax", "argmin"]
COUNTS = ["all", "any", "count_nonzero"]
OTHERS = ["argsort", "bitwise_invert"]

drawn = settings(max_examples=12, deadline=None, derandomize=True)


def values(shape: Any, dtype: Any = np.float64) -> Any:
    elements = st.integers(0, 3) if dtype == np.int64 else st.sampled_from([-2.0, -0.5, 0.0, 0.5, 1.0, 1.5])
    return hnp.arrays(dtype, shape, elements=elements)


def test_every_op_without_gradient_is_here() -> None:
    assert sorted(COMPARISONS + BITS + ONE + SEARCHES + COUNTS + OTHERS) == sorted(
        case.name for case in cases.values() if not case.gradient
    )


def check(got: Any, wanted: Any) -> None:
    assert not got.requires_grad
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    np.testing.assert_array_equal(got.numpy(), wanted)


@pytest.mark.parametrize("name", COMPARISONS + BITS)
@drawn
@given(data=st.data())
def test_of_two_operands(name: str, data: Any) -> None:
    shapes = data.draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3)).input_shapes
    dtype = np.int64 if name in BITS else np.float64
    a, b = (data.draw(values(shape, dtype)) for shape in shapes)
    if name in ("floor_divide", "remainder"):
        b = np.where(b == 0, 2.0, b)
    wanted = np.asarray(getattr(np, name)(a, b))
    floating = name not in BITS
    check(getattr(tg, name)(Tensor(a, floating), Tensor(b, floating)), wanted)
    check(getattr(tg, name)(Tensor(a), b), wanted)


@pytest.mark.parametrize("name", ONE)
@drawn
@given(data=st.data())
def test_of_one_operand(name: str, data: Any) -> None:
    x = data.draw(values(data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))))
    check(getattr(tg, name)(Tensor(x, requires_grad=True)), np.asarray(getattr(np, name)(x)))


@pytest.mark.parametrize("name", SEARCHES)
@drawn
@given(data=st.data())
def test_searches(name: str, data: Any) -> None:
    x = data.draw(values(data.draw(hnp.array_shapes(max_dims=3))))
    axis = data.draw(st.sampled_from([None, *range(-x.ndim, x.ndim)]))
    keepdims = data.draw(st.booleans())
    wanted = np.asarray(getattr(np, name)(x, axis=axis, keepdims=keepdims))
    check(getattr(tg, name)(Tensor(x, requires_grad=True), axis=axis, keepdims=keepdims), wanted)


@pytest.mark.parametrize("name", COUNTS)
@drawn
@given(data=st.data())
def test_counts(name: str, data: Any) -> None:
    x = data.draw(values(data.draw(hnp.array_shapes(max_dims=3, min_side=0))))
    axis = data.draw(st.sampled_from([None, 0, -1, tuple(range(x.ndim))]))
    keepdims = data.draw(st.booleans())
    wanted = np.asarray(getattr(np, name)(x, axis=axis, keepdims=keepdims))
    check(getattr(tg, name)(Tensor(x, requires_grad=True), axis=axis, keepdims=keepdims), wanted)


@drawn
@given(data=st.data())
def test_argsort(data: Any) -> None:
    x = data.draw(values(data.draw(hnp.array_shapes(max_dims=3, min_side=0))))
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    check(tg.argsort(Tensor(x, requires_grad=True), axis=axis), np.argsort(x, axis=axis, kind="stable"))
    # from the largest on, equals still in the order they came: as those of -x from the smallest on
    check(tg.argsort(Tensor(x), axis=axis, descending=True), np.argsort(-x, axis=axis, kind="stable"))


def test_bitwise_invert() -> None:
    check(tg.bitwise_invert(Tensor([0, 5])), np.array([-1, -6]))
    check(tg.bitwise_invert(Tensor([True, False])), np.array([False, True]))
