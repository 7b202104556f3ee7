"""Dropout without a stored mask: backward draws the same random numbers again."""

from typing import Any

from tensorgrad.autograd import op
from tensorgrad.backend import Array, Backend
from tensorgrad.random import Stream, default_generator

__all__ = ["dropout"]


def draw(name: str, p: float) -> tuple[float, int, int, int]:
    """Draw the next mask from the default generator. Returns what determines it: (p, seed, stream, step)."""
    if not 0 <= p <= 1:
        raise ValueError(f"{name}: probability {p} is not between 0 and 1")
    return p, default_generator.seed, int(Stream.DROPOUT), default_generator.next_step(Stream.DROPOUT)


@op
def dropout(k: Backend, x: Array, *, p: float = 0.5, training: bool = True) -> tuple[Array, Any]:
    """0 with probability p, x / (1 - p) otherwise; x itself where not training (Srivastava et al. 2014).

    x of any shape -> same shape and dtype. Saves no array, only the number of the draw.
    dx = dy / (1 - p) where x was kept, 0 elsewhere.
    """
    mask = draw("dropout", p) if training and p != 0 else None
    if mask is None:
        return x, lambda dy: dy
    return k.dropout(x, mask), lambda dy: k.dropout(dy, mask)
