"""One token through a block of a Llama in one kernel: five parallel loops in place of some twenty calls.

A call from Python costs as much time as reading half a megabyte of weights; a block of SmolLM2 in q8_0 has four.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.numba.arrays import is_supported
from tensorgrad.backend.numba.compile import inline, noinline
from tensorgrad.backend.numba.linear import Linear
from tensorgrad.backend.numba.linear_skinny import MAX_GROUP_PREFETCH_BYTES, ROW_PREFETCH_BYTES, WEIGHT_ROWS, dots
from tensorgrad.backend.numba.mathematics import ONE, exp, logistic
from tensorgrad.backend.numba.parallel import ALONE, prange
from tensorgrad.backend.numba.reductions import dot, largest, total
from tensorgrad.backend.numba.rotary_embedding import RotaryEmbedding, rotations
from tensorgrad.backend.numba.strided import Strided, array, contiguous_row

GROUP = WEIGHT_ROWS[1]  # rows of the weights that are read at a time


def operand(x: Any, weight: Any) -> Any:
    """X (n) in the form in which `products` reads it for weights of this type: here (1, n)."""
    return x.reshape(1, -1)


def products(x: Any, weight: Any, y: Any, first: int, last: int) -> None:
    """y[first:last] = weight[first:last] @ x, for an x from `operand` and a `first` that `share` returned."""
    float_products(x, weight, y, first, last)


@inline
def float_products(x: Any, weight: Any, y: Any, first: int, last: int) -> None:
    """See `products`: for weights of the dtype of x, which are read in groups as in `skinny_product`."""
    group_bytes = GROUP * weight.strides[0]
    ahead = group_bytes if group_bytes <= MAX_GROUP_PREFETCH_BYTES else ROW_PREFETCH_BYTES
    for top in range(first, last, GROUP):
        sums = dots(x, (0,), weight, top, ahead)
        for i in range(GROUP):
            if top + i < last:
                y[top + i] = sums[i]


@inline
def share(n_rows: int, part: int, parts: int) -> tuple[int, int]:
    """The first and the last row of one of `parts` parts, which begin at multiples of GROUP."""
    n_groups = (n_rows + GROUP - 1) // GROUP
    return n_groups * part // parts * GROUP, min(n_groups * (part + 1) // parts * GROUP, n_rows)


@inline
def normalized(x: Any, weight: Any, eps: float) -> Any:
    """rms_norm of x (n)."""
    y = np.empty_like(x)
    scale = ONE / np.sqrt(dot(x, x) / x.size + x.dtype.type(eps))
    for i in range(x.size):
        y[i] = x[i] * scale * weight[i]
    return y


@inline
def rotate_heads(x: Any, cos: Any, sin: Any) -> None:
    """Rotate every head of x (H D) in place; cos and sin (D/2)."""
    half = cos.size
    for start in range(0, x.size, 2 * half):
        for i in range(half):
            first, second = x[start + i], x[start + half + i]
            x[start + i] = first * cos[i] - second * sin[i]
            x[start + half + i] = first * sin[i] + second * cos[i]


@inline
def attend(query: Any, keys: Any, values: Any, n_keys: int, y: Any) -> None:
    """y (D) = softmax(query keys^T / sqrt(D)) values, over the first n_keys of keys and values (S, D)."""
    scale = ONE / np.sqrt(query.dtype.type(query.size))
    weights = np.empty(n_keys, query.dtype)
    for s in range(n_keys):
        weights[s] = dot(query, contiguous_row(keys[s])) * scale
    top = largest(weights)
    for s in range(n_keys):
        weights[s] = exp(weights[s] - top)
    per_key = ONE / total(weights)
    y[:] = 0
    for s in range(n_keys):
        value, weight = contiguous_row(values[s]), weights[s] * per_key
        for d in range(y.size):
            y[d] += weight * value[d]


# The parallel loops: every thread has its own rows of the weights, or its own heads.


@noinline
def project(x: Any, q: Any, k: Any, v: Any, query: Any, key: Any, value: Any, parts: int, thread: Any = ALONE) -> None:
    """query, key and value of one token, from an x that `operand` returned."""
    for part in prange(parts, thread):
        first, last = share(len(q), part, parts)
        products(x, q, query, first, last)
        first, last = share(len(k), part, parts)
        products(x, k, key, first, last)
        products(x, v, value, first, last)


@noinline
def attend_heads(query: Any, keys: Any, values: Any, n_keys: int, y: Any, thread: Any = ALONE) -> None:
    """`attend` for every head of query and y (H D)."""
    n_group, width = keys.shape[0], keys.shape[2]
    n_head = query.size // width
    for head in prange(n_head, thread):
        g, start = head // (n_head // n_group), head * width
        attend(query[start : start + width], keys[g], values[g], n_keys, y[start : start + width])


@noinline
def multiply(x: Any, weight: Any, y: Any, parts: int, thread: Any = ALONE) -> None:
    """y = weight @ x, for an x that `operand` returned."""
    for part in prange(parts, thread):
        first, last = share(len(weight), part, parts)
        products(x, weight, y, first, last)


@noinline
def gated_product(x: Any, gate: Any, up: Any, y: Any, passing: Any, parts: int, thread: Any = ALONE) -> None:
    """y = silu(gate @ x) (up @ x), the second factor in `passing`, for an x that `operand` returned."""
    for part in prange(parts, thread):
        first, last = share(len(gate), part, parts)
        products(x, gate, y, first, last)
        products(x, up, passing, first, last)
        for i in range(first, last):
            y[i] = y[i] * logistic(y[i]) * passing[i]


def decode_block(
    x: Any, y: Any, norm_1: Any, q: Any, k: Any, v: Any, o: Any, norm_2: Any, gate: Any, up: Any, down: Any,
    keys: Any, values: Any, cos: Any, sin: Any, position: int, eps: float, parts: int, thread: Any = ALONE,
) -> None:  # fmt: skip
    """y (C) from x (C): see `DecoderMath.decode_block`."""
    n_group, width = keys.shape[0], keys.shape[2]
    query, key, value = np.empty(len(q), x.dtype), np.empty(len(k), x.dtype), np.empty(len(v), x.dtype)
    normed = operand(normalized(x, norm_1, eps), q)
    project(normed, q, k, v, query, key, value, parts, thread)
    rotate_heads(query, cos, sin)
    rotate_heads(key, cos, sin)
    for g in range(n_group):
        for d in range(width):
            keys[g, position, d] = key[g * width + d]
            values[g, position, d] = value[g * width + d]

    attended = np.empty(query.size, x.dtype)
    attend_heads(query, keys, values, position + 1, attended, thread)
    multiply(operand(attended, o), o, y, parts, thread)
    for i in range(x.size):
        y[i] += x[i]

    hidden, passing = np.empty(len(gate), x.dtype), np.empty(len(up), x.dtype)
    normed = operand(normalized(y, norm_2, eps), gate)
    gated_product(normed, gate, up, hidden, passing, parts, thread)
    change = np.empty(x.size, x.dtype)
    multiply(operand(hidden, down), down, change, parts, thread)
    for i in range(x.size):
        y[i] += change[i]


def signature(weight: Any) -> Any:
    """The types of the arguments, from the type of the weights that belong to a Numba float type."""

    def types_of(real: Any) -> tuple[Any, ...]:
        row, matrix, cache = array(real, 1, "C"), weight(real), array(real, 3)
        matrices = (row, *(matrix,) * 4, row, *(matrix,) * 3)
        return row, row, *matrices, cache, cache, row, row, types.int64, types.float64, types.int64

    return types_of


overload(operand)(lambda x, weight: (lambda x, weight: x.reshape(1, -1)) if weight.dtype == x.dtype else None)
overload(products, jit_options={"forceinline": True})(
    lambda x, weight, y, first, last: (
        (lambda x, weight, y, first, last: float_products(x, weight, y, first, last))
        if weight.dtype == y.dtype
        else None
    )
)
DECODE_BLOCK = Strided(decode_block, signature(lambda real: array(real, 2, "C")))


class Decoder(RotaryEmbedding, Linear):
    """The kernel above, for float32 and float64."""

    def decode_block(self, x: Array, *weights: Any, keys: Array, values: Array, **options: Any) -> Array:
        """A token through a block: see `DecoderMath.decode_block`."""
        if not supports((x, *weights), keys, values):
            return super().decode_block(x, *weights, keys=keys, values=values, **options)
        return run(DECODE_BLOCK, self.threads, x, weights, keys, values, **options)


def supports(arrays: Sequence[Array], keys: Array, values: Array) -> bool:
    """Whether the kernel supports these: floating, of one dtype; in C order except the keys and values."""
    contiguous_rows = keys.strides[-1] == keys.itemsize == values.strides[-1]
    return is_supported(*arrays, keys, values) and contiguous_rows and all(a.flags.carray for a in arrays)


def run(
    kernel: Strided, threads: int, x: Array, weights: tuple[Any, ...], keys: Array, values: Array, *,
    position: int, rope_base: float, eps: float,
) -> Array:  # fmt: skip
    """Call one of the kernels for x (1, 1, C)."""
    at = np.array([position])
    cos, sin = rotations(at.tobytes(), at.dtype.str, at.shape, keys.shape[2] // 2, rope_base, x.dtype)
    y = np.empty(x.shape, x.dtype)
    kernel(x.reshape(-1), y.reshape(-1), *weights, keys, values, cos[0], sin[0], position, eps, threads)
    return y
