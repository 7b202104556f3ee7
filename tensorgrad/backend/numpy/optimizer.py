"""AdamW and the clipping of gradients, in blocks of all parameters: a free thread takes the next block."""

import functools
import math
from typing import Any

import numpy as np

from tensorgrad.backend.arrays import Array, is_half
from tensorgrad.backend.numpy.blocks import Blocks


def adamw(
    p: Array, g: Array, m: Array, v: Array, *,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int, grad_scale: float = 1.0,
) -> None:  # fmt: skip
    """The formula of `Backend.adamw`, in place, with a single temporary array, or two to scale the gradient.

    lr mhat / (sqrt(vhat) + eps) is c lr mhat / (sqrt(v) + c eps), with c = sqrt(1 - beta2^step).
    """
    c = math.sqrt(1 - beta2**step)
    if grad_scale != 1:
        g = g * grad_scale
    part = (1 - beta1) * g
    m *= beta1
    m += part
    np.multiply(g, g, out=part)
    part *= 1 - beta2
    v *= beta2
    v += part
    np.sqrt(v, out=part)
    part += c * eps
    np.divide(m, part, out=part)
    part *= c * lr / (1 - beta1**step)
    p *= 1 - lr * weight_decay
    p -= part


def scale(x: Array, factor: float) -> None:
    """x times a number, in place; half precision in float32, where a small number keeps its digits."""
    np.multiply(x, factor, out=x, dtype=np.float32 if is_half(x.dtype) else None, casting="same_kind")


class Optimization(Blocks):
    """The functions above, where all arrays have one dtype; parameters in half precision are updated one by one."""

    def adamw(self, p: Array, g: Array, m: Array, v: Array, **options: Any) -> None:
        if is_half(p.dtype) or any(x.dtype != p.dtype for x in (g, m, v)):
            super().adamw(p, g, m, v, **options)
        else:
            self._in_blocks_of_each(functools.partial(adamw, **options), [p], [g], [m], [v])

    def adamw_group(
        self, ps: list[Array], gs: list[Array], ms: list[Array], vs: list[Array], masters: list[Array | None], *,
        skip: bool | Array, **options: Any,
    ) -> None:  # fmt: skip
        dtypes = {x.dtype for x in (*ps, *gs, *ms, *vs)}
        if skip or len(dtypes) > 1 or is_half(dtypes.pop()) or any(master is not None for master in masters):
            super().adamw_group(ps, gs, ms, vs, masters, skip=skip, **options)
        else:
            numbers = {name: x.item() if hasattr(x, "item") else x for name, x in options.items()}
            self._in_blocks_of_each(functools.partial(adamw, **numbers), ps, gs, ms, vs)

    def scale(self, arrays: list[Array], factor: Any) -> None:
        self._in_blocks_of_each(functools.partial(scale, factor=factor), arrays)

    def global_norm(self, arrays: list[Array]) -> float:
        squares: list[float] = []

        def square(x: Array) -> None:
            flat = x.reshape(-1)
            squares.append(float(np.vdot(flat, flat)))

        self._in_blocks_of_each(square, map(self.wide, arrays))
        return self.root(sum(sorted(squares)), arrays)  # in a fixed order: the result does not depend on the threads
