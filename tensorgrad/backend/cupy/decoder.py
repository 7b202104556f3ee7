"""A step of generation for a few rows, one token each: five kernels for a block of a model.

gpt/generate/on_gpu.py composes them. Tokens and positions are arrays on the GPU, so that a step can be recorded
once and replayed for every token.
"""

from typing import NamedTuple

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.cupy.activation import Activation
from tensorgrad.backend.cupy.attention import MAX_HEAD_SIZE, MIN_KEYS_PER_PART, Attention
from tensorgrad.backend.cupy.kernels import WARPS, supported
from tensorgrad.backend.cupy.launcher import DEFAULT_SHARED_BYTES, c_type
from tensorgrad.backend.cupy.linear import Linear
from tensorgrad.backend.cupy.normalization import Normalization
from tensorgrad.backend.cupy.rotary_embedding import RotaryEmbedding
from tensorgrad.backend.cupy.sampling import MAX_CLASSES

MAX_ROWS = 4  # up to so many, weights are multiplied by linear_rows, and by cuBLASLt from there on
MAX_BLOCKS = 396  # of linear_rows: three for each multiprocessor of an H200, as many as it runs at once
THREADS, ATTENTION_THREADS = 256, 128
ACTIVATIONS = {None: 0, "tanh": 1, "none": 2, "swiglu": 3}


class Norm(NamedTuple):
    """A layer norm, or an RMS norm, of the input of a product: weight (C,), bias (C,) or None, and epsilon."""

    weight: Array
    bias: Array | None
    eps: float
    centered: bool  # layer norm

    def __call__(self, k: Normalization, x: Array) -> Array:
        """x (B, C) -> (B, C)."""
        normed = k.layer_norm(x, self.weight, self.bias, self.eps) if self.centered else k.rms_norm(x, *self[::2])
        return normed[0]


class Decoder(Activation, Attention, Linear, Normalization, RotaryEmbedding):
    """The kernels of decoder.cu, and attention_step of attention_decode.cu; every array has one floating dtype."""

    def embed_token(self, wte: Array, wpe: Array | None, token: Array, position: Array) -> Array:
        """wte[token], plus wpe[position] if positions are learned: token and position (B,) int64 -> (B, C)."""
        n_batch, n = len(position), wte.shape[1]
        y = self.xp.empty((n_batch, n), wte.dtype)
        defines = {"T": c_type(wte.dtype), "ROWS": "1", "NORM": "0", "ACTIVATION": "0"}
        args = (wte, wpe, token, position, y, np.int32(n))
        self.launcher.launch("decoder", "embed_token", (n_batch,), (THREADS,), args, defines=defines)
        return y

    def linear_rows(
        self, x: Array, *weights: Array, bias: Array | None = None,
        norm: tuple[Array, Array | None, float, bool] | None = None, activation: str | None = None,
        residual: Array | None = None,
    ) -> Array:  # fmt: skip
        """activation(norm(x) weights^T + bias) + residual: x (B, C) and weights (n_i, C) -> (B, sum of n_i).

        norm: the fields of `Norm`. activation: "tanh" or "none", a GELU; "swiglu", silu of the first weight's result
        times that of the second.
        """
        (n_rows, k), norm = x.shape, None if norm is None else Norm(*norm)
        arrays = (x, *weights, bias, residual, *(norm[:2] if norm else ()))
        aligned = k * x.itemsize % 16 == 0 and all(y is None or y.data.ptr % 16 == 0 for y in arrays)
        shared = x.nbytes
        if n_rows > MAX_ROWS or not aligned or shared > DEFAULT_SHARED_BYTES or x.dtype.name == "float64":
            return self._linear_rows_by_parts(x, weights, bias, norm, activation, residual)
        sizes = [len(weight) for weight in weights] + [0] * (3 - len(weights))
        n = sizes[0] if activation == "swiglu" else sum(sizes)
        y = self.xp.empty((n_rows, n), x.dtype)
        given = (*weights, *[None] * (3 - len(weights)))
        normed = (None, None) if norm is None else norm[:2]
        eps = np.float32(0 if norm is None else norm.eps)
        defines = {
            "T": c_type(x.dtype), "ROWS": str(n_rows), "NORM": "0" if norm is None else "1" if norm.centered else "2",
            "ACTIVATION": str(ACTIVATIONS[activation]),
        }  # fmt: skip
        args = (x, *normed, *given, bias, residual, y, np.int32(k), *map(np.int32, sizes), eps)
        grid = (min(MAX_BLOCKS, -(-n // WARPS)),)
        self.launcher.launch("decoder", "linear_rows", grid, (THREADS,), args, shared, defines)
        return y

    def _linear_rows_by_parts(
        self, x: Array, weights: tuple[Array, ...], bias: Array | None, norm: Norm | None, activation: str | None,
        residual: Array | None,
    ) -> Array:  # fmt: skip
        """The same by other kernels."""
        x = x if norm is None else norm(self, x)
        parts = [self.linear(x, weight, bias) for weight in weights]
        if activation == "swiglu":
            y = self.swiglu(*parts)
        else:
            y = parts[0] if len(parts) == 1 else self.xp.concatenate(parts, axis=1)
            y = y if activation is None else self.gelu_tanh(y) if activation == "tanh" else self.gelu(y)
        return y if residual is None else y + residual

    def attention_step(
        self, qkv: Array, keys: Array, values: Array, position: Array, n_done: Array, *, n_head: int,
        rope_base: float | None = None,
    ) -> Array:  # fmt: skip
        """Append the keys and values of one token a row to the cache, and attend to it: -> (B, H D).

        qkv (B, (H + 2 G) D): queries, keys and values side by side. keys, values (B, G, S, D): the cache, whose slots
        up to position (B,) int64 are read. rope_base: of rotary positions. n_done (B H,) uint32: zeros.
        """
        n_batch, n_group, n_slots, d = keys.shape
        y = self.xp.empty((n_batch, n_head * d), qkv.dtype)
        n_parts = -(-n_slots // MIN_KEYS_PER_PART)
        parts = self.xp.empty((n_batch * n_head, n_parts, 2 + MAX_HEAD_SIZE), np.float32) if n_parts > 1 else None
        turns = None if rope_base is None else self.turns(d // 2, rope_base)
        args = (
            qkv, keys, values, position, turns, y, parts, n_done,
            *map(np.int32, (n_head, n_group, n_slots, d)), np.float32(d**-0.5), np.int32(MIN_KEYS_PER_PART),
        )  # fmt: skip
        defines = {"T": c_type(qkv.dtype), "HEAD": str(-(-d // 16) * 16)}
        grid = (n_batch * n_head, n_parts)
        self.launcher.launch("attention_decode", "attention_step", grid, (ATTENTION_THREADS,), args, defines=defines)
        return y

    def why_no_step(self, weights: list[Array], head_size: int, vocab_size: int) -> str | None:
        """Why a model of these sizes cannot generate by these kernels, in one line; None if it can."""
        if not supported(*weights) or weights[0].dtype.name == "float64":
            return f"the kernels need weights of one dtype, float32, float16 or bfloat16, not {weights[0].dtype.name}"
        if not all(weight.flags.c_contiguous for weight in weights):
            return "the kernels need weights that are contiguous"
        if head_size > MAX_HEAD_SIZE or head_size * weights[0].itemsize % 16:
            return f"the kernels need heads of at most {MAX_HEAD_SIZE} numbers in pieces of 16 bytes, not {head_size}"
        if vocab_size > MAX_CLASSES:
            return f"the kernels choose among at most {MAX_CLASSES:,} tokens, not {vocab_size:,}"
        return None
