"""A model that labels texts: the blocks of a language model, and a linear layer on its hidden states."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

import tensorgrad as tg
from gpt.data.loaders import FIRST_EPOCH, Array
from gpt.evaluate import evaluating
from gpt.model import INIT_STD
from gpt.weights import Model
from tensorgrad import Tensor, nn
from tensorgrad.random import Generator, Stream

PADDING = -1  # in place of a token, after the end of a text
POOL = ("mean", "last")


class Classifier(nn.Module):
    """A language model with `score`, a linear layer from the width to the labels, in place of its output layer.

    pool: what it reads. last: the state of the last token, the only one that has seen the whole text. mean: the mean
    of the states of all tokens.
    """

    def __init__(self, model: Model, n_labels: int, pool: str = "last") -> None:
        self.model, self.config, self.pool = model, model.config, pool
        self.score = nn.Linear(model.config.n_embd, n_labels, bias=False, std=INIT_STD)

    def forward(self, x: Any) -> Tensor:
        """x (B, T) tokens, after the end of a text PADDING -> logits (B, K) of the labels."""
        x = tg.asarray(x)
        in_text = x != PADDING  # (B, T)
        length = tg.sum(in_text, axis=1)  # (B,)
        hidden = self.model.hidden_states(tg.where(in_text, x, 0))  # (B, T, C): no token sees the padding after it
        if self.pool == "last":
            return self.score(hidden[tg.arange(len(x)), length - 1])  # (B, K)
        share = in_text.astype(hidden.dtype) / length.astype(hidden.dtype)[:, None]  # (B, T) of each token
        return self.score((share[:, None] @ hidden)[:, 0])  # (B, K)

    def loss(self, x: Any, y: Any, weights: Any) -> Tensor:
        """The mean over the texts of the cross-entropy of their labels y (B,), times weights (B,)."""
        return tg.mean(tg.cross_entropy(self(x), tg.asarray(y), reduction="none") * tg.asarray(weights))

    @property
    def recompute(self) -> bool:
        """See GPT."""
        return self.model.recompute

    @recompute.setter
    def recompute(self, value: bool) -> None:
        self.model.recompute = value

    def train_only(self, tune: str) -> None:
        """Freeze all but: with head, `score`; with last-block also that block and the norm after it; all: nothing.

        Adapters are trained in any case.
        """
        if tune == "all":
            return
        trained = {"head": ["score."], "last-block": ["score.", f"model.h.{self.config.n_layer - 1}.", *_NORMS]}[tune]
        for name, p in self.named_parameters():
            p.requires_grad = name.startswith(tuple(trained)) or ".lora_" in name


_NORMS = ("model.ln_f.", "model.norm_f.")


class LabelledTexts:
    """The tokens of texts and their labels, as batches: see gpt.data.Batches.

    weights: of each label, (K,), or None. Training goes through all texts, in a new random order each time.
    """

    unit = "texts"

    def __init__(
        self, tokens: Sequence[Sequence[int]], labels: Array, *, batch_size: int, weights: Array, seed: int = 0
    ) -> None:
        self.tokens, self.labels, self.weights = tokens, labels, weights
        self.n_batches = math.ceil(len(tokens) / batch_size)
        self.generator = Generator(seed)

    @property
    def size(self) -> int:
        """How many texts there are."""
        return len(self.tokens)

    @property
    def fingerprint(self) -> Any:
        """Bytes that differ for other texts or labels."""
        pairs = zip(self.tokens, self.labels, strict=True)
        return np.concatenate([np.array([len(row), label, *row], np.int64) for row, label in pairs]).tobytes()

    def draw(self, count: int, step: int) -> tuple[Array, ...]:
        """Return x (count, T) with PADDING, labels and weights (count,) of a step."""
        return self.rows(in_epochs(self.generator, self.size, count, step))

    def batch(self, step: int) -> tuple[Array, ...]:
        """Return batch `step` of n_batches of about the same size, in which each text is once."""
        return self.rows(np.array_split(np.arange(self.size), self.n_batches)[step % self.n_batches])

    def rows(self, indices: Array) -> tuple[Array, ...]:
        """Return these texts: x (n, T), labels (n,), weights (n,)."""
        labels = self.labels[indices]
        return padded([self.tokens[i] for i in indices]), labels, self.weights[labels]


def in_epochs(generator: Generator, size: int, count: int, step: int) -> Array:
    """Return the `count` numbers below size of a step: all of them in random order, and again in another one."""
    at = np.arange(step * count, (step + 1) * count)
    epochs = range(at[0] // size, at[-1] // size + 1)
    orders = [generator.permutation(size, stream=Stream.DATA, step=FIRST_EPOCH + epoch) for epoch in epochs]
    return np.concatenate(orders)[at - epochs[0] * size]


def padded(rows: Sequence[Sequence[int]], padding: int = PADDING) -> Array:
    """Return rows of different lengths as one array (n, T)."""
    x = np.full((len(rows), max(map(len, rows))), padding, np.int64)
    for i, row in enumerate(rows):
        x[i, : len(row)] = row
    return x


def probabilities(model: Classifier, tokens: Sequence[Sequence[int]], batch_size: int) -> Array:
    """Return the probability of each label for each text, (N, K)."""
    result = np.zeros((len(tokens), model.score.weight.shape[0]))
    by_length = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))  # so that little is computed for padding
    with evaluating(model):
        for start in range(0, len(tokens), batch_size):
            rows = by_length[start : start + batch_size]
            logits = model(tg.get_backend().asarray(padded([tokens[i] for i in rows])))
            result[rows] = tg.softmax(logits.astype("float32")).numpy()
    return result


def balanced_weights(labels: Array, n_labels: int) -> Array:
    """Return weights (K,) with which all labels count the same in a sum over the texts, and the mean weight is 1."""
    counts = np.bincount(labels, minlength=n_labels)
    return np.asarray(len(labels) / (n_labels * np.maximum(counts, 1)), np.float32)
