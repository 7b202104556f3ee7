"""gpt/model.py and gpt/llama.py with fused operations: equal losses and gradients in less time and memory.

Every class here has the parameters of its plain parent and overrides methods alone, so that weights and
checkpoints serve both. tests/gpt/test_fused.py compares the two.
"""

import itertools
from typing import Any

import tensorgrad as tg
from gpt.config import GPTConfig, LlamaConfig
from gpt.llama import Llama, LlamaAttention, LlamaBlock, SwiGLU
from gpt.model import GPT, MLP, Block, Cache, CausalSelfAttention, LayerCache, causal_mask
from tensorgrad import Tensor, nn


class FusedCausalSelfAttention(CausalSelfAttention):
    """Attention in one operation that never holds the (B, H, T, S) weights."""

    def forward(self, x: Tensor, pos: Tensor, cache: LayerCache | None = None) -> Tensor:
        """See CausalSelfAttention."""
        B, T, C = x.shape
        heads = self.c_attn(x).reshape(B, T, 3 * self.n_head, C // self.n_head)  # those of q, of k, of v
        q, k, v = tg.split(heads.permute_dims(0, 2, 1, 3), 3, axis=1)  # (B, H, T, D) each
        if cache is not None:
            k, v = cache.extend(k, v)  # (B, H, S, D)
        same_length = pos.ndim == 1  # then the last token sees every key, and no mask is needed
        mask = None if same_length else causal_mask(pos, k.shape[2], packed=cache is None)
        dropout_p = self.attn_dropout.p if self.attn_dropout.training else 0.0
        y = tg.attention(q, k, v, causal=same_length, mask=mask, dropout_p=dropout_p)  # (B, H, T, D)
        return self.resid_dropout(self.c_proj(y.permute_dims(0, 2, 1, 3).reshape(B, T, C)))  # (B, T, C)


class FusedMLP(MLP):
    """Both linear layers and the GELU in one operation, which keeps the GELU's input and not its result."""

    def forward(self, x: Tensor) -> Tensor:
        """See MLP."""
        c_fc, c_proj = self.c_fc, self.c_proj
        if not type(c_fc).forward is type(c_proj).forward is nn.Linear.forward:  # LoRA adds more to the products
            return super().forward(x)
        return self.dropout(tg.mlp(x, c_fc.weight, c_fc.bias, c_proj.weight, c_proj.bias, approximate=self.approximate))


class FusedBlock(Block):
    """Both sums, each in one operation with the layer norm that reads it: on a GPU fewer passes over the stream."""

    def forward(
        self, x: Tensor, pos: Tensor, cache: LayerCache | None = None, normalised: Tensor | None = None,
        next_norm: nn.LayerNorm | None = None,
    ) -> Any:  # fmt: skip
        """See Block. normalised: ln_1 of x, if it is known. next_norm: return the result and next_norm of it."""
        normalised = self.ln_1(x) if normalised is None else normalised
        x, normalised = self.ln_2.add(x, self.attn(normalised, pos, cache))  # x + attn, and ln_2 of that
        branch = self.mlp(normalised)
        return x + branch if next_norm is None else next_norm.add(x, branch)


class FusedLlamaAttention(LlamaAttention):
    """Attention in one operation, which reads shared heads of keys and values where they are."""

    def forward(self, x: Tensor, pos: Tensor, cache: LayerCache | None = None) -> Tensor:
        """See LlamaAttention."""
        q, k, v = self.queries_keys_values(x, pos)  # (B, H, T, D), (B, G, T, D) twice
        if cache is not None:
            k, v = cache.extend(k, v)  # (B, G, S, D)
        same_length = pos.ndim == 1  # then the last token sees every key, and no mask is needed
        mask = None if same_length else causal_mask(pos, k.shape[2], packed=cache is None)
        y = tg.attention(q, k, v, causal=same_length, mask=mask)  # (B, H, T, D)
        return self.o_proj(y.permute_dims(0, 2, 1, 3).reshape(x.shape))  # (B, T, C)


class FusedSwiGLU(SwiGLU):
    """The SiLU and the product in one operation, whose result is not kept for backward."""

    def forward(self, x: Tensor) -> Tensor:
        """See SwiGLU."""
        return self.down_proj(tg.swiglu(self.gate_proj(x), self.up_proj(x)))


class FusedLlamaBlock(LlamaBlock):
    """Sums and norms as in FusedBlock."""

    def forward(
        self, x: Tensor, pos: Tensor, cache: LayerCache | None = None, normalised: Tensor | None = None,
        next_norm: nn.RMSNorm | None = None,
    ) -> Any:  # fmt: skip
        """See FusedBlock."""
        normalised = self.norm_1(x) if normalised is None else normalised
        x, normalised = self.norm_2.add(x, self.attn(normalised, pos, cache))  # x + attn, and norm_2 of that
        branch = self.mlp(normalised)
        return x + branch if next_norm is None else next_norm.add(x, branch)

    def weights(self) -> list[Tensor]:
        """All weights, in the order of their use; none if a matrix is more than a plain product."""
        attn, mlp = self.attn, self.mlp
        layers = attn.q_proj, attn.k_proj, attn.v_proj, attn.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj
        if not all(type(layer).forward is nn.Linear.forward for layer in layers):
            return []
        q, k, v, o, gate, up, down = (layer.weight for layer in layers)
        return [self.norm_1.weight, q, k, v, o, self.norm_2.weight, gate, up, down]


FUSED: dict[type[nn.Module], type[nn.Module]] = {
    CausalSelfAttention: FusedCausalSelfAttention,
    MLP: FusedMLP,
    Block: FusedBlock,
    LlamaAttention: FusedLlamaAttention,
    SwiGLU: FusedSwiGLU,
    LlamaBlock: FusedLlamaBlock,
}


def fuse(model: nn.Module) -> None:
    """Replace the parts of a model by the fused ones; a part of any other class stays as it is."""
    for module in model.modules():
        module.__class__ = FUSED.get(type(module), type(module))


def run_fused_blocks(blocks: list[Any], norms: list[Any], x: Tensor, pos: Tensor) -> Tensor:
    """All blocks, each with the norm that reads its result. norms: the first of every block, and the last one."""
    normalised = norms[0](x)
    for block, next_norm in zip(blocks, norms[1:], strict=True):
        x, normalised = block(x, pos, None, normalised, next_norm)
    return normalised


class FusedGPT(GPT):
    """A GPT whose parts are the fused ones."""

    def __init__(self, config: GPTConfig | dict[str, Any]) -> None:
        super().__init__(config)
        fuse(self)

    def run_blocks(self, x: Tensor, pos: Tensor, cache: Cache | None = None) -> Tensor:
        """See GPT; a block that is recomputed, generates text, or was replaced, is run by itself."""
        if cache is not None or self.recompute or not all(isinstance(block, FusedBlock) for block in self.h):
            return super().run_blocks(x, pos, cache)
        return run_fused_blocks(self.h, [*(block.ln_1 for block in self.h), self.ln_f], x, pos)

    def loss(self, idx: Any, targets: Any, pos: Any = None) -> Tensor:
        """The mean loss alone, without holding all logits: V numbers a token, they can be most of the memory."""
        return tg.linear_cross_entropy(self.hidden_states(idx, pos=pos), self.wte.weight, tg.asarray(targets))


class FusedLlama(Llama):
    """A Llama whose parts are the fused ones."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        fuse(self)

    def run_blocks(self, x: Tensor, pos: Tensor, cache: Cache | None = None) -> Tensor:
        """See FusedGPT; for one token of generated text, all blocks are one operation."""
        if self.recompute or not all(isinstance(block, FusedLlamaBlock) for block in self.h):
            return super().run_blocks(x, pos, cache)
        if cache is not None:
            weights = [block.weights() for block in self.h] if x.shape[:2] == (1, 1) else []
            decodes = weights and all(weights)
            return self.norm_f(self.decode(x, weights, cache)) if decodes else super().run_blocks(x, pos, cache)
        return run_fused_blocks(self.h, [*(block.norm_1 for block in self.h), self.norm_f], x, pos)

    def decode(self, x: Tensor, weights: list[list[Tensor]], cache: Cache) -> Tensor:
        """All blocks for the one token x (1, 1, C), whose keys and values are added to the cache."""
        layers = cache.layers
        return tg.decode_blocks(
            x, *itertools.chain.from_iterable(weights), keys=[layer.k for layer in layers],
            values=[layer.v for layer in layers], position=layers[0].start, rope_base=self.config.rope_base,
            eps=self.config.norm_eps,
        )  # fmt: skip

    def loss(self, idx: Any, targets: Any, pos: Any = None) -> Tensor:
        """The mean loss alone; see FusedGPT."""
        return tg.linear_cross_entropy(self.hidden_states(idx, pos=pos), self.head_weight, tg.asarray(targets))
