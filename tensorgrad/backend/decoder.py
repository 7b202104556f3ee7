"""One token through the blocks of a Llama, in plain array code: the reference for kernels that do it in one call."""

from collections.abc import Sequence
from typing import Any

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.math import Math

WEIGHTS = 9  # of a block


class DecoderMath(Math):
    """A composition of other kernels. Generating a token makes few numbers, so that calling kernels takes the time."""

    def decode_blocks(
        self, x: Array, weights: Sequence[Any], keys: Sequence[Array], values: Sequence[Array], **options: Any
    ) -> Array:
        """x (1, 1, C) -> (1, 1, C) through all blocks: of each nine weights, and keys and values (1, G, S, D)."""
        for i in range(len(keys)):
            block = weights[WEIGHTS * i : WEIGHTS * (i + 1)]
            x = self.decode_block(x, *block, keys=keys[i][0], values=values[i][0], **options)
        return x

    def decode_block(
        self, x: Array, norm_1: Array, q: Any, k: Any, v: Any, o: Any, norm_2: Array, gate: Any, up: Any, down: Any, *,
        keys: Array, values: Array, position: int, rope_base: float, eps: float,
    ) -> Array:  # fmt: skip
        """x (1, 1, C) -> (1, 1, C). keys and values (G, S, D): slots 0 to position - 1 are read, `position` is written.

        x += o attention(q, k, v), with q, k and v of rms_norm(x); x += down swiglu(gate, up), of rms_norm(x) again.
        """
        n_group, _, D = keys.shape
        normed = self.rms_norm(x, norm_1, eps)[0]
        query, key, value = (
            self.linear(normed, w, None).reshape(1, -1, 1, D) for w in (q, k, v)
        )  # (1, H, 1, D), (1, G, 1, D) twice
        at = self.xp.asarray([position])
        keys[:, position] = self.rotary_embedding(key, at, rope_base)[0, :, 0]
        values[:, position] = value[0, :, 0]
        seen = slice(position + 1)
        query = self.rotary_embedding(query, at, rope_base)
        y, _ = self.attention(query, keys[None, :, seen], values[None, :, seen], False, None, None, D**-0.5)
        x = x + self.linear(y.reshape(1, 1, -1), o, None)
        normed = self.rms_norm(x, norm_2, eps)[0]
        return x + self.linear(self.swiglu(self.linear(normed, gate, None), self.linear(normed, up, None)), down, None)
