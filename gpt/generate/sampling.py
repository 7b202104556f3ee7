"""From the logits of the next token to the token: temperature, top-k, top-p, repetition penalty.

Everything here runs on the host in float64 NumPy, whatever the backend of the model, and every draw
is a pure function of (seed, number of the draw): a row of a batch draws what it would draw alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

import tensorgrad as tg
from tensorgrad.backend import Array


class SamplingOptions(TypedDict, total=False):
    """The keywords that every function of gpt/generate/__init__.py takes and gives to Sampling."""

    temperature: float
    top_k: int | None
    top_p: float
    repetition_penalty: float
    seed: int | Sequence[int] | None


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; applied in the order of the fields, as transformers does.

    seed: one number gives every row that seed, so that a row gets what it would get alone; a list
    has one for each row (several samples of one prompt want several seeds); None draws them from
    tensorgrad's own generator, which `tensorgrad.manual_seed` sets.
    Raises ValueError for a value out of range.
    """

    repetition_penalty: float = 1.0  # Keskar et al. 2019 (CTRL): above 1 discourages what was there
    temperature: float = 1.0  # 0: greedy, always the likeliest
    top_k: int | None = None  # only the k likeliest
    top_p: float = 1.0  # only the fewest likeliest that make up this share (Holtzman et al. 2020)
    seed: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.repetition_penalty < math.inf:
            _refuse("repetition_penalty", self.repetition_penalty, "above 0; 1 changes nothing")
        if not 0 <= self.temperature < math.inf:
            _refuse("temperature", self.temperature, "at least 0; 0 takes the likeliest token")
        whole = isinstance(self.top_k, int | np.integer)
        if self.top_k is not None and not (whole and self.top_k >= 1):
            _refuse("top_k", self.top_k, "a whole number from 1, or None for all tokens")
        if not 0 < self.top_p <= 1:
            _refuse("top_p", self.top_p, "above 0 and at most 1")

    def row_generators(self, n_rows: int) -> list[tg.random.Generator]:
        """Return each row's own random numbers."""
        if self.seed is None:
            seeds = tg.random.default_generator.integers(0, 2**32, (n_rows,), stream=tg.random.Stream.SAMPLING).tolist()
        elif isinstance(self.seed, int | np.integer):
            seeds = [self.seed] * n_rows
        else:
            seeds = list(self.seed)
        if len(seeds) != n_rows:
            _refuse("seed", self.seed, f"one number, or one for each of the {n_rows} prompts")
        return [tg.random.Generator(seed) for seed in seeds]

    def choose(self, logits: Array, seen: Sequence[int], generator: tg.random.Generator, step: int) -> int:
        """Return the next token.

        logits (V,) of one row, seen: the row's tokens so far, step: the number of this draw.
        Raises FloatingPointError when a logit is nan or infinite.
        """
        logits = logits.astype(np.float64)  # a copy, ours to change
        if not np.isfinite(logits).all():
            raise FloatingPointError("the logits are nan or infinite: the model's training diverged")
        self._penalise(logits, seen)
        if self.temperature == 0:
            return int(logits.argmax())
        with np.errstate(over="ignore"):  # the coldest temperatures: -inf is the right answer
            logits = (logits - logits.max()) / self.temperature
        self._keep_top_k(logits)
        self._keep_top_p(logits)
        cumulative = np.exp(logits).cumsum()  # (V,), not normalised
        draw = generator.uniform(
            (), dtype=np.float64, stream=tg.random.Stream.SAMPLING, step=step
        )  # in [0, 1): the token is the first whose share of the line reaches beyond it
        return int(np.searchsorted(cumulative, draw * cumulative[-1], side="right"))

    def _penalise(self, logits: Array, seen: Sequence[int]) -> None:
        if self.repetition_penalty != 1:
            ids = np.unique(np.asarray(seen, dtype=np.int64))  # once each, however often seen
            x, penalty = logits[ids], self.repetition_penalty
            logits[ids] = np.where(x < 0, x * penalty, x / penalty)

    def _keep_top_k(self, logits: Array) -> None:
        if self.top_k is not None and self.top_k < len(logits):
            kth = np.partition(logits, -self.top_k)[-self.top_k]
            logits[logits < kth] = -np.inf  # what ties with the k-th stays, as in nanoGPT

    def _keep_top_p(self, logits: Array) -> None:
        if self.top_p < 1:
            order = np.argsort(-logits, kind="stable")
            p = np.exp(logits[order])
            before = p.cumsum() - p  # what the likelier ones make up: 0 for the first, so it stays
            logits[order[before >= self.top_p * p.sum()]] = -np.inf


def _refuse(name: str, value: object, rule: str) -> None:
    raise ValueError(f"{name} must be {rule}, not {value!r}")
