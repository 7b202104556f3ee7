"""GPT-2 in plain operations, to be read from top to bottom.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", with the names of nanoGPT. In the shapes,
B is the batch, T the time, C the width (n_embd), H the heads, D the size of a head (C / H), V the vocabulary, and S the
number of keys: T, or more where a cache holds those of earlier tokens.

gpt/fused.py computes the same faster. A class that is changed here has to leave the table FUSED there; a new class is
used as it is written.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import tensorgrad as tg
from gpt.config import GPTConfig, ModelConfig
from tensorgrad import Tensor, nn

INIT_STD = 0.02


def residual_std(config: ModelConfig) -> float:
    """The initial standard deviation of the projections whose results are added to the residual stream.

    There are 2 n_layer of them; scaled like this, their sum has the variance of a single one.
    """
    return INIT_STD / math.sqrt(2 * config.n_layer)


def causal_mask(pos: Tensor, n_keys: int, packed: bool = False) -> Tensor:
    """True where a token may attend: the one at position p attends to the keys 0 to p.

    pos (T,) -> (1, 1, T, S); or (B, T), where the rows of a batch differ in length -> (B, 1, T, S). packed: a row may
    hold several sequences, each with positions from 0: a token attends to the p keys before its own, and to that.
    """
    pos, keys = pos.reshape(-1, 1, pos.shape[-1], 1), tg.arange(n_keys)
    own = keys.reshape(-1, 1)  # in packed rows, the key of each token itself
    return (own - pos <= keys) & (keys <= own) if packed else keys <= pos


class CausalSelfAttention(nn.Module):
    """Every token gathers information from itself and from the tokens before it, in n_head ways at once."""

    def __init__(self, config: GPTConfig) -> None:
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, config.bias, std=INIT_STD)  # q, k and v
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, config.bias, std=residual_std(config))
        self.attn_dropout = nn.Dropout(config.dropout)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, pos: Tensor, cache: "LayerCache | None" = None) -> Tensor:
        """x (B, T, C) of the tokens at the positions pos, (T,) or (B, T) -> (B, T, C)."""
        B, T, C = x.shape
        D = C // self.n_head
        q, k, v = tg.split(self.c_attn(x), 3, axis=2)  # (B, T, C) each
        q, k, v = (y.reshape(B, T, self.n_head, D).permute_dims(0, 2, 1, 3) for y in (q, k, v))  # (B, H, T, D)
        if cache is not None:
            k, v = cache.extend(k, v)  # (B, H, S, D): those of the earlier tokens, then these

        att = q @ k.mT / math.sqrt(D)  # (B, H, T, S)
        att = tg.where(causal_mask(pos, k.shape[2], packed=cache is None), att, -math.inf)  # no token sees a later one
        att = tg.softmax(att)  # (B, H, T, S): the weights of a token's keys, which add up to 1
        y = self.attn_dropout(att) @ v  # (B, H, T, D)
        y = y.permute_dims(0, 2, 1, 3).reshape(B, T, C)  # the heads of a token side by side
        return self.resid_dropout(self.c_proj(y))  # (B, T, C)


class MLP(nn.Module):
    """Every token by itself: to four times the width, through a GELU, and back."""

    def __init__(self, config: GPTConfig) -> None:
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, config.bias, std=INIT_STD)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, config.bias, std=residual_std(config))
        self.dropout = nn.Dropout(config.dropout)
        self.approximate: Any = config.gelu  # "tanh" as GPT-2 was trained; it differs from "none" by at most 5e-4

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        x = self.c_fc(x)  # (B, T, 4C)
        x = tg.gelu(x, approximate=self.approximate)
        x = self.c_proj(x)  # (B, T, C)
        return self.dropout(x)


class Block(nn.Module):
    """Attention, then an MLP; each reads a normalised copy of the residual stream and adds its result to the stream."""

    def __init__(self, config: GPTConfig) -> None:
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias, eps=config.norm_eps)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias, eps=config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, pos: Tensor, cache: "LayerCache | None" = None) -> Tensor:
        """x (B, T, C) of the tokens at the positions pos, (T,) or (B, T) -> (B, T, C)."""
        x = x + self.attn(self.ln_1(x), pos, cache)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """The whole model; `config` is a GPTConfig, or a dict such as GPT_CONFIG_124M.

    Set `recompute` to keep for backward only what enters each block, and compute the rest again.
    """

    def __init__(self, config: GPTConfig | dict[str, Any]) -> None:
        config = GPTConfig.from_dict(config) if isinstance(config, dict) else config
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd, std=INIT_STD)  # token embeddings
        self.wpe = nn.Embedding(config.block_size, config.n_embd, std=INIT_STD)  # position embeddings
        self.drop = nn.Dropout(config.dropout)
        self.h = [Block(config) for _ in range(config.n_layer)]
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias, eps=config.norm_eps)
        self.recompute = False

    def forward(self, idx: Any, targets: Any = None, *, cache: "Cache | None" = None) -> tuple[Tensor, Tensor | None]:
        """Predict the next token at every position.

        idx and targets (B, T) integers, arrays or tensors -> logits (B, T, V) and the mean loss; without targets, the
        logits of the last position alone, (B, 1, V), and None. With a cache, idx continues the tokens that the cache
        holds. Raises ValueError for a sequence longer than the window, and IndexError for a token outside the
        vocabulary.
        """
        x = self.hidden_states(idx, cache)  # (B, T, C)
        if targets is None:
            x = x[:, -1:]  # (B, 1, C): generation needs no other position
        logits = tg.linear(x, self.wte.weight)  # (B, T, V): the output layer shares its weight with wte
        return logits, None if targets is None else tg.cross_entropy(logits, tg.asarray(targets))

    def loss(self, idx: Any, targets: Any, pos: Any = None) -> Tensor:
        """The mean loss alone, for training and evaluation: `model(idx, targets)[1]`. pos: see hidden_states."""
        logits = tg.linear(self.hidden_states(idx, pos=pos), self.wte.weight)  # (B, T, V)
        return tg.cross_entropy(logits, tg.asarray(targets))

    def hidden_states(self, idx: Any, cache: "Cache | None" = None, pos: Any = None) -> Tensor:
        """Everything but the output layer: tokens (B, T) -> (B, T, C).

        pos: positions (B, T) of rows that hold several sequences, one after the other, each from 0.
        """
        idx = tg.asarray(idx)
        check_tokens(idx, self.config)
        T = idx.shape[1]
        tok_emb = self.wte(idx)  # (B, T, C)
        if pos is None:
            pos = tg.arange(T) if cache is None else cache.advance(T)  # (T,), or (B, T) where rows differ in length
        x = self.drop(tok_emb + self.wpe(pos))  # (B, T, C): the positions are (T, C) or (B, T, C)
        return self.run_blocks(x, pos, cache)

    def run_blocks(self, x: Tensor, pos: Tensor, cache: "Cache | None" = None) -> Tensor:
        """All blocks, then the last norm: x (B, T, C) of the tokens at the positions pos -> (B, T, C)."""
        for i, block in enumerate(self.h):
            layer = None if cache is None else cache.layers[i]
            x = tg.checkpoint(block, x, pos, layer) if self.recompute else block(x, pos, layer)  # (B, T, C)
        return self.ln_f(x)  # (B, T, C)

    def estimate_flops_per_token(self) -> int:
        """The operations that training needs for one token, forward and backward (PaLM, appendix B).

        Six for every weight that a token is multiplied by (two forward, four backward), and 12 C T in each layer for
        the two products of attention. The position embeddings are looked up, not multiplied.
        """
        c = self.config
        n_multiplied = self.num_params() - self.wpe.weight.size
        return 6 * n_multiplied + 12 * c.n_layer * c.n_embd * c.block_size


def check_tokens(idx: Tensor, config: ModelConfig) -> None:
    """Raise ValueError for tokens that are not (B, T), or longer than the window."""
    if idx.ndim != 2 or idx.size == 0:
        raise ValueError(f"GPT: idx must be (batch, time), both at least 1, not {idx.shape}")
    if idx.shape[1] > config.block_size:
        raise ValueError(
            f"GPT: a sequence of {idx.shape[1]} tokens is longer than the window, "
            f"block_size {config.block_size}: crop it to the last {config.block_size}"
        )


class LayerCache(Protocol):
    """The keys and values of one layer, kept while text is generated: arrays k and v (B, H, slots, D)."""

    k: Any
    v: Any

    @property
    def start(self) -> int:
        """The slot of the first of the new tokens, where all rows have the same."""

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k and v (B, H, T, D); return all keys and values so far, (B, H, S, D)."""


class Cache(Protocol):
    """A LayerCache for every layer: what the model needs of gpt/generate/kvcache.py."""

    @property
    def layers(self) -> Sequence[LayerCache]:
        """One for each block."""

    def advance(self, n_new: int) -> Tensor:
        """Make room for n_new more tokens in every row; return their positions, (T,) or (B, T)."""
