"""Models, and weights to start from: GPT-2's published ones (`gpt2`), or any that a run can start with (`initial`)."""

from gpt.config import GPTConfig, LlamaConfig
from gpt.fused import FusedGPT, FusedLlama
from gpt.llama import Llama
from gpt.model import GPT

Model = GPT | Llama


def build_model(config: GPTConfig | LlamaConfig, *, plain: bool = False) -> Model:
    """Return a model with random weights; plain: as gpt/model.py or gpt/llama.py is written, without fused ops."""
    if isinstance(config, LlamaConfig):
        return Llama(config) if plain else FusedLlama(config)
    return GPT(config) if plain else FusedGPT(config)
