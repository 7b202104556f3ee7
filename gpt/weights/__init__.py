"""Models, and weights in and out: runs, Hugging Face folders, GGUF files, and published models by name (`initial`)."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from gpt.config import GPTConfig, LlamaConfig
from gpt.fused import FusedGPT, FusedLlama
from gpt.llama import Llama
from gpt.model import GPT
from tensorgrad.creation import skip_init

Model = GPT | Llama
IGNORED = -100  # a target that the loss of a model leaves out


def build_model(
    config: GPTConfig | LlamaConfig, *, plain: bool = False, weights: Mapping[str, Any] | None = None
) -> Model:
    """Return a model with random weights, or with these, which become its own without a copy.

    plain: as gpt/model.py or gpt/llama.py is written, without fused ops. Raises ValueError for weights that do not fit.
    """
    with nullcontext() if weights is None else skip_init():
        if isinstance(config, LlamaConfig):
            model: Model = Llama(config) if plain else FusedLlama(config)
        else:
            model = GPT(config) if plain else FusedGPT(config)
    if weights is not None:
        model.load_state_dict(weights, assign=True)
    return model
