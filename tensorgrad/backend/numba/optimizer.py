"""The AdamW update, the global norm of gradients, and their scaling."""

import functools
import math
from typing import Any

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.numba.arrays import BLOCK_ELEMENTS, block_of, flat, is_supported, n_blocks
from tensorgrad.backend.numba.parallel import ALONE, kernel, prange
from tensorgrad.backend.numba.reductions import squares
from tensorgrad.backend.numpy import NumpyBackend
from tensorgrad.backend.runtime import Backend


@kernel
def adamw(
    p: Any, g: Any, m: Any, v: Any, beta1: float, beta2: float, decay: float, rate: float, correction: float,
    eps: float, grad_scale: float, thread: Any = ALONE,
) -> None:  # fmt: skip
    """p = decay p - rate m / (correction sqrt(v) + eps), after g has updated m and v; one pass over the four arrays."""
    number = p.dtype.type
    b1, b2, keep, step, root, small, by = (
        number(beta1), number(beta2), number(decay), number(rate), number(correction), number(eps), number(grad_scale)
    )  # fmt: skip
    c1, c2 = number(1 - beta1), number(1 - beta2)
    for block in prange(n_blocks(p), thread):
        pb, gb, mb, vb = block_of(p, block), block_of(g, block), block_of(m, block), block_of(v, block)
        for i in range(pb.size):
            slope = by * gb[i]
            mb[i] = b1 * mb[i] + c1 * slope
            vb[i] = b2 * vb[i] + c2 * (slope * slope)
            pb[i] = keep * pb[i] - step * mb[i] / (root * np.sqrt(vb[i]) + small)


@kernel
def sums_of_squares(x: Any, sums: Any, thread: Any = ALONE) -> None:
    """sums (blocks): the sum of x^2 over each block, in float64."""
    for block in prange(sums.size, thread):
        sums[block] = squares(block_of(x, block))


@kernel
def scale(x: Any, factor: float, thread: Any = ALONE) -> None:
    """x = factor x."""
    number = x.dtype.type(factor)
    for block in prange(n_blocks(x), thread):
        own = block_of(x, block)
        for i in range(own.size):
            own[i] *= number


@functools.lru_cache(maxsize=1)  # one call for all parameters of a group
def _numbers(
    *, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int, grad_scale: float = 1.0
) -> tuple[float, ...]:
    """The numbers of the kernel: beta1, beta2, decay, rate, correction, eps, grad_scale."""
    rate, correction = lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step)
    return tuple(map(float, (beta1, beta2, 1 - lr * weight_decay, rate, correction, eps, grad_scale)))


class Optimization(NumpyBackend):
    """The kernels above, for float32 and float64."""

    def adamw(self, p: Array, g: Array, m: Array, v: Array, **options: Any) -> None:
        """One AdamW step on p, m and v in place; see Math.adamw."""
        if not is_supported(p, g, m, v) or g.shape != p.shape or not all(x.flags.carray for x in (p, m, v)):
            super().adamw(p, g, m, v, **options)
        else:
            adamw(*map(flat, (p, g, m, v)), *_numbers(**options))

    adamw_group = Backend.adamw_group  # one call of the kernel per parameter

    def global_norm(self, arrays: list[Array]) -> float:
        """The Euclidean norm of all elements of all arrays together, summed in float64."""
        total, sums = 0.0, [np.empty(0)]
        for x in map(self.wide, arrays):
            if is_supported(x):
                sums.append(np.empty(-(-x.size // BLOCK_ELEMENTS)))
                sums_of_squares(flat(x), sums[-1])
            else:
                total += super().global_norm([x]) ** 2
        return self.root(total + float(np.concatenate(sums).sum()), arrays)

    def scale(self, arrays: list[Array], factor: float) -> None:
        """Multiply all arrays by a number, in place."""
        for x in arrays:
            if is_supported(x) and x.flags.carray:
                scale(x.reshape(-1), float(factor))
            else:
                super().scale([x], factor)
