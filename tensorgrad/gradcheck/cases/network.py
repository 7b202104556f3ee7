"""The fused operations that a language model is built of."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np

from tensorgrad import ops
from tensorgrad.backend import backend_of
from tensorgrad.gradcheck.cases.case import Case, Frozen, booleans, integers, randn

_blind_row = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 0]]) == 1
_some_ignored = np.array([1, -100, 3, -100, 0])


def _normalization(fn: Callable[..., Any]) -> list[Case]:
    return [
        Case("one element", fn, randn(1), randn(1), eps=1.0),
        Case("vector", fn, randn(5)),
        Case("matrix", fn, randn(3, 4)),
        Case("weight", fn, randn(3, 4), randn(4)),
        Case("batch", fn, randn(2, 3, 4), randn(4)),
        Case("rows of one", fn, randn(3, 1), randn(1), eps=1.0),
        Case("no rows", fn, randn(0, 4), randn(4)),
        Case("a large eps", fn, randn(3, 4), randn(4), eps=0.5),
        Case("far from 0", fn, randn(3, 4) + 5, randn(4)),
        Case("transposed", fn, randn(4, 3).T, randn(4)),
        Case("sliced", fn, randn(6, 8)[::2, ::2], randn(8)[::-2]),
        Case("stride 0", fn, np.broadcast_to(randn(4), (3, 4)), np.broadcast_to(randn(1), (4,))),
        Case("used twice", lambda x: fn(x, x), randn(4)),
        Case("frozen weight", fn, randn(3, 4), Frozen(randn(4))),
        Case("frozen input", fn, Frozen(randn(3, 4)), randn(4)),
    ]


def _added(fn: Callable[..., Any]) -> list[Case]:
    return [
        Case("one element", fn, randn(1), randn(1), randn(1), eps=1.0),
        Case("vector", fn, randn(5), randn(5)),
        Case("batch", fn, randn(2, 3, 4), randn(2, 3, 4), randn(4)),
        Case("the sum alone", lambda *operands: fn(*operands)[0], randn(3, 4), randn(3, 4), randn(4)),
        Case("the rows alone", lambda *operands: fn(*operands)[1], randn(3, 4), randn(3, 4), randn(4)),
        Case("the sum used again", lambda *operands: ops.multiply(*fn(*operands)), randn(3, 4), randn(3, 4), randn(4)),
        Case("no rows", fn, randn(0, 4), randn(0, 4), randn(4)),
        Case("transposed", fn, randn(4, 3).T, randn(4, 3).T, randn(4)),
        Case("sliced", fn, randn(6, 8)[::2, ::2], randn(3, 8)[:, ::-2], randn(8)[::-2]),
        Case("used twice", lambda x: fn(x, x), randn(3, 4)),
        Case("frozen residual", fn, randn(3, 4), Frozen(randn(3, 4)), randn(4)),
        Case("frozen weight", fn, randn(3, 4), randn(3, 4), Frozen(randn(4))),
    ]


def _squared(*operands: Any) -> Any:
    loss = ops.linear_cross_entropy(*operands)
    return ops.multiply(loss, loss)


def _in_blocks(*operands: Any, **options: Any) -> Any:
    """With blocks of two rows of four classes."""
    k = backend_of("linear_cross_entropy", [operands[0].data])
    with mock.patch.object(k, "logits_block", 8):
        return ops.linear_cross_entropy(*operands, **options)


def _mlps(**options: Any) -> list[Case]:
    weights = randn(4, 3), randn(4), randn(2, 4), randn(2)
    operands = randn(2, 3), *weights

    def frozen(name: str, n: int) -> Case:
        return Case(f"frozen {name}", ops.mlp, *operands[:n], Frozen(operands[n]), *operands[n + 1 :], **options)

    return [
        Case("one element", ops.mlp, randn(1, 1), randn(1, 1), randn(1), randn(1, 1), randn(1), **options),
        Case("vector", ops.mlp, randn(3), *weights, **options),
        Case("matrix", ops.mlp, randn(5, 3), *weights, **options),
        Case("batch", ops.mlp, randn(2, 1, 3), *weights, **options),
        Case("no biases", ops.mlp, randn(2, 3), randn(4, 3), None, randn(2, 4), **options),
        Case("bias1 alone", ops.mlp, randn(2, 3), randn(4, 3), randn(4), randn(2, 4), **options),
        Case("bias2 alone", ops.mlp, randn(2, 3), randn(4, 3), None, randn(2, 4), randn(2), **options),
        Case("no rows", ops.mlp, randn(0, 3), *weights, **options),
        Case("nothing inside", ops.mlp, randn(2, 3), randn(0, 3), randn(0), randn(2, 0), randn(2), **options),
        Case("transposed", ops.mlp, randn(3, 2).T, randn(3, 4).T, randn(4), randn(4, 2).T, randn(2), **options),
        Case(
            "sliced", ops.mlp, randn(4, 6)[::2, ::2], randn(8, 3)[::-2], randn(4), randn(2, 8)[:, ::2], None, **options
        ),
        Case("used twice", lambda x: ops.mlp(x, x, None, x, **options), randn(3, 3)),
        *(frozen(name, n) for n, name in enumerate(("x", "weight1", "bias1", "weight2", "bias2"))),
    ]


cases: dict[str, list[Case]] = {
    "layer_norm": [
        *_normalization(ops.layer_norm),
        Case("weight and bias", ops.layer_norm, randn(2, 3, 4), randn(4), randn(4)),
        Case("bias alone", ops.layer_norm, randn(3, 4), None, randn(4)),
        Case("frozen bias", ops.layer_norm, randn(3, 4), randn(4), Frozen(randn(4))),
    ],
    "rms_norm": _normalization(ops.rms_norm),
    "add_layer_norm": [
        *_added(ops.add_layer_norm),
        Case("weight and bias", ops.add_layer_norm, randn(2, 3, 4), randn(2, 3, 4), randn(4), randn(4)),
        Case("bias alone", ops.add_layer_norm, randn(3, 4), randn(3, 4), None, randn(4)),
        Case("all for the sum", lambda *a: ops.add_layer_norm(*a)[0], randn(3, 4), randn(3, 4), randn(4), randn(4)),
    ],
    "add_rms_norm": _added(ops.add_rms_norm),
    "dropout": [
        Case("0-d", ops.dropout, randn(), p=0.5),
        Case("one element", ops.dropout, randn(1), p=0.5),
        Case("half", ops.dropout, randn(4, 5)),
        Case("a tenth", ops.dropout, randn(2, 3, 4), p=0.1),
        Case("none", ops.dropout, randn(3, 4), p=0.0),
        Case("all", ops.dropout, randn(3, 4), p=1.0),
        Case("not training", ops.dropout, randn(3, 4), p=0.5, training=False),
        Case("empty", ops.dropout, randn(0, 3), p=0.5),
        Case("transposed", ops.dropout, randn(4, 3).T, p=0.5),
        Case("stride 0", ops.dropout, np.broadcast_to(randn(4), (3, 4)), p=0.5),
        Case("used twice", lambda x: ops.add(ops.dropout(x, p=0.5), ops.dropout(x, p=0.5)), randn(4, 4)),
    ],
    "cross_entropy": [
        Case("one element", ops.cross_entropy, randn(1, 1), np.array([0])),
        Case("one row", ops.cross_entropy, randn(4), np.array(2)),
        Case("one class", ops.cross_entropy, randn(3, 1), np.zeros(3, np.int64)),
        Case("matrix", ops.cross_entropy, randn(5, 4), integers(0, 4, 5)),
        Case("batch", ops.cross_entropy, randn(2, 3, 4), integers(0, 4, 2, 3)),
        Case("sum", ops.cross_entropy, randn(5, 4), integers(0, 4, 5), reduction="sum"),
        Case("none", ops.cross_entropy, randn(2, 3, 4), integers(0, 4, 2, 3), reduction="none"),
        Case("some ignored", ops.cross_entropy, randn(5, 4), _some_ignored),
        Case("some ignored, none", ops.cross_entropy, randn(5, 4), _some_ignored, reduction="none"),
        Case("some ignored, sum", ops.cross_entropy, randn(5, 4), _some_ignored, reduction="sum"),
        Case("a class ignored", ops.cross_entropy, randn(5, 4), np.array([0, 1, 0, 2, 3]), ignore_index=0),
        Case("all ignored", ops.cross_entropy, randn(3, 4), np.full(3, -100)),
        Case("smoothing", ops.cross_entropy, randn(5, 4), integers(0, 4, 5), label_smoothing=0.1),
        Case("all smoothing", ops.cross_entropy, randn(5, 4), integers(0, 4, 5), label_smoothing=1.0),
        Case("smoothing, some ignored", ops.cross_entropy, randn(5, 4), _some_ignored, label_smoothing=0.2),
        Case("smoothing, none", ops.cross_entropy, randn(5, 4), _some_ignored, label_smoothing=0.2, reduction="none"),
        Case("no rows", ops.cross_entropy, randn(0, 4), np.zeros(0, np.int64)),
        Case("no rows, none", ops.cross_entropy, randn(2, 0, 4), np.zeros((2, 0), np.int64), reduction="none"),
        Case("small integers", ops.cross_entropy, randn(5, 4), np.array([3, 1, 0, 2, 2], np.uint8)),
        Case("large", ops.cross_entropy, 20 * randn(5, 4), integers(0, 4, 5)),
        Case("transposed", ops.cross_entropy, randn(4, 5).T, integers(0, 4, 5)),
        Case("sliced", ops.cross_entropy, randn(6, 8)[::2, ::2], integers(0, 4, 6)[::-2]),
        Case("stride 0", ops.cross_entropy, np.broadcast_to(randn(4), (3, 4)), np.broadcast_to(np.array(1), (3,))),
        Case("used twice", lambda x, t: ops.multiply(ops.cross_entropy(x, t), x), randn(3, 4), integers(0, 4, 3)),
    ],
    "linear_cross_entropy": [
        Case("one element", ops.linear_cross_entropy, randn(1, 1), randn(1, 1), np.array([0])),
        Case("one row", ops.linear_cross_entropy, randn(3), randn(4, 3), np.array(2)),
        Case("matrix", ops.linear_cross_entropy, randn(5, 3), randn(4, 3), integers(0, 4, 5)),
        Case("batch", ops.linear_cross_entropy, randn(2, 3, 3), randn(4, 3), integers(0, 4, 2, 3)),
        Case("in blocks", _in_blocks, randn(5, 3), randn(4, 3), integers(0, 4, 5)),
        Case("in blocks, sum", _in_blocks, randn(5, 3), randn(4, 3), integers(0, 4, 5), reduction="sum"),
        Case("in blocks, none", _in_blocks, randn(5, 3), randn(4, 3), integers(0, 4, 5), reduction="none"),
        Case("in blocks, frozen weight", _in_blocks, randn(5, 3), Frozen(randn(4, 3)), integers(0, 4, 5)),
        Case("in blocks, frozen input", _in_blocks, Frozen(randn(5, 3)), randn(4, 3), integers(0, 4, 5)),
        Case("sum", ops.linear_cross_entropy, randn(5, 3), randn(4, 3), integers(0, 4, 5), reduction="sum"),
        Case("none", ops.linear_cross_entropy, randn(5, 3), randn(4, 3), integers(0, 4, 5), reduction="none"),
        Case("some ignored", ops.linear_cross_entropy, randn(5, 3), randn(4, 3), _some_ignored),
        Case("all ignored", ops.linear_cross_entropy, randn(3, 3), randn(4, 3), np.full(3, -100)),
        Case("smoothing", ops.linear_cross_entropy, randn(5, 3), randn(4, 3), _some_ignored, label_smoothing=0.2),
        Case("no rows", ops.linear_cross_entropy, randn(0, 3), randn(4, 3), np.zeros(0, np.int64)),
        Case("transposed", ops.linear_cross_entropy, randn(3, 5).T, randn(3, 4).T, integers(0, 4, 5)),
        Case("sliced", ops.linear_cross_entropy, randn(10, 6)[::2, ::2], randn(8, 3)[::-2], integers(0, 4, 5)),
        Case("used twice", lambda x, t: ops.linear_cross_entropy(x, x, t), randn(3, 3), integers(0, 3, 3)),
        Case("the loss used twice", _squared, randn(5, 3), randn(4, 3), integers(0, 4, 5)),
        Case("frozen weight", ops.linear_cross_entropy, randn(5, 3), Frozen(randn(4, 3)), integers(0, 4, 5)),
        Case("frozen input", ops.linear_cross_entropy, Frozen(randn(5, 3)), randn(4, 3), integers(0, 4, 5)),
    ],
    "attention": [
        Case("one element", ops.attention, *(randn(1, 1, 1, 1) for _ in "qkv")),
        Case("all keys", ops.attention, *(randn(2, 2, 3, 2) for _ in "qkv")),
        Case("causal", ops.attention, *(randn(1, 2, 4, 2) for _ in "qkv"), causal=True),
        Case("more keys", ops.attention, randn(1, 2, 2, 3), randn(1, 2, 5, 3), randn(1, 2, 5, 3)),
        Case("more keys, causal", ops.attention, randn(1, 1, 2, 3), randn(1, 1, 5, 3), randn(1, 1, 5, 3), causal=True),
        Case("one query, causal", ops.attention, randn(2, 1, 1, 3), randn(2, 1, 4, 3), randn(2, 1, 4, 3), causal=True),
        Case("more queries", ops.attention, randn(1, 1, 5, 2), randn(1, 1, 2, 2), randn(1, 1, 2, 2)),
        Case("blind queries", ops.attention, randn(1, 1, 5, 2), randn(1, 1, 2, 2), randn(1, 1, 2, 2), causal=True),
        Case("grouped heads", ops.attention, randn(1, 4, 3, 2), randn(1, 2, 3, 2), randn(1, 2, 3, 2), causal=True),
        Case("one key head", ops.attention, randn(2, 3, 2, 2), randn(2, 1, 4, 2), randn(2, 1, 4, 2)),
        Case("mask", ops.attention, *(randn(1, 2, 3, 2) for _ in "qkv"), mask=np.tri(3, dtype=bool)[::-1]),
        Case("mask of keys", ops.attention, *(randn(2, 1, 3, 2) for _ in "qkv"), mask=booleans(2, 1, 1, 3)),
        Case("mask, full", ops.attention, *(randn(1, 2, 3, 2) for _ in "qkv"), mask=booleans(1, 2, 3, 3)),
        Case("mask, a row of nothing", ops.attention, *(randn(1, 1, 3, 2) for _ in "qkv"), mask=_blind_row),
        Case("mask and causal", ops.attention, *(randn(1, 2, 3, 2) for _ in "qkv"), mask=booleans(3, 3), causal=True),
        Case("dropout", ops.attention, *(randn(1, 2, 4, 2) for _ in "qkv"), dropout_p=0.3),
        Case("dropout, causal, grouped", ops.attention, randn(1, 4, 3, 2), *(randn(1, 2, 3, 2) for _ in "kv"),
             dropout_p=0.3, causal=True),
        Case("scale", ops.attention, *(randn(1, 1, 3, 2) for _ in "qkv"), scale=0.3),
        Case("values of another size", ops.attention, randn(1, 1, 3, 2), randn(1, 1, 4, 2), randn(1, 1, 4, 5)),
        Case("no batch", ops.attention, *(randn(0, 2, 3, 2) for _ in "qkv")),
        Case("no queries", ops.attention, randn(1, 1, 0, 2), randn(1, 1, 3, 2), randn(1, 1, 3, 2)),
        Case("heads from a projection", ops.attention, *(randn(1, 3, 2, 4).swapaxes(1, 2) for _ in "qkv"), causal=True),
        Case("stride 0", ops.attention, *(np.broadcast_to(randn(1, 1, 3, 2), (2, 2, 3, 2)) for _ in "qkv")),
        Case("used three times", lambda x: ops.attention(x, x, x, causal=True), randn(1, 2, 3, 2)),
        Case("frozen query", ops.attention, Frozen(randn(1, 1, 3, 2)), randn(1, 1, 3, 2), randn(1, 1, 3, 2)),
        Case("frozen keys and values", ops.attention, randn(1, 1, 3, 2), *(Frozen(randn(1, 1, 3, 2)) for _ in "kv")),
    ],
    "rotary_embedding": [
        Case("one pair", ops.rotary_embedding, randn(1, 2), np.array([3])),
        Case("matrix", ops.rotary_embedding, randn(3, 4), np.arange(3)),
        Case("heads", ops.rotary_embedding, randn(2, 2, 3, 4), np.arange(5, 8)),
        Case("positions of a batch", ops.rotary_embedding, randn(2, 2, 3, 4), integers(0, 100, 2, 1, 3)),
        Case("another base", ops.rotary_embedding, randn(3, 6), np.arange(3), base=100.0),
        Case("empty", ops.rotary_embedding, randn(0, 4), np.arange(0)),
        Case("transposed", ops.rotary_embedding, randn(4, 3).T, np.arange(3)),
        Case("sliced", ops.rotary_embedding, randn(6, 8)[::2, ::-2], np.arange(6)[::2]),
        Case("stride 0", ops.rotary_embedding, np.broadcast_to(randn(4), (3, 4)), np.arange(3)),
        Case("used twice", lambda x, p: ops.multiply(ops.rotary_embedding(x, p), x), randn(3, 4), np.arange(3)),
    ],
    "mlp": [*_mlps(), *(case.renamed(f"tanh, {case.name}") for case in _mlps(approximate="tanh"))],
}  # fmt: skip
