"""The names of a model's matrices: ours, Hugging Face's, and those of GGUF files."""

from typing import Literal

from gpt.config import GPTConfig, LlamaConfig

Format = Literal["hf", "gguf"]
_FORMATS = ("hf", "gguf")  # the columns after ours

_LLAMA = [
    ("wte", "model.embed_tokens", "token_embd"),
    ("norm_f", "model.norm", "output_norm"),
    ("lm_head", "lm_head", "output"),
]
_LLAMA_BLOCK = [
    ("norm_1", "input_layernorm", "attn_norm"),
    ("attn.q_proj", "self_attn.q_proj", "attn_q"),
    ("attn.k_proj", "self_attn.k_proj", "attn_k"),
    ("attn.v_proj", "self_attn.v_proj", "attn_v"),
    ("attn.o_proj", "self_attn.o_proj", "attn_output"),
    ("norm_2", "post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "mlp.down_proj", "ffn_down"),
]
_GPT2 = [
    ("wte", "transformer.wte", "token_embd"),
    ("wpe", "transformer.wpe", "position_embd"),
    ("ln_f", "transformer.ln_f", "output_norm"),
]
_GPT2_BLOCK = [
    ("ln_1", "ln_1", "attn_norm"),
    ("attn.c_attn", "attn.c_attn", "attn_qkv"),
    ("attn.c_proj", "attn.c_proj", "attn_output"),
    ("ln_2", "ln_2", "ffn_norm"),
    ("mlp.c_fc", "mlp.c_fc", "ffn_up"),
    ("mlp.c_proj", "mlp.c_proj", "ffn_down"),
]
_BLOCKS = {"llama": "model.layers", "gpt2": "transformer.h"}


def parameter_names(config: GPTConfig | LlamaConfig, format: Format) -> dict[str, str]:
    """Return, for every parameter of a model, its name in the format: our name -> theirs."""
    column = 1 + _FORMATS.index(format)
    whole, block = (_LLAMA, _LLAMA_BLOCK) if config.type_name == "llama" else (_GPT2, _GPT2_BLOCK)
    blocks = _BLOCKS[config.type_name] if format == "hf" else "blk"
    names = {row[0]: row[column] for row in whole}
    names |= {f"h.{i}.{row[0]}": f"{blocks}.{i}.{row[column]}" for i in range(config.n_layer) for row in block}
    if isinstance(config, LlamaConfig) and config.tied:
        del names["lm_head"]
    weights = {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in names.items()}
    if isinstance(config, GPTConfig) and config.bias:
        weights |= {f"{ours}.bias": f"{theirs}.bias" for ours, theirs in names.items() if ours not in ("wte", "wpe")}
    return weights
