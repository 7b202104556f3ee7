"""Generation with all of its state on a GPU: a token is computed and chosen there, and the host reads it later.

The loop of gpt/generate/__init__.py reads the logits of every token before it asks for the next one. On a GPU, starting
the kernels of a token takes many times as long as running them, so here a step is recorded once and replayed. The
tokens are the same. What is computed beyond the end of a row is dropped.
"""

from collections import deque
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any

import numpy as np

import tensorgrad as tg
from gpt.fused import (
    FusedBlock,
    FusedCausalSelfAttention,
    FusedGPT,
    FusedLlama,
    FusedLlamaAttention,
    FusedLlamaBlock,
    FusedMLP,
    FusedSwiGLU,
)
from gpt.generate.kvcache import KVCache, LayerCache
from gpt.generate.sampling import NOT_FINITE, Sampling
from gpt.weights import Model
from tensorgrad import QuantizedArray, nn
from tensorgrad.backend import Array, backend_of

AHEAD = 4  # steps that are queued when the host reads the token of the first
PARTS = {
    FusedBlock, FusedCausalSelfAttention, FusedGPT, FusedLlama, FusedLlamaAttention, FusedLlamaBlock, FusedMLP,
    FusedSwiGLU, nn.Dropout, nn.Embedding, nn.LayerNorm, nn.RMSNorm,
}  # fmt: skip


def why_on_host(model: Model) -> str | None:
    """Why the host chooses every token of this model, in one line; "" on a CPU, and None if the GPU can do it."""
    weights = [p.data for _, p in model.named_parameters()]
    k = backend(next(iter(model.h[0].parameters())).data)  # a norm's: never quantised
    if k.lacks("cuda_graph"):
        return ""
    for module in model.modules():
        if type(module) not in PARTS and type(module).forward is not nn.Linear.forward and not isinstance(module, list):
            return f"{type(module).__name__} is no part of a fused model"
    if any(isinstance(weight, QuantizedArray) for weight in weights):
        return "its weights are quantised"
    reason: str | None = k.why_no_step(weights, model.config.head_size, model.config.vocab_size)
    return reason


def steps_on_gpu(generation: Any, step: int) -> Generator[dict[int, int]] | None:
    """The next steps of a Generation, as its `_on_host` would take them one by one: {row: token}, of the active rows.

    They end where a row reaches the end of the window. None on a CPU, and while the cache lacks more than the last
    token of every row: the host evaluates prompts.
    """
    g = generation
    if g.only_on_host is not None or g.cache is None:
        return None
    n_steps = g.model.config.block_size + 1 - max(len(g.rows[row]) for row in g.active)
    if n_steps < 1:
        return None
    if g.active != g.cached:
        g.cache.keep([g.cached.index(row) for row in g.active])
        g.cached = list(g.active)
    rows = [g.rows[row] for row in g.cached]
    if any(len(row) != n + 1 for row, n in zip(rows, g.cache.lengths, strict=True)):
        return None
    generators = [g.generators[row] for row in g.cached]
    n_steps = min(n_steps, g.max_new_tokens - step)
    return _of_active(g, StepsOnGPU(g.model, g.cache, rows, g.sampling, generators, step, n_steps))


def _of_active(g: Any, steps: "StepsOnGPU") -> Generator[dict[int, int]]:
    with closing(iter(steps)) as chosen:
        for tokens in chosen:
            new = {row: token for row, token in zip(g.cached, tokens, strict=True) if row in g.active}
            if min(new.values()) < 0:
                raise FloatingPointError(NOT_FINITE)
            yield new


class StepsOnGPU:
    """The next n_steps tokens of some rows; iterating yields them, a list with a token a row, step by step.

    cache: holds all tokens of the rows but the last, and is extended. n_steps: no row may reach beyond the cache.
    first: the number of the first draw. A token is -1 where the logits are not finite.
    """

    def __init__(
        self, model: Model, cache: KVCache, rows: Sequence[Sequence[int]], sampling: Sampling,
        generators: Sequence[tg.random.Generator], first: int, n_steps: int,
    ) -> None:  # fmt: skip
        self.model, self.cache, self.sampling, self.n_steps = model, cache, sampling, n_steps
        self.k = backend(cache.layers[0].k)
        seen = None
        if sampling.repetition_penalty != 1:
            seen = np.zeros((len(rows), model.config.vocab_size), bool)
            for row, tokens in zip(seen, rows, strict=True):
                row[list(tokens)] = True
        self.state = self.k.decoding_state(
            [row[-1] for row in rows], cache.lengths.tolist(), [generator.seed for generator in generators],
            step=first, seen=seen,
        )  # fmt: skip
        self.n_done = self.k.xp.zeros(len(rows) * model.config.n_head, np.uint32)

    def __iter__(self) -> Generator[list[int]]:
        step, reads = self.k.record(self._step, lambda n: 0), deque[Any]()
        try:
            for _ in range(self.n_steps):
                step()
                reads.append(self.k.start_reading(self.state.token))
                if len(reads) > AHEAD:
                    yield self._read(reads.popleft())
            while reads:
                yield self._read(reads.popleft())
        finally:
            for read in reads:  # the copies end before their memory is used for something else
                read()
            step.close()

    def _read(self, read: Any) -> list[int]:
        tokens: list[int] = read().tolist()
        self.cache.lengths += 1
        return tokens

    def _step(self) -> tuple[Array, ...]:
        """Compute a token of every row, and choose the next."""
        k, model, state, options = self.k, self.model, self.state, self.sampling
        wpe = None if isinstance(model, FusedLlama) else model.wpe.weight.data
        x = k.embed_token(model.wte.weight.data, wpe, state.token, state.position)  # (B, C)
        block = self._llama_block if isinstance(model, FusedLlama) else self._gpt_block
        for part, layer in zip(model.h, self.cache.layers, strict=True):
            x = block(x, part, layer)
        if isinstance(model, FusedLlama):
            logits = k.linear_rows(x, model.head_weight.data, norm=norm(model.norm_f))  # (B, V)
        else:
            logits = k.linear_rows(x, model.wte.weight.data, norm=norm(model.ln_f))
        k.choose(
            logits, state, n_slots=self.cache.capacity, temperature=options.temperature, top_k=options.top_k,
            top_p=options.top_p, repetition_penalty=options.repetition_penalty,
        )  # fmt: skip
        return (state.token,)

    def _gpt_block(self, x: Array, block: Any, layer: LayerCache) -> Array:
        """Block.forward of gpt/model.py: x (B, C) -> (B, C)."""
        k, attn, mlp, position = self.k, block.attn, block.mlp, self.state.position
        qkv = k.linear_rows(x, attn.c_attn.weight.data, bias=data(attn.c_attn.bias), norm=norm(block.ln_1))
        y = k.attention_step(qkv, layer.k, layer.v, position, self.n_done, n_head=attn.n_head)
        x = k.linear_rows(y, attn.c_proj.weight.data, bias=data(attn.c_proj.bias), residual=x)
        y = k.linear_rows(
            x, mlp.c_fc.weight.data, bias=data(mlp.c_fc.bias), norm=norm(block.ln_2), activation=mlp.approximate
        )
        out: Array = k.linear_rows(y, mlp.c_proj.weight.data, bias=data(mlp.c_proj.bias), residual=x)
        return out

    def _llama_block(self, x: Array, block: Any, layer: LayerCache) -> Array:
        """LlamaBlock.forward of gpt/llama.py: x (B, C) -> (B, C)."""
        k, config, position = self.k, block.attn.config, self.state.position
        _, q, key, v, o, _, gate, up, down = (weight.data for weight in block.weights())
        qkv = k.linear_rows(x, q, key, v, norm=norm(block.norm_1))
        y = k.attention_step(
            qkv, layer.k, layer.v, position, self.n_done, n_head=config.n_head, rope_base=config.rope_base
        )
        x = k.linear_rows(y, o, residual=x)
        y = k.linear_rows(x, gate, up, norm=norm(block.norm_2), activation="swiglu")
        out: Array = k.linear_rows(y, down, residual=x)
        return out


def backend(x: Array) -> Any:
    """The backend of an array; on a GPU, it has the methods that are used here."""
    return backend_of("generate", [x])


def data(x: Any) -> Array | None:
    """The array of a tensor; None for None."""
    return None if x is None else x.data


def norm(layer: Any) -> tuple[Array, Array | None, float, bool]:
    """Weight, bias and epsilon of a layer norm or RMS norm, and whether it is a layer norm."""
    return layer.weight.data, data(getattr(layer, "bias", None)), layer.eps, isinstance(layer, nn.LayerNorm)
