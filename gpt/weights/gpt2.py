"""GPT-2's published weights, from Hugging Face's `model.safetensors`."""

import re
from pathlib import Path

import numpy as np

from gpt.checkpoint.files import Arrays, read_arrays, require_enough
from gpt.config import GPTConfig
from gpt.fused import FusedGPT
from gpt.model import GPT

HEAD_SIZE = 64  # of every GPT-2; the file does not contain the number of heads

# Stored as (in, out): OpenAI's code has convolutions of width one in the place of linear layers.
_TRANSPOSED = re.compile(r"(c_attn|c_proj|c_fc)\.weight$")
# The causal mask, which early versions saved with the weights.
_MASK = re.compile(r"\.attn\.(bias|masked_bias)$")


def load_gpt2_weights(path: str | Path, *, n_head: int | None = None) -> GPT:
    """Return a GPT with the weights of a Hugging Face GPT-2, in float32, in eval mode.

    Their shapes determine its configuration, except n_head, by default n_embd / 64. Raises ValueError, naming the file,
    for one that is not a GPT-2, and OSError for one that cannot be read.
    """
    try:
        weights = _to_our_names(read_arrays(Path(path)))
        config = _infer_config(weights, n_head)
        require_enough(weights, config)
        model = FusedGPT(config)
        model.load_state_dict(weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    model.eval()
    return model


def _to_our_names(arrays: Arrays) -> Arrays:
    for name, array in arrays.items():
        if array.dtype.kind == "c":
            raise ValueError(f"{name} is {array.dtype}: only real numbers are supported")
    return {
        name.removeprefix("transformer."): np.ascontiguousarray(a.T if _TRANSPOSED.search(name) else a, np.float32)
        for name, a in arrays.items()
        if not _MASK.search(name)
    }


def _infer_config(weights: Arrays, n_head: int | None) -> GPTConfig:
    for name in ("wte.weight", "wpe.weight"):
        if name not in weights or weights[name].ndim != 2:
            raise ValueError(f"no matrix {name}: these are not the weights of a GPT-2")
    head = weights.pop("lm_head.weight", weights["wte.weight"])
    if not np.array_equal(head, weights["wte.weight"]):
        raise ValueError("lm_head.weight differs from wte.weight: only a tied head is supported")
    vocab_size, n_embd = weights["wte.weight"].shape
    if n_head is None and n_embd % HEAD_SIZE:
        raise ValueError(f"n_embd {n_embd} is not a multiple of {HEAD_SIZE}: give n_head")
    layers = {int(match[1]) for name in weights if (match := re.match(r"h\.(\d+)\.", name))}
    return GPTConfig(
        block_size=weights["wpe.weight"].shape[0],
        vocab_size=vocab_size,
        n_layer=max(len(layers), 1),
        n_head=n_head or n_embd // HEAD_SIZE,
        n_embd=n_embd,
        bias="ln_f.bias" in weights,
    )
