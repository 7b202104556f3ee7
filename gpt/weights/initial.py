"""--init-from: the weights that a new run begins with, from a checkpoint of ours or a GPT-2 of Hugging Face's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt.checkpoint import MODEL, load_checkpoint
from gpt.checkpoint.files import MANIFEST, Arrays
from gpt.cli import user_errors
from gpt.config import GPTConfig, TrainConfig, UserError
from gpt.model import GPT
from gpt.tokenizer import GPT2Tokenizer, Tokenizer
from gpt.weights.gpt2 import load_gpt2_weights

_SHAPE = ("n_layer", "n_head", "n_embd", "bias")  # what has to be as it is in the weights
_POSITIONS = "wpe.weight"


@dataclass(frozen=True)
class InitialWeights:
    """Weights, and what they were trained with."""

    path: str
    config: GPTConfig
    weights: Arrays
    tokenizer: Tokenizer

    def settings(self) -> dict[str, Any]:
        """Return what a training configuration has to say to fit these weights."""
        names = (*_SHAPE, "block_size")
        return {"tokenizer": self.tokenizer.type_name, **{name: getattr(self.config, name) for name in names}}

    def refuse_misfit(self, config: TrainConfig) -> None:
        """Raise UserError where the configuration asks for another model or tokenizer than that of the weights."""
        for name, has in self.settings().items():
            asked = getattr(config, name)
            if asked != has and not (name == "block_size" and asked < has):
                raise UserError(f"{name} {asked}: the weights of {self.path} have {has}")

    def load_into(self, model: GPT) -> None:
        """Copy the weights; of the positions, those that a shorter window has."""
        positions = self.weights[_POSITIONS][: model.config.block_size]
        with user_errors(about=self.path):
            model.load_state_dict({**self.weights, _POSITIONS: positions})


def load_initial(path: str, n_head: int | None = None) -> InitialWeights:
    """Read a step or run folder of ours, or model.safetensors of a GPT-2, or the folder that it is in.

    n_head: of a GPT-2 whose file does not tell. Raises UserError, naming the file, for anything else.
    """
    place = Path(path)
    file = place / MODEL if place.is_dir() and not (place / MANIFEST).exists() else place
    if not file.is_file():
        checkpoint = load_checkpoint(place, optimizer=False)
        checkpoint.build_model()  # for what it finds wrong
        return InitialWeights(path, checkpoint.state.model_config, checkpoint.weights, checkpoint.tokenizer)
    with user_errors(ValueError, OSError):
        model, tokenizer = load_gpt2_weights(file, n_head=n_head), GPT2Tokenizer()
    if model.config.vocab_size != tokenizer.vocab_size:
        raise UserError(f"{file}: {model.config.vocab_size} tokens, and GPT-2's vocabulary has {tokenizer.vocab_size}")
    return InitialWeights(path, model.config, model.state_dict(), tokenizer)
