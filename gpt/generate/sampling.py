"""Sampling of the next token from its logits: temperature, top-k, top-p, repetition penalty.

It runs in float64 NumPy, whatever the backend of the model. A draw depends on its seed and number alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

import tensorgrad as tg
from tensorgrad.backend import Array


class SamplingOptions(TypedDict, total=False):
    """The keyword arguments of Sampling, which every function of gpt.generate takes."""

    temperature: float
    top_k: int | None
    top_p: float
    repetition_penalty: float
    seed: int | Sequence[int] | None


NOT_FINITE = "the logits are nan or infinite: the model's training diverged"
MOSTLY_ENOUGH = 256  # of the most likely tokens, for top-p


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the options are applied in the order of the fields, as in transformers.

    seed: a number is the seed of every row, so that a row gets the same tokens as it would alone; a list has one for
    each row, for several samples of one prompt; None draws the seeds from tensorgrad's generator, which
    `tensorgrad.manual_seed` sets. Raises ValueError for a value out of range.
    """

    repetition_penalty: float = 1.0  # above 1 discourages tokens of the context (Keskar et al. 2019, CTRL)
    temperature: float = 1.0  # 0: greedy, the most likely token
    top_k: int | None = None  # only the k most likely tokens
    top_p: float = 1.0  # only the most likely tokens of this total probability (Holtzman et al. 2020)
    seed: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.repetition_penalty < math.inf:
            _refuse("repetition_penalty", self.repetition_penalty, "above 0; 1 has no effect")
        if not 0 <= self.temperature < math.inf:
            _refuse("temperature", self.temperature, "at least 0 (0 takes the most likely token)")
        whole = isinstance(self.top_k, int | np.integer)
        if self.top_k is not None and not (whole and self.top_k >= 1):
            _refuse("top_k", self.top_k, "a whole number of at least 1, or None for all tokens")
        if not 0 < self.top_p <= 1:
            _refuse("top_p", self.top_p, "above 0 and at most 1")

    def row_generators(self, n_rows: int) -> list[tg.random.Generator]:
        """Return a random generator for each row."""
        if self.seed is None:
            seeds = tg.random.default_generator.integers(0, 2**32, (n_rows,), stream=tg.random.Stream.SAMPLING).tolist()
        elif isinstance(self.seed, int | np.integer):
            seeds = [self.seed] * n_rows
        else:
            seeds = list(self.seed)
        if len(seeds) != n_rows:
            _refuse("seed", self.seed, f"a number, or one for each of the {n_rows} prompts")
        return [tg.random.Generator(seed) for seed in seeds]

    def choose(self, logits: Array, seen: Sequence[int], generator: tg.random.Generator, step: int) -> int:
        """Return the token after `seen`, from its logits (V,), by the draw of this number.

        Raises FloatingPointError where a logit is nan or infinite.
        """
        logits = logits.astype(np.float64)  # a copy
        if not np.isfinite(logits).all():
            raise FloatingPointError(NOT_FINITE)
        self._penalise(logits, seen)
        if self.temperature == 0:
            return int(logits.argmax())
        with np.errstate(over="ignore"):  # at very low temperatures -inf is the correct result
            logits = (logits - logits.max()) / self.temperature
        self._keep_top_k(logits)
        self._keep_top_p(logits)
        cumulative = np.exp(logits).cumsum()  # (V,), not normalised
        draw = generator.uniform((), dtype=np.float64, stream=tg.random.Stream.SAMPLING, step=step)  # in [0, 1)
        return int(np.searchsorted(cumulative, draw * cumulative[-1], side="right"))

    def _penalise(self, logits: Array, seen: Sequence[int]) -> None:
        if self.repetition_penalty != 1:
            ids = np.unique(np.asarray(seen, dtype=np.int64))  # each token once
            x, penalty = logits[ids], self.repetition_penalty
            logits[ids] = np.where(x < 0, x * penalty, x / penalty)

    def _keep_top_k(self, logits: Array) -> None:
        if self.top_k is not None and self.top_k < len(logits):
            kth = np.partition(logits, -self.top_k)[-self.top_k]
            logits[logits < kth] = -np.inf  # tokens as likely as the k-th are kept, as in nanoGPT

    def _keep_top_p(self, logits: Array) -> None:
        if self.top_p < 1:
            needed = self.top_p * np.exp(logits).sum()
            for n in (MOSTLY_ENOUGH, len(logits)):  # sorting all would take as long as half a small model
                least = np.partition(logits, -n)[-n] if n < len(logits) else -np.inf
                order = np.flatnonzero(logits >= least)  # with all that are as likely as the n-th
                order = order[np.argsort(-logits[order], kind="stable")]
                p = np.exp(logits[order])
                before = p.cumsum() - p  # probability of the more likely tokens: 0 for the first, which is always kept
                if p.sum() >= needed:
                    break
            kept = order[before < needed]
            logits[:], logits[kept] = -np.inf, logits[kept]


def _refuse(name: str, value: object, rule: str) -> None:
    raise ValueError(f"{name} must be {rule}, not {value!r}")
