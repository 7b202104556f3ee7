"""The loss of a model: over a whole text, or an estimate from a few batches."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

import tensorgrad as tg
from gpt.data.loaders import Array, Batches, Tokens, windows
from gpt.weights import IGNORED, Model
from tensorgrad import nn
from tensorgrad.distributed import ALONE, Communicator


@dataclass(frozen=True)
class Score:
    """The score of a model on some tokens: a sum, so that the scores of several parts can be added."""

    nats: float = 0.0  # -log of the probability of all the tokens
    n_tokens: int = 0
    n_bytes: int = 0  # of the text that they encode

    def __add__(self, other: "Score") -> "Score":
        return Score(self.nats + other.nats, self.n_tokens + other.n_tokens, self.n_bytes + other.n_bytes)

    @property
    def loss(self) -> float:
        """The mean over the tokens, in nats."""
        return self.nats / self.n_tokens

    @property
    def perplexity(self) -> float:
        """exp(loss): the number of equally likely tokens of the same uncertainty."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """The compressed size of a byte by arithmetic coding with this model, which tokenizers do not affect."""
        return self.nats / math.log(2) / self.n_bytes if self.n_bytes else math.nan


def evaluate(model: Model, tokens: Tokens, block_size: int | None = None, batch_size: int = 64) -> float:
    """Return the mean loss over every token but the first, in non-overlapping windows: see `score`."""
    return score(model, tokens, block_size=block_size, batch_size=batch_size).loss


def score(
    model: Model, tokens: Tokens, *, block_size: int | None = None, stride: int | None = None, batch_size: int = 64,
    token_bytes: Array | None = None, advance: Callable[[int], Any] = lambda n: None,
) -> Score:  # fmt: skip
    """Predict every token but the first, once.

    Windows of `block_size` (default: the model's) begin every `stride` tokens (default: block_size). Each window counts
    the tokens that no earlier window has predicted, so with a smaller stride a token has at least block_size - stride
    tokens before it in its window. The last window may be shorter. token_bytes (V,): the number of bytes of text that
    each token encodes. advance: called with the number of tokens done. Raises ValueError for fewer than two tokens, and
    for a stride that is not between 1 and block_size.
    """
    T = block_size or model.config.block_size
    S = stride or T
    if not 1 <= S <= T:
        raise ValueError(f"stride {S} is not between 1 and block_size {T}")
    if len(tokens) < 2:
        raise ValueError(f"evaluate: at least 2 tokens are needed, not {len(tokens)}")
    total = Score()
    with evaluating(model):
        for starts, length, skip in _windows(len(tokens) - 1, T, S, batch_size):
            x, y = windows(tokens, starts, length)  # (B, length)
            counted = y[:, skip:]
            n_bytes = 0 if token_bytes is None else int(token_bytes[counted].sum())
            targets = np.where(np.arange(length) < skip, IGNORED, y) if skip else y  # an earlier window predicted these
            total += Score(_loss(model, x, targets) * counted.size, counted.size, n_bytes)
            advance(counted.size)
    return total


def _windows(predicted: int, T: int, S: int, batch_size: int) -> Iterator[tuple[Array, int, int]]:
    """Yield batches of (starts of windows, their length, how many of their first targets earlier windows predict)."""
    first = min(T, predicted)
    yield np.array([0]), first, 0
    n_whole = (predicted - T) // S + 1 if predicted > T else 1
    starts = S * np.arange(1, n_whole)
    for i in range(0, len(starts), batch_size):
        yield starts[i : i + batch_size], T, T - S
    start = S * n_whole
    if start + T - S < predicted:
        yield np.array([start]), predicted - start, T - S


def estimate_loss(
    model: Model, loader: Batches, eval_iters: int, group: Communicator = ALONE,
    advance: Callable[[], Any] = lambda: None,
) -> float:  # fmt: skip
    """Return the mean loss over the loader's first `eval_iters` random batches, which the processes of a group share.

    The batches are the same at every call, so two estimates differ by the model alone. advance: called before every
    batch, at the same time in all processes; an exception that it raises ends the estimate.
    """
    mine = []
    with evaluating(model):
        for first in range(0, eval_iters, group.size):
            advance()
            i = first + group.rank
            mine.append(_loss(model, *loader.batch(i)) if i < eval_iters else 0.0)
    losses = group.gather(mine)  # (size, rounds)
    return sum(losses.T.reshape(-1)[:eval_iters].tolist()) / eval_iters  # in the order of a single process


def _loss(model: Model, *batch: Array) -> float:
    return float(model.loss(*batch).item())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Turn off dropout and gradients inside the block, and restore the mode of the model after it."""
    was_training = model.training
    model.eval()
    try:
        with tg.no_grad():
            yield
    finally:
        model.train(was_training)
