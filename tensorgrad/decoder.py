"""Generating text: one token through all blocks in one op."""

from collections.abc import Sequence

from tensorgrad.autograd import op
from tensorgrad.backend import Array, Backend
from tensorgrad.backend.decoder import WEIGHTS

__all__ = ["decode_blocks"]


@op
def decode_blocks(
    k: Backend, x: Array, *weights: Array, keys: Sequence[Array], values: Sequence[Array], position: int,
    rope_base: float, eps: float,
) -> tuple[Array, None]:  # fmt: skip
    """The blocks of gpt/llama.py for one token: x (1, 1, C) -> (1, 1, C), without gradient.

    weights: of each block norm_1 (C,); q (C, C); key, v (G D, C); o (C, C); norm_2 (C,); gate, up (F, C); down (C, F).
    keys, values: of each block an array (1, G, S, D) with those of the tokens before, to which this token's are added
    at `position`.
    """
    if x.ndim != 3 or x.shape[:2] != (1, 1):
        raise ValueError(f"decode_blocks: x {x.shape} is not (1, 1, C), one token")
    if not len(weights) == WEIGHTS * len(keys) == WEIGHTS * len(values):
        given = f"{len(weights)} weights, {len(keys)} keys and {len(values)} values"
        raise ValueError(f"decode_blocks: {given}: every block has {WEIGHTS}, one and one")
    slots = min((array.shape[2] for array in keys), default=0)
    if not 0 <= position < slots:
        raise ValueError(f"decode_blocks: position {position} is not below {slots}, the number of slots")
    return k.decode_blocks(x, weights, keys, values, position=position, rope_base=rope_base, eps=eps), None
