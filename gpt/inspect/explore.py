"""Everything that the explorer shows of a model on one text, as arrays: `explore`."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from gpt.inspect.attribution import attribute, slopes
from gpt.inspect.capture import capture, lens, softmax
from gpt.lora import adapter_parameters
from gpt.weights import Model, build_model
from tensorgrad import QuantizedArray
from tensorgrad.backend import Array

TOP = 10  # predictions and neighbours


@dataclass(frozen=True)
class Exploration:
    """What a model computes on T tokens. Layer 0 is the embedding; there are L = n_layer blocks of H heads.

    ids: the tokens (T,). top_ids, top_probabilities (L + 1, T, TOP): what the stream after each block predicts; the
    last layer is what the model predicts. next_probability, next_rank (L + 1, T - 1): of the token that comes next,
    rank 0 for the most likely. logit (T,): of the model's first choice. attention (L, H, T, T). stream_norms
    (2 L + 1, T): of the stream at the beginning and after each attention and each MLP; added_norms (2 L, T): of what
    these added. attribution (T, T), slope (T,): see gpt/inspect/attribution.py. neighbour_ids, neighbour_cosines
    (T, TOP): the tokens whose embeddings point the same way as that of each input.
    """

    ids: Array
    top_ids: Array
    top_probabilities: Array
    next_probability: Array
    next_rank: Array
    logit: Array
    attention: Array
    stream_norms: Array
    added_norms: Array
    attribution: Array
    slope: Array
    neighbour_ids: Array
    neighbour_cosines: Array


def explore(model: Model, ids: Iterable[int]) -> Exploration:
    """Return what a model computes on these tokens, in its plain form, and why it predicts what it does.

    The model itself is not changed. Raises ValueError for no token, for more than the window, and for adapters, which
    have to be merged.
    """
    tokens = np.array([*ids])
    if adapter_parameters(model):
        raise ValueError("explore: a model with adapters: load it with load_initial, which merges them")
    model = build_model(model.config, plain=True, weights=model.state_dict())
    for p in model.eval().parameters():
        p.requires_grad = False
    captured = capture(model, tokens[None])
    layers = [_Layer.of(lens(model, x)[0], tokens[1:]) for x in captured.stream[::2]]
    choice, inputs = layers[-1].ids[:, 0], captured.stream[0].numpy()[0]
    neighbour_ids, cosines = neighbours(model, tokens)
    return Exploration(
        ids=tokens,
        top_ids=np.stack([layer.ids for layer in layers]),
        top_probabilities=np.stack([layer.probabilities for layer in layers]),
        next_probability=np.stack([layer.next_probability for layer in layers]),
        next_rank=np.stack([layer.next_rank for layer in layers]),
        logit=layers[-1].logit,
        attention=np.stack([att.numpy()[0] for att in captured.attention]),
        stream_norms=np.stack([_norms(x.numpy()[0]) for x in captured.stream]),
        added_norms=np.stack([_norms(x.numpy()[0]) for x in captured.updates]),
        attribution=attribute(model, inputs, choice),
        slope=slopes(model, inputs, choice),
        neighbour_ids=neighbour_ids,
        neighbour_cosines=cosines,
    )


@dataclass(frozen=True)
class _Layer:
    """What one layer predicts; see Exploration."""

    ids: Array
    probabilities: Array
    logit: Array
    next_probability: Array
    next_rank: Array

    @classmethod
    def of(cls, logits: Array, following: Array) -> "_Layer":
        """logits (T, V), following (T - 1,)."""
        if not np.isfinite(logits).all():
            raise ValueError("explore: the logits are not finite, so the weights are not usable")
        ids = _largest(logits)
        y = softmax(logits)
        rows = np.arange(len(following))
        own = logits[rows, following][:, None]
        rank = (logits[:-1] > own).sum(axis=1)
        logit = np.take_along_axis(logits, ids[:, :1], axis=1)[:, 0]
        return cls(ids, np.take_along_axis(y, ids, axis=1), logit, y[rows, following], rank)


def neighbours(model: Model, tokens: Array) -> tuple[Array, Array]:
    """Return the ids (T, TOP) and cosines of the embeddings that are closest to those of the tokens, without these."""
    weight = model.wte.weight
    table = weight.data.dequantize() if isinstance(weight.data, QuantizedArray) else weight.numpy()  # (V, C)
    unique, where = np.unique(tokens, return_inverse=True)
    unit = table / np.maximum(_norms(table)[:, None], np.finfo(np.float32).tiny)
    cosines = unit[unique] @ unit.T  # (U, V)
    cosines[np.arange(len(unique)), unique] = -np.inf
    ids = _largest(cosines)[:, : len(table) - 1]  # not itself
    return ids[where], np.take_along_axis(cosines, ids, axis=1)[where]


def _largest(x: Array) -> Array:
    """Return where the TOP largest elements of each row are, the largest first: (n, V) -> (n, TOP)."""
    n = min(TOP, x.shape[1])
    among = np.sort(np.argpartition(-x, n - 1, axis=1)[:, :n], axis=1)  # of equal ones, the first comes first
    order = np.argsort(-np.take_along_axis(x, among, axis=1), axis=1, kind="stable")
    return np.take_along_axis(among, order, axis=1)


def _norms(x: Array) -> Array:
    return np.linalg.norm(x.astype(np.float64), axis=-1)
