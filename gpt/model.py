"""GPT-2, top to bottom, from tensorgrad's operations alone.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", with the field names of
nanoGPT. Letters in the shapes: B batch, T time, C width (n_embd), H heads, D head size (C / H),
V vocabulary, S tokens that can be attended to (T, or more when there is a cache).
"""

from __future__ import annotations

from typing import Any, Protocol

import tensorgrad as tg
from gpt.config import GPTConfig
from tensorgrad import Tensor, nn
from tensorgrad.backend import Array

INIT_STD = 0.02


def residual_std(config: GPTConfig) -> float:
    """What the projections that add into the residual stream start with.

    There are 2 n_layer of them; scaled like this, their sum has the variance of one.
    """
    return INIT_STD / (2 * config.n_layer) ** 0.5


class LayerCache(Protocol):
    """The keys and values of one layer from earlier calls (gpt/generate/__init__.py has it)."""

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Array | None]:
        """Append k and v (B, H, T, D); return all of both (B, H, S, D) and which may be seen."""


class Cache(Protocol):
    """A LayerCache for every layer, and which positions the next tokens stand at."""

    layers: list[Any]  # of LayerCache

    def begin(self, n_new: int) -> Array:
        """Make room for n_new tokens and return their positions, (T,) or (B, T)."""

    def end(self, n_new: int) -> None:
        """Count them in, once every layer has extended."""


class CausalSelfAttention(nn.Module):
    """Every token looks at itself and at the tokens before it, once per head."""

    def __init__(self, config: GPTConfig) -> None:
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, config.bias, std=INIT_STD)  # q, k, v
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, config.bias, std=residual_std(config))
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        B, T, C = x.shape
        heads = self.c_attn(x).reshape((B, T, 3 * self.n_head, C // self.n_head))  # those of q, of k, of v
        q, k, v = (part.permute_dims((0, 2, 1, 3)) for part in tg.split(heads, 3, axis=2))  # (B, H, T, D)
        mask = None
        if cache is not None:
            k, v, mask = cache.extend(k, v)  # (B, H, S, D)
        dropout_p = self.dropout if self.training else 0.0
        y = tg.attention(q, k, v, causal=mask is None, mask=mask, dropout_p=dropout_p)
        y = y.permute_dims((0, 2, 1, 3)).reshape((B, T, C))  # (B, H, T, D) -> (B, T, C)
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    """Each token on its own: four times wider, bent, and back."""

    def __init__(self, config: GPTConfig) -> None:
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, config.bias, std=INIT_STD)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, config.bias, std=residual_std(config))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        # GPT-2 was trained with the tanh approximation, so its weights want that one. (nanoGPT has
        # the exact GELU; the two are never further apart than 5e-4.)
        fc, proj = self.c_fc, self.c_proj  # proj(gelu(fc(x))), in one op
        x = tg.mlp(x, fc.weight, fc.bias, proj.weight, proj.bias, approximate="tanh")
        return self.dropout(x)  # (B, T, C)


class Block(nn.Module):
    """Attention, then MLP; each reads a normalised copy and adds what it found to the stream."""

    def __init__(self, config: GPTConfig) -> None:
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        x, normalised = self.ln_2.add(x, self.attn(self.ln_1(x), cache))  # x + attn, and ln_2 of that
        return x + self.mlp(normalised)


class GPT(nn.Module):
    """The whole model; `config` is a GPTConfig, or a dict such as GPT_CONFIG_124M."""

    def __init__(self, config: GPTConfig | dict[str, Any]) -> None:
        config = GPTConfig.from_dict(config) if isinstance(config, dict) else config
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd, std=INIT_STD)  # what the token is
        self.wpe = nn.Embedding(config.block_size, config.n_embd, std=INIT_STD)  # where it stands
        self.drop = nn.Dropout(config.dropout)
        self.h = [Block(config) for _ in range(config.n_layer)]
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.recompute = False  # keep only what enters a block, and run it again in backward

    def forward(self, idx: Any, targets: Any = None, *, cache: Cache | None = None) -> tuple[Tensor, Tensor | None]:
        """Predict the next token everywhere.

        idx and targets (B, T) integers, arrays or tensors -> logits (B, T, V) and the mean loss;
        without targets the logits of the last position only, (B, 1, V), and None. With a cache, idx
        continues what the cache already holds. Raises ValueError for a sequence that does not fit
        the window, IndexError for a token that is not in the vocabulary.
        """
        targets = None if targets is None else tg.asarray(targets)
        x = self._stream(tg.asarray(idx), targets, cache)  # (B, T, C)
        if targets is None:
            x = x[:, -1:]  # (B, 1, C): generation asks for nothing else, and the head is wide
        logits = tg.linear(self.ln_f(x), self.wte.weight)  # (B, T, V): the head is the embedding
        return logits, None if targets is None else tg.cross_entropy(logits, targets)

    def loss(self, idx: Any, targets: Any) -> Tensor:
        """The mean loss alone, of which training and evaluation need nothing else: `model(idx, targets)[1]`.

        The logits, V numbers a token and by far the largest array of a small batch, are never held
        as a whole, nor is their gradient.
        """
        idx, targets = tg.asarray(idx), tg.asarray(targets)
        return tg.linear_cross_entropy(self.ln_f(self._stream(idx, targets)), self.wte.weight, targets)

    def _stream(self, idx: Tensor, targets: Tensor | None, cache: Cache | None = None) -> Tensor:
        """Tokens (B, T) -> what the last block leaves, (B, T, C)."""
        self._check(idx, targets, cache)
        n_new = idx.shape[1]
        pos = tg.arange(n_new) if cache is None else cache.begin(n_new)  # (T,) or (B, T)
        x = self.drop(self.wte(idx) + self.wpe(pos))  # (B, T, C)
        for i, block in enumerate(self.h):
            if self.recompute and cache is None:
                x = tg.checkpoint(block, x)  # (B, T, C)
            else:
                x = block(x, None if cache is None else cache.layers[i])  # (B, T, C)
        if cache is not None:
            cache.end(n_new)
        return x

    def estimate_flops_per_token(self) -> int:
        """Return the operations of one token, forward and backward (PaLM, appendix B).

        Six for every weight that multiplies it (two forward, four backward), and 12 H D T a layer
        for attention's two products. The position table is looked up, not multiplied.
        """
        c = self.config
        n_multiplied = self.num_params() - self.wpe.weight.size
        return 6 * n_multiplied + 12 * c.n_layer * c.n_embd * c.block_size

    def _check(self, idx: Tensor, targets: Tensor | None, cache: Cache | None) -> None:
        if idx.ndim != 2 or 0 in idx.shape:
            raise ValueError(f"GPT: idx must be (batch, time), both at least 1, not {idx.shape}")
        if idx.shape[1] > self.config.block_size:
            raise ValueError(
                f"GPT: a sequence of {idx.shape[1]} tokens is longer than the window, "
                f"block_size {self.config.block_size}: crop it to the last {self.config.block_size}"
            )
        if targets is not None and targets.shape != idx.shape:
            raise ValueError(f"GPT: targets {targets.shape} are not of idx's shape {idx.shape}")
        if targets is not None and cache is not None:
            raise ValueError("GPT: a cache is for generation; training takes the whole sequence")
