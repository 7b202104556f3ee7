"""Errors of ops: each names the op, what was given, and what is allowed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad import Tensor

pytestmark = pytest.mark.usefixtures("numpy_backend")

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
    (lambda x: tg.mse_loss(x, x[:, :1]), ValueError, r"mse_loss: x \(2, 3\) and target \(2, 1\) differ in shape"),
    (lambda x: tg.binary_cross_entropy_with_logits(x, x, reduction="all"), ValueError,
     r"\w+: reduction='all' is none of"),
    (lambda x: tg.nll_loss(x.numpy(), x), TypeError, "nll_loss: log_p is no Tensor but ndarray"),
    (lambda x: tg.binary_cross_entropy_with_logits(x.numpy(), x), TypeError, "binary_.*: x is no Tensor but ndarray"),
    (lambda x: tg.sign(x > 0), TypeError, "sign: bool: ufunc 'sign' did not contain a loop"),
    (lambda x: (x > 0) - (x > 0), TypeError, "subtract: bool: numpy boolean subtract"),
    (lambda x: tg.nll_loss(x, np.array([0])), ValueError, r"nll_loss: targets \(1,\) do not fit \(2, 3\): \(2,\) is"),
    (lambda x: tg.topk(x, 4), ValueError, "topk: k 4 is not between 0 and 3, the size of axis 1"),
    (lambda x: tg.outer(x, x), ValueError, r"outer: \(2, 3\) and \(2, 3\) are not both vectors"),
    (lambda x: tg.diagonal(x[0]), ValueError, r"diagonal: shape \(3,\) has fewer than two dimensions"),
    (lambda x: tg.nonzero(x.sum()), ValueError, r"nonzero: shape \(\) has no axis"),
    (lambda x: tg.moveaxis(x, (0, 1), 0), ValueError, "moveaxis: 2 axes cannot go to 1 places"),
    (lambda x: tg.index_add(x, np.array([0]), x), ValueError, r"index_add: indices int64 \(1,\) and source"),
    (lambda x: tg.index_add(x, np.array([2]), x[:1]), IndexError, "index_add: index 2 is out of range for 2 entries"),
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
    (lambda x: tg.swiglu(x, x[0]), ValueError, r"^swiglu: gate \(2, 3\) does not have the shape of up, \(3,\)"),
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
def test_errors_name_the_op_and_the_rule(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="^" + message) as caught:
        call(Tensor(X, requires_grad=True))
    assert "\n" not in str(caught.value)


def test_a_gradient_of_an_operand_without_one_raises() -> None:
    positions = Tensor(np.arange(2.0), requires_grad=True)
    with pytest.raises(RuntimeError, match="rotary_embedding: the gradient of an operand that requires one is None"):
        tg.rotary_embedding(Tensor(np.ones((2, 4))), positions).sum().backward()


@pytest.mark.parametrize("name", ["concat", "stack", "matmul", "where", "logaddexp"])
def test_dtypes_without_a_common_one_are_refused_by_the_op(name: str) -> None:
    """NumPy knows none for float16 and bfloat16."""
    pytest.importorskip("ml_dtypes")
    a, b = (tg.ones((2, 2), dtype=dtype) for dtype in ("float16", "bfloat16"))
    operands = {"concat": ([a, b],), "stack": ([a, b],), "where": (a > 0, a, b)}.get(name, (a, b))
    with pytest.raises(TypeError, match=rf"^{name}: .*float16 and bfloat16 have no common dtype: convert one"):
        getattr(tg, name)(*operands)
