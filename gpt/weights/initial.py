"""The weights that `--init-from` and `evaluate` load: a checkpoint of train.py, or a GPT-2 from Hugging Face."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt.checkpoint import load_checkpoint
from gpt.checkpoint.files import MANIFEST, MODEL, Arrays
from gpt.cli import user_errors
from gpt.config import GPTConfig, LlamaConfig, TrainConfig, UserError
from gpt.tokenizer import GPT2Tokenizer, Tokenizer
from gpt.weights import Model
from gpt.weights.gpt2 import load_gpt2_weights

_FREE = ("vocab_size", "dropout")  # a run may have other values than the weights; all others must be the same
_POSITIONS = "wpe.weight"


@dataclass(frozen=True)
class InitialWeights:
    """Weights, with the configuration and the tokenizer that they were trained with."""

    path: str
    config: GPTConfig | LlamaConfig
    weights: Arrays
    tokenizer: Tokenizer

    def settings(self) -> dict[str, Any]:
        """Return the values of a training configuration that fits these weights."""
        shape = {name: value for name, value in asdict(self.config).items() if name not in _FREE}
        return {"tokenizer": self.tokenizer.type_name, "model": self.config.type_name, **shape}

    def require_fit(self, config: TrainConfig) -> None:
        """Raise UserError for a configuration with another model or tokenizer than that of the weights."""
        for name, has in self.settings().items():
            value = getattr(config, name)
            if value != has and not (name == "block_size" and value < has):
                raise UserError(f"{name} {value}: the weights of {self.path} have {has}")

    def load_into(self, model: Model) -> None:
        """Copy the weights into a model, whose context window may be shorter."""
        weights = dict(self.weights)
        if _POSITIONS in weights:
            weights[_POSITIONS] = weights[_POSITIONS][: model.config.block_size]
        with user_errors(about=self.path):
            model.load_state_dict(weights)


def load_initial(path: str, n_head: int | None = None) -> InitialWeights:
    """Read a checkpoint or run folder of train.py, or a GPT-2's model.safetensors, or the folder that contains it.

    n_head: of a GPT-2 whose heads are not 64 wide. Raises UserError, naming the file, for anything else.
    """
    place = Path(os.path.expanduser(path))
    if place.name == MODEL and (place.parent / MANIFEST).exists():
        place = place.parent  # of a checkpoint: its names are GPT-2's, but its matrices are stored transposed
    file = place / MODEL if place.is_dir() and not (place / MANIFEST).exists() else place
    if not file.is_file():
        checkpoint = load_checkpoint(place, optimizer=False)
        checkpoint.build_model()  # raises UserError where the weights do not fit the configuration
        return InitialWeights(path, checkpoint.state.model_config, checkpoint.weights, checkpoint.tokenizer)
    with user_errors(ValueError, OSError):
        model, tokenizer = load_gpt2_weights(file, n_head=n_head), GPT2Tokenizer()
    if model.config.vocab_size != tokenizer.vocab_size:
        raise UserError(f"{file}: {model.config.vocab_size} tokens, but GPT-2's vocabulary has {tokenizer.vocab_size}")
    return InitialWeights(path, model.config, model.state_dict(), tokenizer)
