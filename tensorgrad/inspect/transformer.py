"""A training step to be measured: that of a small GPT-2 or Llama, with fused ops or with plain ones alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorgrad import nn, ops
from tensorgrad.creation import arange, asarray
from tensorgrad.tensor import Tensor

KINDS = ("gpt", "llama")
STD = 0.02  # of the initial weights


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model and of its batch, under the names of a model's configuration."""

    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    block_size: int = 64
    batch_size: int = 12
    vocab_size: int = 8192


def _form(op: Any, plain: bool) -> Callable[..., Any]:
    """The op, or the composition of plain ops that it is the fused form of."""
    return op.composition if plain else op


class Block(nn.Module):
    """Attention and an MLP: with layer norm and GELU, or for "llama" with RMS norm, rotary positions and SwiGLU.

    plain: with the plain ops that each fused op names as its composition.
    """

    def __init__(self, sizes: Sizes, kind: str, plain: bool) -> None:
        C, bias, self.is_llama, self.plain = sizes.n_embd, kind == "gpt", kind == "llama", plain
        n_hidden = max(1, 8 * C // 3) if self.is_llama else 4 * C
        self.n_head = sizes.n_head
        self.norm_1, self.norm_2 = (nn.RMSNorm(C) if self.is_llama else nn.LayerNorm(C) for _ in range(2))
        self.qkv, self.proj = nn.Linear(C, 3 * C, bias, std=STD), nn.Linear(C, C, bias, std=STD)
        self.up, self.down = nn.Linear(C, n_hidden, bias, std=STD), nn.Linear(n_hidden, C, bias, std=STD)
        self.gate = nn.Linear(C, n_hidden, bias, std=STD) if self.is_llama else None

    def forward(self, x: Tensor, normalised: Tensor, pos: Tensor, next_norm: nn.Module) -> Any:
        """x (B, T, C) and norm_1 of it -> the block's result and next_norm of it, all (B, T, C)."""
        B, T, C = x.shape
        heads = (
            y.reshape(B, T, self.n_head, -1).permute_dims(0, 2, 1, 3)
            for y in ops.split(self.qkv(normalised), 3, axis=2)
        )
        q, k, v = heads  # (B, H, T, D)
        if self.is_llama:
            q, k = ops.rotary_embedding(q, pos), ops.rotary_embedding(k, pos)
        y = _form(ops.attention, self.plain)(q, k, v, causal=True).permute_dims(0, 2, 1, 3).reshape(B, T, C)
        add_norm = _form(ops.add_rms_norm if self.is_llama else ops.add_layer_norm, self.plain)
        x, normalised = add_norm(x, self.proj(y), *self.norm_2.parameters())
        return add_norm(x, self._mlp(normalised), *next_norm.parameters())

    def _mlp(self, x: Tensor) -> Any:
        if self.gate is not None:
            return self.down(_form(ops.swiglu, self.plain)(self.gate(x), self.up(x)))
        return _form(ops.mlp, self.plain)(x, *self.up.parameters(), *self.down.parameters(), approximate="tanh")


class Transformer(nn.Module):
    """Predicts tokens; its output layer shares the weight of the token embedding."""

    def __init__(self, sizes: Sizes, kind: str = "gpt", plain: bool = False) -> None:
        self.tokens = nn.Embedding(sizes.vocab_size, sizes.n_embd, std=STD)
        self.positions = nn.Embedding(sizes.block_size, sizes.n_embd, std=STD) if kind == "gpt" else None
        self.blocks = [Block(sizes, kind, plain) for _ in range(sizes.n_layer)]
        self.norm = nn.LayerNorm(sizes.n_embd) if kind == "gpt" else nn.RMSNorm(sizes.n_embd)
        self.head = _form(ops.linear_cross_entropy, plain)

    def forward(self, idx: Tensor, targets: Tensor) -> Any:
        """The mean loss of tokens (B, T) for the tokens after them."""
        x, pos = self.tokens(idx), arange(idx.shape[1])
        x = x if self.positions is None else x + self.positions(pos)
        norms = [*(block.norm_1 for block in self.blocks), self.norm]
        normalised = norms[0](x)
        for block, next_norm in zip(self.blocks, norms[1:], strict=True):
            x, normalised = block(x, normalised, pos, next_norm)
        return self.head(normalised, self.tokens.weight, targets)


def random_batch(sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Tokens and the tokens after them, (B, T) each."""
    rng = np.random.default_rng(0)
    batch = rng.integers(0, sizes.vocab_size, (sizes.batch_size, sizes.block_size + 1))
    return asarray(batch[:, :-1].copy()), asarray(batch[:, 1:].copy())
