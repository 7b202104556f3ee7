"""One token through the blocks of a Llama in one kernel: five parallel loops a block in place of some twenty calls.

A call from Python costs as much time as reading half a megabyte of weights; a block of SmolLM2 in q8_0 has four.
"""

import operator
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.decoder import WEIGHTS
from tensorgrad.backend.numba.arrays import is_supported
from tensorgrad.backend.numba.compile import inline, noinline
from tensorgrad.backend.numba.dot_products import GROUP_SIZES, dots
from tensorgrad.backend.numba.linear import Linear
from tensorgrad.backend.numba.linear_skinny import MAX_GROUP_PREFETCH_BYTES, ROW_PREFETCH_BYTES
from tensorgrad.backend.numba.mathematics import ONE, exp, logistic
from tensorgrad.backend.numba.parallel import ALONE, prange
from tensorgrad.backend.numba.reductions import dot, largest, total
from tensorgrad.backend.numba.rotary_embedding import RotaryEmbedding, rotations
from tensorgrad.backend.numba.strided import Strided, array, array_at, contiguous_row

GROUP = GROUP_SIZES[1]  # rows of the weights that are read at a time


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


@noinline
def decode_block(
    x: Any, norm_1: Any, q: Any, k: Any, v: Any, o: Any, norm_2: Any, gate: Any, up: Any, down: Any,
    keys: Any, values: Any, cos: Any, sin: Any, position: int, eps: float, parts: int, thread: Any = ALONE,
) -> None:  # fmt: skip
    """x (C) through one block, in place: see `DecoderMath.decode_block`."""
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

    attended, change = np.empty(query.size, x.dtype), np.empty(x.size, x.dtype)
    attend_heads(query, keys, values, position + 1, attended, thread)
    multiply(operand(attended, o), o, change, parts, thread)
    for i in range(x.size):
        x[i] += change[i]

    hidden, passing = np.empty(len(gate), x.dtype), np.empty(len(up), x.dtype)
    normed = operand(normalized(x, norm_2, eps), gate)
    gated_product(normed, gate, up, hidden, passing, parts, thread)
    multiply(operand(hidden, down), down, change, parts, thread)
    for i in range(x.size):
        x[i] += change[i]


def decode_blocks(
    x: Any, norm_1: Any, q: Any, k: Any, v: Any, o: Any, norm_2: Any, gate: Any, up: Any, down: Any,
    keys: Any, values: Any, addresses: Any, cos: Any, sin: Any, position: int, eps: float, parts: int,
    thread: Any = ALONE,
) -> None:  # fmt: skip
    """x (C) through all blocks, in place. The arrays are those of the first block; addresses (blocks, 11): of all."""
    for at in addresses:
        decode_block(
            x, array_at(at[0], norm_1), array_at(at[1], q), array_at(at[2], k), array_at(at[3], v), array_at(at[4], o),
            array_at(at[5], norm_2), array_at(at[6], gate), array_at(at[7], up), array_at(at[8], down),
            array_at(at[9], keys), array_at(at[10], values), cos, sin, position, eps, parts, thread,
        )  # fmt: skip


def signature(weight: Any) -> Any:
    """The types of the arguments, from the type of the weights that belong to a Numba float type."""

    def types_of(real: Any) -> tuple[Any, ...]:
        row, matrix, cache = array(real, 1, "C"), weight(real), array(real, 3, "C")
        matrices = (row, *(matrix,) * 4, row, *(matrix,) * 3)
        addresses = array(types.int64, 2, "C")
        return row, *matrices, cache, cache, addresses, row, row, types.int64, types.float64, types.int64

    return types_of


overload(operand)(lambda x, weight: (lambda x, weight: x.reshape(1, -1)) if weight.dtype == x.dtype else None)
overload(products, jit_options={"forceinline": True})(
    lambda x, weight, y, first, last: (
        (lambda x, weight, y, first, last: float_products(x, weight, y, first, last))
        if weight.dtype == y.dtype
        else None
    )
)
DECODE_BLOCKS = Strided(decode_blocks, signature(lambda real: array(real, 2, "C")))


class Blocks:
    """The weights, keys and values of all blocks of a model, as a kernel finds them: by their addresses.

    There are hundreds of them for each token, so they are looked at once. They are not kept alive.

    kind: the dtype of all that is floating, and that of the matrices, or their format; None if a kernel does not
    support them: floating in C order, and every block like the first.
    """

    def __init__(self, weights: Sequence[Any], keys: Sequence[Array], values: Sequence[Array]) -> None:
        arrays = [*weights, *keys, *values]
        self.references = [weakref.ref(a) for a in arrays]
        floats = [a for a in arrays if type(a) is np.ndarray]
        formats = {str(a.dtype) for a in weights if a.ndim == 2}
        columns = [*(weights[i::WEIGHTS] for i in range(WEIGHTS)), keys, values]
        is_alike = len(formats) == 1 and all(len({a.shape for a in column}) == 1 for column in columns)
        is_plain = is_supported(*floats) and all(a.flags.carray for a in floats)
        self.kind = (str(floats[0].dtype), formats.pop()) if is_alike and is_plain else None
        self.addresses = np.array([[stored(a).ctypes.data for a in column] for column in columns]).T.copy()

    def are(self, arrays: Sequence[Any]) -> bool:
        """Whether they are the same arrays."""
        return len(arrays) == len(self.references) and all(map(operator.is_, arrays, [r() for r in self.references]))


def stored(x: Any) -> Array:
    """The array itself, or the bytes of quantised weights."""
    return getattr(x, "blocks", x)


class Decoder(RotaryEmbedding, Linear):
    """The kernel above, for float32 and float64."""

    blocks: Blocks | None = None  # of the last token

    def decode_blocks(
        self, x: Array, weights: Sequence[Any], keys: Sequence[Array], values: Sequence[Array], **options: Any
    ) -> Array:
        """A token through blocks: see `DecoderMath.decode_blocks`; in one call if they are all alike."""
        blocks = self.blocks
        if blocks is None or not blocks.are([*weights, *keys, *values]):
            self.blocks = blocks = Blocks(weights, keys, values)
        kernel = self.kernel_for(x, blocks.kind)
        if kernel is not None:
            return run(kernel, self.threads, x, blocks, weights, keys, values, **options)
        if len(keys) < 2:
            return super().decode_blocks(x, weights, keys, values, **options)
        for i in range(len(keys)):
            block = weights[WEIGHTS * i : WEIGHTS * (i + 1)]
            x = self.decode_blocks(x, block, keys[i : i + 1], values[i : i + 1], **options)
        return x

    def kernel_for(self, x: Array, kind: tuple[str, str] | None) -> Strided | None:
        """The kernel for x and blocks of that kind, if there is one."""
        return DECODE_BLOCKS if kind == (str(x.dtype),) * 2 else None


def run(
    kernel: Strided, threads: int, x: Array, blocks: Blocks, weights: Sequence[Any], keys: Sequence[Array],
    values: Sequence[Array], *, position: int, rope_base: float, eps: float,
) -> Array:  # fmt: skip
    """Call one of the kernels for x (1, 1, C)."""
    at = np.array([position])
    cos, sin = rotations(at.tobytes(), at.dtype.str, at.shape, keys[0].shape[3] // 2, rope_base, x.dtype)
    y, first = x.copy(), [stored(a) for a in weights[:WEIGHTS]]
    kernel(y.reshape(-1), *first, keys[0][0], values[0][0], blocks.addresses, cos[0], sin[0], position, eps, threads)
    return y
