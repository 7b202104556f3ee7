"""Models, and weights to start from: GPT-2's published ones (`gpt2`), or any that a run can start with (`initial`)."""

from gpt.config import GPTConfig
from gpt.fused import FusedGPT
from gpt.model import GPT


def build_model(config: GPTConfig, *, plain: bool = False) -> GPT:
    """Return a model with random weights; plain: gpt/model.py as it is written, without fused operations."""
    return GPT(config) if plain else FusedGPT(config)
