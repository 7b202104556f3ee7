"""The fused operations that a language model is built of."""

from typing import Any
from unittest import mock

import numpy as np

from tensorgrad import ops
from tensorgrad.backend import Array, backend_of
from tensorgrad.gradcheck.cases.case import Case, Draw, Example, Frozen
from tensorgrad.gradcheck.cases.inputs import booleans, integers, randn, uniform

_no_keys = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 0]]) == 1  # for the second query
_some_ignored = np.array([1, -100, 3, -100, 0])


def _normalization(*, saves: str) -> list[Example]:
    return [
        Example("one element", randn(1), randn(1), eps=1.0),
        Example("vector", randn(5)),
        Example("matrix", randn(3, 4)),
        Example("weight", randn(3, 4), randn(4)),
        *Example("batch", randn(2, 3, 4), randn(4), saves=saves).layouts(),
        Example("rows of one", randn(3, 1), randn(1), eps=1.0),
        Example("no rows", randn(0, 4), randn(4)),
        Example("a large eps", randn(3, 4), randn(4), eps=0.5),
        Example("far from 0", randn(3, 4) + 5, randn(4)),
        Example("used twice", randn(4), call=lambda op, x: op(x, x)),
        Example("frozen weight", randn(3, 4), Frozen(randn(4))),
        Example("frozen input", Frozen(randn(3, 4)), randn(4)),
    ]


def _added(*, saves: str) -> list[Example]:
    three = randn(3, 4), randn(3, 4), randn(4)
    return [
        Example("one element", randn(1), randn(1), randn(1), eps=1.0),
        Example("vector", randn(5), randn(5)),
        *Example("batch", randn(2, 3, 4), randn(2, 3, 4), randn(4), saves=saves).layouts(),
        Example("the sum alone", *three, call=lambda op, *operands: op(*operands)[0]),
        Example("the rows alone", *three, call=lambda op, *operands: op(*operands)[1]),
        Example("the sum used again", *three, call=lambda op, *operands: ops.multiply(*op(*operands))),
        Example("no rows", randn(0, 4), randn(0, 4), randn(4)),
        Example("used twice", randn(3, 4), call=lambda op, x: op(x, x)),
        Example("frozen residual", randn(3, 4), Frozen(randn(3, 4)), randn(4)),
        Example("frozen weight", randn(3, 4), randn(3, 4), Frozen(randn(4))),
    ]


def _squared(op: Any, *operands: Any) -> Any:
    loss = op(*operands)
    return ops.multiply(loss, loss)


def _in_blocks(op: Any, *operands: Any, **options: Any) -> Any:
    """With blocks of two rows of four classes."""
    k = backend_of("linear_cross_entropy", [operands[0].data])
    with mock.patch.object(k, "logits_block", 8):
        return op(*operands, **options)


def _mlp(**options: Any) -> list[Example]:
    weights = randn(4, 3), randn(4), randn(2, 4), randn(2)
    operands = randn(2, 3), *weights

    def frozen(name: str, n: int) -> Example:
        return Example(f"frozen {name}", *operands[:n], Frozen(operands[n]), *operands[n + 1 :], **options)

    return [
        Example("one element", randn(1, 1), randn(1, 1), randn(1), randn(1, 1), randn(1), **options),
        Example("vector", randn(3), *weights, **options),
        Example("matrix", randn(5, 3), *weights, **options),
        *Example("batch", randn(2, 1, 3), *weights, saves="a b c d (2,1,4)", **options).layouts(),
        Example("no biases", randn(2, 3), randn(4, 3), None, randn(2, 4), **options),
        Example("bias1 alone", randn(2, 3), randn(4, 3), randn(4), randn(2, 4), **options),
        Example("bias2 alone", randn(2, 3), randn(4, 3), None, randn(2, 4), randn(2), **options),
        Example("no rows", randn(0, 3), *weights, **options),
        Example("nothing inside", randn(2, 3), randn(0, 3), randn(0), randn(2, 0), randn(2), **options),
        Example("used twice", randn(3, 3), call=lambda op, x, **given: op(x, x, None, x, **given), **options),
        *(frozen(name, n) for n, name in enumerate(("x", "weight1", "bias1", "weight2", "bias2"))),
    ]



def _mse_loss(x: Array, target: Array, reduction: str = "mean") -> Array:
    return _reduced((x - target) ** 2, reduction)


def _binary_cross_entropy(x: Array, target: Array, reduction: str = "mean") -> Array:
    p = 1 / (1 + np.exp(-x))
    return _reduced(-target * np.log(p) - (1 - target) * np.log(1 - p), reduction)


def _nll_loss(log_p: Array, targets: Array, ignore_index: int = -100, reduction: str = "mean") -> Array:
    kept = targets != ignore_index
    losses = -np.take_along_axis(log_p, np.where(kept, targets, 0)[..., None], -1)[..., 0] * kept
    return losses.sum() / max(kept.sum(), 1) if reduction == "mean" else _reduced(losses, reduction)


def _torch_nll_loss(t: Any, log_p: Any, targets: Any, reduction: str = "mean") -> Any:
    return t.nn.functional.nll_loss(t.moveaxis(log_p, -1, min(1, log_p.ndim - 1)), targets, reduction=reduction)


def _reduced(losses: Array, reduction: str) -> Array:
    return losses if reduction == "none" else np.asarray(losses.mean() if reduction == "mean" else losses.sum())


cases = [
    Case(ops.layer_norm, [
        *_normalization(saves="a b (2,3,1) (2,3,1)"),
        Example("weight and bias", randn(2, 3, 4), randn(4), randn(4), saves="a b (2,3,1) (2,3,1)"),
        Example("bias alone", randn(3, 4), None, randn(4)),
        Example("frozen bias", randn(3, 4), randn(4), Frozen(randn(4))),
    ], draw=Draw("normalizing", n_scales=2),
       torch=lambda t, x, *scales, eps: t.nn.functional.layer_norm(x, x.shape[-1:], *scales, eps=eps)),
    Case(ops.rms_norm, _normalization(saves="a b (2,3,1)"), draw=Draw("normalizing", n_scales=1),
         torch=lambda t, x, *scales, eps: t.nn.functional.rms_norm(x, x.shape[-1:], *scales, eps=eps)),
    Case(ops.add_layer_norm, [
        *_added(saves="c y (2,3,1) (2,3,1)"),
        Example("weight and bias", randn(2, 3, 4), randn(2, 3, 4), randn(4), randn(4)),
        Example("bias alone", randn(3, 4), randn(3, 4), None, randn(4)),
        Example("all for the sum", randn(3, 4), randn(3, 4), randn(4), randn(4), call=lambda op, *a: op(*a)[0]),
    ], draw=Draw("adding", n_scales=2)),
    Case(ops.add_rms_norm, _added(saves="c y (2,3,1)"), draw=Draw("adding", n_scales=1)),
    Case(ops.dropout, [
        Example("0-d", randn(), p=0.5),
        Example("one element", randn(1), p=0.5),
        *Example("half", randn(4, 5), saves="").layouts(),
        Example("a tenth", randn(2, 3, 4), p=0.1),
        Example("none", randn(3, 4), p=0.0),
        Example("all", randn(3, 4), p=1.0),
        Example("not training", randn(3, 4), p=0.5, training=False, saves=""),
        Example("empty", randn(0, 3), p=0.5),
        Example("used twice", randn(4, 4), call=lambda op, x: ops.add(op(x, p=0.5), op(x, p=0.5))),
    ], incomparable="it draws its own numbers: test_random.py and test_nn.py compare it with its mask"),
    Case(ops.cross_entropy, [
        Example("one element", randn(1, 1), np.array([0])),
        Example("one row", randn(4), np.array(2)),
        Example("one class", randn(3, 1), np.zeros(3, np.int64)),
        Example("matrix", randn(5, 4), integers(0, 4, 5)),
        *Example("batch", randn(2, 3, 4), integers(0, 4, 2, 3), saves="a int64(6,) (6,2) ()",
                 saves_in_half="a int64(6,) float32(6,2) ()").layouts(),
        Example("sum", randn(5, 4), integers(0, 4, 5), reduction="sum"),
        Example("none", randn(2, 3, 4), integers(0, 4, 2, 3), reduction="none"),
        Example("some ignored", randn(5, 4), _some_ignored),
        Example("some ignored, none", randn(5, 4), _some_ignored, reduction="none"),
        Example("some ignored, sum", randn(5, 4), _some_ignored, reduction="sum"),
        Example("a class ignored", randn(5, 4), np.array([0, 1, 0, 2, 3]), ignore_index=0),
        Example("all ignored", randn(3, 4), np.full(3, -100)),
        Example("smoothing", randn(5, 4), integers(0, 4, 5), label_smoothing=0.1),
        Example("all smoothing", randn(5, 4), integers(0, 4, 5), label_smoothing=1.0),
        Example("smoothing, some ignored", randn(5, 4), _some_ignored, label_smoothing=0.2),
        Example("smoothing, none", randn(5, 4), _some_ignored, label_smoothing=0.2, reduction="none"),
        Example("no rows", randn(0, 4), np.zeros(0, np.int64)),
        Example("no rows, none", randn(2, 0, 4), np.zeros((2, 0), np.int64), reduction="none"),
        Example("small integers", randn(5, 4), np.array([3, 1, 0, 2, 2], np.uint8)),
        Example("large", 20 * randn(5, 4), integers(0, 4, 5)),
        Example("used twice", randn(3, 4), integers(0, 4, 3), call=lambda op, x, t: ops.multiply(op(x, t), x)),
    ], loss=True, draw=Draw("losses")),
    *(Case(op, [
        Example("one element", randn(1), randn(1)),
        *Example("matrix", randn(3, 4), uniform(0, 1, 3, 4), saves="").layouts(),
        Example("sum", randn(3), randn(3), reduction="sum"),
        Example("none", randn(3), Frozen(randn(3)), reduction="none"),
        Example("empty", randn(0, 3), randn(0, 3), reduction="sum"),
        Example("used twice", randn(3), call=lambda op, x: op(x, ops.square(x))),
    ], loss=False, numpy=reference, torch=f"nn.functional.{op.__name__}") for op, reference in (
        (ops.mse_loss, _mse_loss), (ops.binary_cross_entropy_with_logits, _binary_cross_entropy),
    )),
    Case(ops.nll_loss, [
        Example("one element", randn(1, 1), np.array([0])),
        *Example("batch", randn(2, 3, 4), integers(0, 4, 2, 3), saves="").layouts(),
        Example("some ignored", randn(5, 4), _some_ignored),
        Example("sum", randn(5, 4), _some_ignored, reduction="sum"),
        Example("none", randn(5, 4), _some_ignored, reduction="none"),
        Example("no rows", randn(0, 4), np.zeros(0, np.int64), reduction="sum"),
        Example("used twice", randn(3, 4), integers(0, 4, 3), call=lambda op, x, t: ops.multiply(op(x, t), x)),
    ], numpy=_nll_loss, torch=_torch_nll_loss),
    Case(ops.linear_cross_entropy, [
        Example("one element", randn(1, 1), randn(1, 1), np.array([0])),
        Example("one row", randn(3), randn(4, 3), np.array(2)),
        *Example("matrix", randn(5, 3), randn(4, 3), integers(0, 4, 5)).layouts(),
        Example("batch", randn(2, 3, 3), randn(4, 3), integers(0, 4, 2, 3),  # saves gradients, no logits
                saves="a b int64(6,) () () (2,3,3) (4,3)", saves_in_half="a b int64(6,) () float32(6,2) (6,4)"),
        Example("in blocks", randn(5, 3), randn(4, 3), integers(0, 4, 5), call=_in_blocks),
        Example("in blocks, sum", randn(5, 3), randn(4, 3), integers(0, 4, 5), reduction="sum", call=_in_blocks),
        Example("in blocks, none", randn(5, 3), randn(4, 3), integers(0, 4, 5), reduction="none", call=_in_blocks),
        Example("in blocks, frozen weight", randn(5, 3), Frozen(randn(4, 3)), integers(0, 4, 5), call=_in_blocks),
        Example("in blocks, frozen input", Frozen(randn(5, 3)), randn(4, 3), integers(0, 4, 5), call=_in_blocks),
        Example("sum", randn(5, 3), randn(4, 3), integers(0, 4, 5), reduction="sum"),
        Example("none", randn(2, 3, 3), randn(4, 3), integers(0, 4, 2, 3), reduction="none",
                saves="a b int64(6,) (6,4) (6,2) ()", saves_in_half="a b int64(6,) (6,4) float32(6,2) ()"),
        Example("some ignored", randn(5, 3), randn(4, 3), _some_ignored),
        Example("all ignored", randn(3, 3), randn(4, 3), np.full(3, -100)),
        Example("smoothing", randn(5, 3), randn(4, 3), _some_ignored, label_smoothing=0.2),
        Example("no rows", randn(0, 3), randn(4, 3), np.zeros(0, np.int64)),
        Example("used twice", randn(3, 3), integers(0, 3, 3), call=lambda op, x, t: op(x, x, t)),
        Example("the loss used twice", randn(5, 3), randn(4, 3), integers(0, 4, 5), call=_squared),
        Example("frozen weight", randn(5, 3), Frozen(randn(4, 3)), integers(0, 4, 5)),
        Example("frozen input", Frozen(randn(5, 3)), randn(4, 3), integers(0, 4, 5)),
    ], loss=True, draw=Draw("linear_losses")),
    Case(ops.attention, [
        Example("one element", *(randn(1, 1, 1, 1) for _ in "qkv")),
        Example("all keys", *(randn(2, 2, 3, 2) for _ in "qkv")),
        *Example("causal", *(randn(1, 2, 4, 2) for _ in "qkv"), causal=True).layouts(),
        Example("more keys", randn(1, 2, 2, 3), randn(1, 2, 5, 3), randn(1, 2, 5, 3)),
        Example("more keys, causal", randn(1, 1, 2, 3), randn(1, 1, 5, 3), randn(1, 1, 5, 3), causal=True),
        Example("one query, causal", randn(2, 1, 1, 3), randn(2, 1, 4, 3), randn(2, 1, 4, 3), causal=True),
        Example("more queries", randn(1, 1, 5, 2), randn(1, 1, 2, 2), randn(1, 1, 2, 2)),
        Example("queries without keys", randn(1, 1, 5, 2), randn(1, 1, 2, 2), randn(1, 1, 2, 2), causal=True),
        Example("grouped heads", randn(1, 4, 3, 2), randn(1, 2, 3, 2), randn(1, 2, 3, 2), causal=True),
        Example("one key head", randn(2, 3, 2, 2), randn(2, 1, 4, 2), randn(2, 1, 4, 2)),
        Example("mask", *(randn(1, 2, 3, 2) for _ in "qkv"), mask=np.tri(3, dtype=bool)[::-1]),
        Example("mask of keys", *(randn(2, 1, 3, 2) for _ in "qkv"), mask=booleans(2, 1, 1, 3)),
        Example("mask, full", *(randn(1, 2, 3, 3) for _ in "qkv"), mask=booleans(1, 2, 3, 3),
                saves="a b c y (1,2,3,1) bool(1,2,3,3)"),
        Example("mask, a query without keys", *(randn(1, 1, 3, 2) for _ in "qkv"), mask=_no_keys),
        Example("mask and causal", *(randn(1, 2, 3, 2) for _ in "qkv"), mask=booleans(3, 3), causal=True),
        Example("dropout", *(randn(1, 2, 4, 2) for _ in "qkv"), dropout_p=0.3),
        Example("dropout, causal, grouped", randn(1, 4, 3, 3), *(randn(1, 2, 3, 3) for _ in "kv"),
                dropout_p=0.3, causal=True, saves="a b c y (1,4,3,1)"),
        Example("scale", *(randn(1, 1, 3, 2) for _ in "qkv"), scale=0.3),
        Example("values of another size", randn(1, 1, 3, 2), randn(1, 1, 4, 2), randn(1, 1, 4, 5)),
        Example("no batch", *(randn(0, 2, 3, 2) for _ in "qkv")),
        Example("no queries", randn(1, 1, 0, 2), randn(1, 1, 3, 2), randn(1, 1, 3, 2)),
        Example("heads from a projection", *(randn(1, 3, 2, 4).swapaxes(1, 2) for _ in "qkv"), causal=True),
        Example("used three times", randn(1, 2, 3, 2), call=lambda op, x: op(x, x, x, causal=True)),
        Example("frozen query", Frozen(randn(1, 1, 3, 2)), randn(1, 1, 3, 2), randn(1, 1, 3, 2)),
        Example("frozen keys and values", randn(1, 1, 3, 2), *(Frozen(randn(1, 1, 3, 2)) for _ in "kv")),
    ], draw=Draw("attentions")),
    Case(ops.rotary_embedding, [
        Example("one pair", randn(1, 2), np.array([3])),
        Example("matrix", randn(3, 4), np.arange(3)),
        *Example("heads", randn(2, 2, 3, 4), np.arange(5, 8), saves="int64(3,)").layouts(),
        Example("positions of a batch", randn(2, 2, 3, 4), integers(0, 100, 2, 1, 3)),
        Example("another base", randn(3, 6), np.arange(3), base=100.0),
        Example("empty", randn(0, 4), np.arange(0)),
        Example("used twice", randn(3, 4), np.arange(3), call=lambda op, x, p: ops.multiply(op(x, p), x)),
    ], draw=Draw("rotations")),
    Case(ops.mlp, [*_mlp(), *(example.renamed(f"tanh, {example.name}") for example in _mlp(approximate="tanh"))],
         draw=Draw("mlps")),
    Case(ops.swiglu, [
        Example("0-d", randn(), randn()),
        *Example("matrix", randn(3, 4), randn(3, 4), saves="a b").layouts(),
        Example("saturated", 15 * randn(3, 4), randn(3, 4)),
        Example("empty", randn(0, 3), randn(0, 3)),
        Example("used twice", randn(2, 3), call=lambda op, x: op(x, x)),
        Example("frozen gate", Frozen(randn(2, 3)), randn(2, 3)),
        Example("frozen up", randn(2, 3), Frozen(randn(2, 3))),
    ], draw=Draw("alike")),
]
