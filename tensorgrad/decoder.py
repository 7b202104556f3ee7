"""Generating text: one token through a whole block in one op."""

from typing import Any

from tensorgrad.autograd import op
from tensorgrad.backend import Array, Backend

__all__ = ["decode_block"]


@op
def decode_block(
    k: Backend, x: Array, norm_1: Array, q: Array, key: Array, v: Array, o: Array, norm_2: Array,
    gate: Array, up: Array, down: Array, *,
    keys: Array, values: Array, position: int, rope_base: float, eps: float,
) -> tuple[Array, None]:  # fmt: skip
    """A block of gpt/llama.py for one token: x (1, 1, C) -> (1, 1, C), without gradient.

    norm_1, norm_2 (C,); q, o (C, C); key, v (G D, C); gate, up (F, C); down (C, F): the weights.
    keys, values (1, G, S, D): arrays with those of the tokens before, to which this token's are added at `position`.
    """
    if x.ndim != 3 or x.shape[:2] != (1, 1):
        raise ValueError(f"decode_block: x {x.shape} is not (1, 1, C), one token")
    if not 0 <= position < keys.shape[2]:
        raise ValueError(f"decode_block: position {position} is not below {keys.shape[2]}, the number of slots")
    weights = norm_1, q, key, v, o, norm_2, gate, up, down
    options: dict[str, Any] = {"position": position, "rope_base": rope_base, "eps": eps}
    return k.decode_block(x, *weights, keys=keys[0], values=values[0], **options), None
