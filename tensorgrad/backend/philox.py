"""Philox4x32-10: random bits as a pure function of a key and a counter.

Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). The
generator has no state, so any element of any stream can be recomputed: dropout stores no mask, and a resumed run draws
exactly the numbers of a run that was not interrupted.
"""

from typing import Any

from tensorgrad.backend.arrays import Array

MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85  # golden ratio, sqrt(3) - 1
ROUNDS = 10
LOW_32 = 0xFFFFFFFF


def philox4x32(xp: Any, counter: tuple[Array, Array, Array, Array], key: tuple[int, int]) -> tuple[Array, ...]:
    """Ten rounds on a counter, four uint64 arrays of 32-bit words, under a key of two 32-bit ints; returns four."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    shift, low = xp.uint64(32), xp.uint64(LOW_32)
    for _ in range(ROUNDS):
        product_0 = x0 * xp.uint64(MULTIPLIER_0)
        product_1 = x2 * xp.uint64(MULTIPLIER_1)
        x0, x1, x2, x3 = (
            (product_1 >> shift) ^ x1 ^ xp.uint64(k0),
            product_1 & low,
            (product_0 >> shift) ^ x3 ^ xp.uint64(k1),
            product_0 & low,
        )
        k0, k1 = (k0 + WEYL_0) & LOW_32, (k1 + WEYL_1) & LOW_32
    return x0, x1, x2, x3


def random_bits(xp: Any, n: int, seed: int, stream: int, step: int, start: int = 0) -> Array:
    """Words `start` to `start + n` of one stream: (n,) uint32.

    Word e is word e % 4 of the block with counter (e // 4 low, e // 4 high, step, stream) under the 64-bit key `seed`.
    """
    first, last = start // 4, -(-(start + n) // 4)
    block = xp.arange(first, last, dtype=xp.uint64)
    same = xp.zeros_like(block)
    counter = (
        block & xp.uint64(LOW_32), block >> xp.uint64(32),
        same + xp.uint64(step & LOW_32), same + xp.uint64(stream & LOW_32),
    )  # fmt: skip
    words = philox4x32(xp, counter, (seed & LOW_32, (seed >> 32) & LOW_32))
    bits = xp.stack(words, axis=-1).astype(xp.uint32).reshape(-1)
    return bits[start - 4 * first : start - 4 * first + n]
