"""The key/value cache: what attention needs of earlier tokens, so that only new ones are run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpt.model import GPT
from tensorgrad import Tensor, is_grad_enabled
from tensorgrad.backend import Array, backend_of


class LayerCache:
    """The keys and values of one layer, (B, H, room, D) each, in place from the first."""

    def __init__(self, cache: KVCache, k: Array, v: Array) -> None:
        self.cache, self.k, self.v = cache, k, v

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v (B, H, T, D) into their slots; return all keys and values so far, as views."""
        c = self.cache
        if c.uniform:
            self.k[:, :, c.slots] = k.data
            self.v[:, :, c.slots] = v.data
        else:  # every row at slots of its own; an index at both ends of a slice puts H third
            self.k[c.rows, :, c.slots] = k.data.transpose(0, 2, 1, 3)  # (B, T, H, D)
            self.v[c.rows, :, c.slots] = v.data.transpose(0, 2, 1, 3)
        return Tensor(self.k[:, :, : c.end_slot]), Tensor(self.v[:, :, : c.end_slot])


class KVCache:
    """The keys and values of a batch; rows may differ in length.

    room: the most tokens that a row will hold; without it, and at most, the window. Memory that is never used costs the
    time to clear it, which for one sequence of GPT-2's window is that of a token.
    The slot of a token is its position, so a short row just has empty slots behind it. Those are
    masked, and hold zeros: what is masked counts 0 times its value, which for a nan is nan.
    """

    def __init__(self, model: GPT, n_rows: int, room: int | None = None) -> None:
        config, weight = model.config, model.wte.weight.data
        self.room = config.block_size if room is None else min(room, config.block_size)
        shape = (n_rows, config.n_head, self.room, config.n_embd // config.n_head)
        self.xp = backend_of("KVCache", [weight]).xp
        self.lengths = np.zeros(n_rows, dtype=np.int64)  # tokens held, by row; on the host
        self.layers = [
            LayerCache(self, self.xp.zeros(shape, weight.dtype), self.xp.zeros(shape, weight.dtype))
            for _ in range(config.n_layer)
        ]

    def advance(self, n_new: int) -> Tensor:
        """Choose the slots of n_new more tokens a row; return their positions: (T,), or (B, T) where rows differ."""
        if is_grad_enabled():
            raise ValueError("KVCache: a cache is for generation, it keeps no gradients: run the model under no_grad()")
        start, self.end_slot = int(self.lengths.min()), int(self.lengths.max()) + n_new
        if self.end_slot > self.room:
            raise ValueError(
                f"the cache holds {self.room} tokens a row, not {self.end_slot}: "
                "past the window, the last tokens have to be run again"
            )
        self.uniform = start + n_new == self.end_slot
        if self.uniform:
            self.slots = slice(start, self.end_slot)
            pos = self.xp.arange(start, self.end_slot)  # (T,)
        else:
            self.rows = self.xp.arange(len(self.lengths))[:, None]  # (B, 1)
            self.slots = pos = self.xp.asarray(self.lengths[:, None] + np.arange(n_new))  # (B, T)
        self.lengths += n_new
        return Tensor(pos)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows."""
        self.lengths = self.lengths[list(rows)]
        for layer in self.layers:
            layer.k, layer.v = layer.k[list(rows)], layer.v[list(rows)]
