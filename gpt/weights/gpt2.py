"""GPT-2's published weights, from the `model.safetensors` that Hugging Face distributes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from gpt.checkpoint.files import Arrays, require_enough
from gpt.config import GPTConfig
from gpt.fused import FusedGPT
from gpt.model import GPT

HEAD_SIZE = 64  # of every GPT-2; the file does not say how many heads there are

# OpenAI's code kept these as (in, out), a convolution of width one, and the file still does.
_TRANSPOSED = re.compile(r"(c_attn|c_proj|c_fc)\.weight$")
# The causal mask, which old versions saved as if it had been learned.
_MASK = re.compile(r"\.attn\.(bias|masked_bias)$")


def load_gpt2_weights(path: str | Path, *, n_head: int | None = None) -> GPT:
    """Return a GPT with the weights of a Hugging Face GPT-2, in float32, in eval mode.

    The shape of the model is read off the weights; n_head, which they do not tell, is n_embd / 64
    unless given. Raises ValueError, naming the file, for one that is no GPT-2, and OSError for one
    that cannot be read.
    """
    try:
        weights = _to_our_names(_read(path))
        config = _infer_config(weights, n_head)
        require_enough(weights, config)
        model = FusedGPT(config)
        model.load_state_dict(weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    model.eval()
    return model


def _read(path: str | Path) -> Arrays:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"not a whole safetensors file: {error}") from error


def _to_our_names(arrays: Arrays) -> Arrays:
    for name, array in arrays.items():
        if array.dtype.kind == "c":
            raise ValueError(f"{name} is {array.dtype}, not real numbers")
    return {
        name.removeprefix("transformer."): np.ascontiguousarray(
            array.T if _TRANSPOSED.search(name) else array, dtype=np.float32
        )
        for name, array in arrays.items()
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
        raise ValueError(f"n_embd {n_embd} is no multiple of {HEAD_SIZE}: give n_head")
    layers = {int(match[1]) for name in weights if (match := re.match(r"h\.(\d+)\.", name))}
    return GPTConfig(
        block_size=weights["wpe.weight"].shape[0],
        vocab_size=vocab_size,
        n_layer=max(len(layers), 1),
        n_head=n_head or n_embd // HEAD_SIZE,
        n_embd=n_embd,
        bias="ln_f.bias" in weights,
    )
