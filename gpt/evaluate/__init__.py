"""How good a model is: its loss over a whole text, or an estimate from a few batches of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

import tensorgrad as tg
from gpt.data.loaders import DataLoader, Tokens, windows
from gpt.model import GPT
from tensorgrad.distributed import ALONE, Communicator


def evaluate(model: GPT, tokens: Tokens, block_size: int | None = None, batch_size: int = 64) -> float:
    """Return the mean loss over every token but the first, in windows that do not overlap.

    Each token is predicted once, from what stands before it in its window of `block_size` (default:
    the model's); the last window may be shorter. The result depends on nothing but its arguments.
    Raises ValueError for fewer than two tokens.
    """
    T = block_size or model.config.block_size
    predicted = len(tokens) - 1
    if predicted < 1:
        raise ValueError(f"evaluate: at least 2 tokens are needed, not {len(tokens)}")
    starts = np.arange(0, predicted, T)
    n_whole = predicted // T
    total = 0.0
    with evaluating(model):
        for i in range(0, n_whole, batch_size):
            x, y = windows(tokens, starts[i : min(i + batch_size, n_whole)], T)  # (B, T)
            total += _loss(model, x, y) * x.size
        if rest := predicted % T:
            x, y = windows(tokens, starts[-1:], rest)  # (1, rest)
            total += _loss(model, x, y) * rest
    return total / predicted


def estimate_loss(model: GPT, loader: DataLoader, eval_iters: int, group: Communicator = ALONE) -> float:
    """Return the mean loss over the loader's first `eval_iters` random batches, which the group shares out.

    The batches are the same at every call, so two estimates differ by the model alone, and how
    often a run is validated changes nothing about its training.
    """
    rounds = -(-eval_iters // group.size)
    with evaluating(model):
        mine = [_loss(model, *loader.batch(i)) for i in range(group.rank, eval_iters, group.size)]
    losses = group.gather(mine + [0.0] * (rounds - len(mine)))  # (size, rounds)
    return sum(losses.T.reshape(-1)[:eval_iters].tolist()) / eval_iters  # in the order of one process alone


def _loss(model: GPT, x: Tokens, y: Tokens) -> float:
    loss = model(x, y)[1]
    return float(loss.item())


@contextmanager
def evaluating(model: GPT) -> Iterator[None]:
    """Turn dropout and gradients off inside the block; the model's mode is as before after it."""
    was_training = model.training
    model.eval()
    try:
        with tg.no_grad():
            yield
    finally:
        model.train(was_training)
