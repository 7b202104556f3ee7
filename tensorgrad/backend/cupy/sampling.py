"""The next token of every row, chosen on the GPU, as gpt/generate/sampling.py chooses it on the CPU."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.cupy.kernels import THREADS, Kernels, has_rows, row_stride
from tensorgrad.backend.cupy.launcher import c_type

DRAW_THREADS = 1024
MAX_CLASSES = 2**18  # whose weights a sum of 64 bits can hold: sampling.cu


@dataclass(frozen=True)
class DecodingState:
    """What a step of generation reads and writes, in the memory of the GPU: arrays of B rows.

    token (B,): the last token, int64; -1 after logits that are not finite. position (B,): its slot in the cache, int64;
    it stays at the last slot. step (B,): the number of the next draw, uint32. seeds (B,): uint64. seen (B, V): which
    tokens the context has, bool, or None without a repetition penalty.
    """

    token: Array
    position: Array
    step: Array
    seeds: Array
    seen: Array | None


class Sampling(Kernels):
    """The kernels of sampling.cu."""

    def decoding_state(
        self, tokens: list[int], positions: list[int], seeds: list[int], *, step: int, seen: Any = None
    ) -> DecodingState:
        """The state before draw number `step`, of rows with these last tokens. seen: on the host."""
        return DecodingState(
            self.upload(np.array(tokens, np.int64)), self.upload(np.array(positions, np.int64)),
            self.xp.full(len(tokens), step, np.uint32), self.upload(np.array(seeds, np.uint64)),
            None if seen is None else self.upload(seen),
        )  # fmt: skip

    def choose(
        self, logits: Array, state: DecodingState, *, n_slots: int, temperature: float, top_k: int | None, top_p: float,
        repetition_penalty: float,
    ) -> None:  # fmt: skip
        """Choose a token of every row from its logits (B, V), and advance the state to the next; n_slots: the cache's.

        The options are those of Sampling in gpt/generate/sampling.py, and so are the tokens.
        """
        logits = logits if has_rows(logits) else self.xp.ascontiguousarray(logits)
        n_batch, n_classes = logits.shape
        top = self.xp.empty(n_batch, np.float64)
        progress = (state.token, state.position, state.step, state.seen)
        sizes = np.int32(n_classes), np.int32(n_slots)
        penalty = np.float64(repetition_penalty)
        given = (logits, row_stride(logits))
        greedy = np.int32(temperature == 0)
        self._start_sampling(
            "largest", (n_batch,), DRAW_THREADS, logits, (*given, top, *progress, *sizes, penalty, greedy)
        )
        if temperature == 0:
            return
        weights = self.xp.empty(logits.shape, np.uint64)
        grid = (-(-n_classes // THREADS), n_batch)
        args = (*given, top, state.seen, weights, np.int32(n_classes), penalty, np.float64(temperature))
        self._start_sampling("weigh", grid, THREADS, logits, args)
        kept = np.int32(n_classes if top_k is None else min(top_k, n_classes)), np.float64(top_p)
        self._start_sampling(
            "draw", (n_batch,), DRAW_THREADS, logits, (weights, top, state.seeds, *progress, *sizes, *kept)
        )

    def _start_sampling(self, kernel: str, grid: tuple[int, ...], threads: int, logits: Array, args: Any) -> None:
        self.launcher.launch("sampling", kernel, grid, (threads,), args, defines={"T": c_type(logits.dtype)})
