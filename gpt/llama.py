"""Llama in plain operations, to be read beside gpt/model.py: what changed in language models after GPT-2.

Touvron et al. 2023, "LLaMA: Open and Efficient Foundation Language Models" (arXiv:2302.13971), with the names that
Hugging Face gives its matrices. Five things differ from GPT-2: RMSNorm in place of LayerNorm, rotary positions in place
of learned ones, a SwiGLU in place of the GELU, heads of keys and values that several query heads share, and no biases.

In the shapes, G is the number of heads of keys and values; the other letters are those of gpt/model.py.
"""

import math
from typing import Any

import tensorgrad as tg
from gpt.config import LlamaConfig
from gpt.model import INIT_STD, Cache, LayerCache, causal_mask, check_tokens, residual_std
from tensorgrad import Tensor, nn


class LlamaAttention(nn.Module):
    """Attention whose positions are rotations, and in which n_head / n_kv_head query heads share keys and values."""

    def __init__(self, config: LlamaConfig) -> None:
        self.config = config
        n_kv_embd = config.n_kv_head * config.head_size
        self.q_proj = nn.Linear(config.n_embd, config.n_embd, bias=False, std=INIT_STD)
        self.k_proj = nn.Linear(config.n_embd, n_kv_embd, bias=False, std=INIT_STD)
        self.v_proj = nn.Linear(config.n_embd, n_kv_embd, bias=False, std=INIT_STD)
        self.o_proj = nn.Linear(config.n_embd, config.n_embd, bias=False, std=residual_std(config))

    def forward(self, x: Tensor, pos: Tensor, cache: LayerCache | None = None) -> Tensor:
        """x (B, T, C) of the tokens at the positions pos, (T,) or (B, T) -> (B, T, C)."""
        B, T, C = x.shape
        q, k, v = self.queries_keys_values(x, pos)  # (B, H, T, D), (B, G, T, D) twice
        if cache is not None:
            k, v = cache.extend(k, v)  # (B, G, S, D): those of the earlier tokens, then these
        n_shared = self.config.n_head // self.config.n_kv_head
        k, v = tg.repeat(k, n_shared, axis=1), tg.repeat(v, n_shared, axis=1)  # (B, H, S, D)

        att = q @ k.mT / math.sqrt(self.config.head_size)  # (B, H, T, S)
        att = tg.where(causal_mask(pos, k.shape[2], packed=cache is None), att, -math.inf)  # no token sees a later one
        y = tg.softmax(att) @ v  # (B, H, T, D)
        y = y.permute_dims(0, 2, 1, 3).reshape(B, T, C)  # the heads of a token side by side
        return self.o_proj(y)  # (B, T, C)

    def queries_keys_values(self, x: Tensor, pos: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, C) -> (B, H, T, D), (B, G, T, D), (B, G, T, D); queries and keys are rotated by their positions.

        The product of a query at position p and a key at position s then depends on p - s alone.
        """
        B, T, _ = x.shape
        q, k, v = (
            projection(x).reshape(B, T, -1, self.config.head_size).permute_dims(0, 2, 1, 3)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        pos = pos if pos.ndim == 1 else pos.reshape(B, 1, T)  # the same for every head
        base = self.config.rope_base
        return tg.rotary_embedding(q, pos, base=base), tg.rotary_embedding(k, pos, base=base), v


class SwiGLU(nn.Module):
    """Every token by itself: one projection decides, through a SiLU, how much of the other passes (arXiv:2002.05202).

    Three matrices where GPT-2's MLP has two; at 8/3 of the width in place of four times, they have as many numbers.
    """

    def __init__(self, config: LlamaConfig) -> None:
        self.gate_proj = nn.Linear(config.n_embd, config.n_hidden, bias=False, std=INIT_STD)
        self.up_proj = nn.Linear(config.n_embd, config.n_hidden, bias=False, std=INIT_STD)
        self.down_proj = nn.Linear(config.n_hidden, config.n_embd, bias=False, std=residual_std(config))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        x = tg.silu(self.gate_proj(x)) * self.up_proj(x)  # (B, T, n_hidden)
        return self.down_proj(x)  # (B, T, C)


class LlamaBlock(nn.Module):
    """Attention, then an MLP; each reads a normalised copy of the residual stream and adds its result to the stream."""

    def __init__(self, config: LlamaConfig) -> None:
        self.norm_1 = nn.RMSNorm(config.n_embd, eps=config.norm_eps)
        self.attn = LlamaAttention(config)
        self.norm_2 = nn.RMSNorm(config.n_embd, eps=config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x: Tensor, pos: Tensor, cache: LayerCache | None = None) -> Tensor:
        """x (B, T, C) of the tokens at the positions pos, (T,) or (B, T) -> (B, T, C)."""
        x = x + self.attn(self.norm_1(x), pos, cache)
        return x + self.mlp(self.norm_2(x))


class Llama(nn.Module):
    """The whole model, with the interface of gpt.model.GPT."""

    def __init__(self, config: LlamaConfig) -> None:
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd, std=INIT_STD)  # token embeddings
        self.h = [LlamaBlock(config) for _ in range(config.n_layer)]
        self.norm_f = nn.RMSNorm(config.n_embd, eps=config.norm_eps)
        if not config.tied:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False, std=INIT_STD)
        self.recompute = False

    def forward(self, idx: Any, targets: Any = None, *, cache: Cache | None = None) -> tuple[Tensor, Tensor | None]:
        """Predict the next token at every position; arguments, results and errors are those of GPT.forward."""
        x = self.hidden_states(idx, cache)  # (B, T, C)
        if targets is None:
            x = x[:, -1:]  # (B, 1, C): generation needs no other position
        logits = tg.linear(x, self.head_weight)  # (B, T, V)
        return logits, None if targets is None else tg.cross_entropy(logits, tg.asarray(targets))

    @property
    def head_weight(self) -> Tensor:
        """The weight (V, C) of the output layer."""
        return self.wte.weight if self.config.tied else self.lm_head.weight

    def loss(self, idx: Any, targets: Any, pos: Any = None) -> Tensor:
        """The mean loss alone, for training and evaluation: `model(idx, targets)[1]`. pos: see hidden_states."""
        logits = tg.linear(self.hidden_states(idx, pos=pos), self.head_weight)  # (B, T, V)
        return tg.cross_entropy(logits, tg.asarray(targets))

    def hidden_states(self, idx: Any, cache: Cache | None = None, pos: Any = None) -> Tensor:
        """Everything but the output layer: tokens (B, T) -> (B, T, C). pos: see GPT.hidden_states."""
        idx = tg.asarray(idx)
        check_tokens(idx, self.config)
        T = idx.shape[1]
        if pos is None:
            pos = tg.arange(T) if cache is None else cache.advance(T)  # (T,), or (B, T) where rows differ in length
        return self.run_blocks(self.wte(idx), pos, cache)  # positions enter in attention

    def run_blocks(self, x: Tensor, pos: Tensor, cache: Cache | None = None) -> Tensor:
        """All blocks, then the last norm: x (B, T, C) of the tokens at the positions pos -> (B, T, C)."""
        for i, block in enumerate(self.h):
            layer = None if cache is None else cache.layers[i]
            x = tg.checkpoint(block, x, pos, layer) if self.recompute else block(x, pos, layer)  # (B, T, C)
        return self.norm_f(x)  # (B, T, C)

    def estimate_flops_per_token(self) -> int:
        """The operations that training needs for one token; see GPT.estimate_flops_per_token."""
        c = self.config
        n_looked_up = 0 if c.tied else self.wte.weight.size
        return 6 * (self.num_params() - n_looked_up) + 12 * c.n_layer * c.n_embd * c.block_size
