"""The same GPT in PyTorch, shaped like nanoGPT's, with the names of gpt/model.py, so that weights load by name.

B batch, T time, C width, H heads, D head size, S keys. It uses GPT-2's tanh GELU, as gpt/model.py does.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.configurations import Setup


class Cache:
    """The keys and values of every layer, (layers, 2, B, H, block_size, D), and how many tokens they hold."""

    def __init__(self, setup: Setup, batch: int = 1) -> None:
        head_size = setup.n_embd // setup.n_head
        self.both = torch.zeros(setup.n_layer, 2, batch, setup.n_head, setup.block_size, head_size)
        self.length = 0


class CausalSelfAttention(nn.Module):
    """Every token attends to itself and to the tokens before it."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.n_head = setup.n_head
        self.c_attn = nn.Linear(setup.n_embd, 3 * setup.n_embd, bias=setup.bias)
        self.c_proj = nn.Linear(setup.n_embd, setup.n_embd, bias=setup.bias)

    def forward(self, x: Tensor, layer: Tensor | None = None, start: int = 0) -> Tensor:
        """x (B, T, C) -> (B, T, C). layer: this layer's part of the cache, which holds `start` tokens already."""
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.n_head, -1).transpose(1, 2) for part in self.c_attn(x).split(C, dim=2))
        if layer is not None:
            layer[0, :, :, start : start + T] = k
            layer[1, :, :, start : start + T] = v
            k, v = layer[:, :, :, : start + T]  # (B, H, S, D) each
        # The first call fills an empty cache, later ones bring a single token, which may see everything.
        y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    """Every token by itself: to four times the width, through a GELU, and back."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.c_fc = nn.Linear(setup.n_embd, 4 * setup.n_embd, bias=setup.bias)
        self.c_proj = nn.Linear(4 * setup.n_embd, setup.n_embd, bias=setup.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    """Attention, then MLP, each added to the stream."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(setup.n_embd, bias=setup.bias)
        self.attn = CausalSelfAttention(setup)
        self.ln_2 = nn.LayerNorm(setup.n_embd, bias=setup.bias)
        self.mlp = MLP(setup)

    def forward(self, x: Tensor, layer: Tensor | None = None, start: int = 0) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        x = x + self.attn(self.ln_1(x), layer, start)
        return x + self.mlp(self.ln_2(x))


class TorchGPT(nn.Module):
    """The whole model; the head is the embedding."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.wte = nn.Embedding(setup.vocab_size, setup.n_embd)
        self.wpe = nn.Embedding(setup.block_size, setup.n_embd)
        self.h = nn.ModuleList([Block(setup) for _ in range(setup.n_layer)])
        self.ln_f = nn.LayerNorm(setup.n_embd, bias=setup.bias)

    def forward(self, idx: Tensor, targets: Tensor | None = None, cache: Cache | None = None) -> tuple[Tensor, Any]:
        """idx (B, T) -> logits (B, T, V) and the mean loss; without targets logits of the last position, (B, 1, V)."""
        start = 0 if cache is None else cache.length
        positions = torch.arange(start, start + idx.shape[1], device=idx.device)
        x = self.wte(idx) + self.wpe(positions)  # (B, T, C)
        for i, block in enumerate(self.h):
            x = block(x, None if cache is None else cache.both[i], start)
        if cache is not None:
            cache.length += idx.shape[1]
        if targets is None:
            x = x[:, -1:]
        logits = F.linear(self.ln_f(x), self.wte.weight)
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def load_weights(model: nn.Module, path: str) -> None:
    """Copy the weights of a safetensors file into the parameters of the same names."""
    from safetensors import safe_open

    with torch.no_grad(), safe_open(path, framework="pt") as weights:
        for name, p in model.named_parameters():
            p.copy_(weights.get_tensor(name))
