"""The key/value cache: the keys and values of earlier tokens, so that the model computes only the new tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt.weights import Model
from tensorgrad import Tensor, is_grad_enabled
from tensorgrad.backend import Array, backend_of


class LayerCache:
    """The keys and values of one layer, (B, G, capacity, D) each."""

    def __init__(self, cache: "KVCache", k: Array, v: Array) -> None:
        self.cache, self.k, self.v = cache, k, v

    @property
    def start(self) -> int:
        """The slot of the first of the new tokens, where all rows have the same."""
        slots: slice = self.cache.slots
        return slots.start

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v (B, G, T, D) into their slots; return all keys and values so far, as views."""
        c = self.cache
        if c.uniform:
            self.k[:, :, c.slots] = k.data
            self.v[:, :, c.slots] = v.data
        else:  # every row has its own slots; indexing on both sides of a slice moves G to the third axis
            self.k[c.rows, :, c.slots] = k.data.transpose(0, 2, 1, 3)  # (B, T, G, D)
            self.v[c.rows, :, c.slots] = v.data.transpose(0, 2, 1, 3)
        return Tensor(self.k[:, :, : c.end_slot]), Tensor(self.v[:, :, : c.end_slot])

    def grow(self, capacity: int) -> None:
        """Move to arrays of this capacity."""
        self.k, self.v = (_grown(self.cache.xp, array, capacity) for array in (self.k, self.v))


def _grown(xp: Any, array: Array, capacity: int) -> Array:
    n_rows, n_heads, n_slots, head_size = array.shape
    grown = xp.zeros((n_rows, n_heads, capacity, head_size), array.dtype)
    grown[:, :, :n_slots] = array
    return grown


class KVCache:
    """The keys and values of a batch; rows may differ in length.

    capacity: the largest number of tokens in a row; by default, and at most, the window; `reserve` raises it. Clearing
    GPT-2's takes as long as generating a token. The slot of a token is its position, so a short row has empty slots at
    its end. They are masked, and hold zeros, because a masked value is multiplied by 0, and 0 times nan is nan.
    """

    def __init__(self, model: Model, n_rows: int, capacity: int | None = None) -> None:
        config, weight = model.config, next(iter(model.h[0].parameters())).data  # a norm's: never quantised
        self.window = config.block_size
        self.capacity = self.window if capacity is None else min(capacity, self.window)
        shape = (n_rows, config.n_kv_head, self.capacity, config.head_size)
        self.xp = backend_of("KVCache", [weight]).xp
        self.lengths = np.zeros(n_rows, dtype=np.int64)  # tokens in each row; on the host
        self.layers = [
            LayerCache(self, self.xp.zeros(shape, weight.dtype), self.xp.zeros(shape, weight.dtype))
            for _ in range(config.n_layer)
        ]

    def advance(self, n_new: int) -> Tensor:
        """Reserve slots for n_new more tokens per row; return their positions: (T,), or (B, T) where rows differ."""
        if is_grad_enabled():
            raise ValueError("KVCache: a cache is for generation, it keeps no gradients: run the model under no_grad()")
        start, self.end_slot = int(self.lengths.min()), int(self.lengths.max()) + n_new
        if self.end_slot > self.capacity:
            beyond = "beyond the window, the model has to compute the last tokens again"
            raise ValueError(f"the cache has room for {self.capacity} tokens per row, not {self.end_slot}: {beyond}")
        self.uniform = start + n_new == self.end_slot
        if self.uniform:
            self.slots = slice(start, self.end_slot)
            pos = self.xp.arange(start, self.end_slot)  # (T,)
        else:
            self.rows = self.xp.arange(len(self.lengths))[:, None]  # (B, 1)
            self.slots = pos = self.xp.asarray(self.lengths[:, None] + np.arange(n_new))  # (B, T)
        self.lengths += n_new
        return Tensor(pos)

    def reserve(self, n_tokens: int) -> None:
        """Make room for n_tokens in every row, at most the window.

        The capacity at least doubles, so that a row that grows to n tokens is copied log2(n) times and not n times.
        """
        if self.capacity < min(n_tokens, self.window):
            capacity = min(max(n_tokens, 2 * self.capacity), self.window)
            for layer in self.layers:
                layer.grow(capacity)
            self.capacity = capacity

    def crop(self, n_tokens: int) -> None:
        """Remove all but the first n_tokens of every row."""
        self.lengths = np.minimum(self.lengths, n_tokens)

    def keep(self, rows: Sequence[int]) -> None:
        """Remove all other rows."""
        self.lengths = self.lengths[list(rows)]
        for layer in self.layers:
            layer.k, layer.v = layer.k[list(rows)], layer.v[list(rows)]
