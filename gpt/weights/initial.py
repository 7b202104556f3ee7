"""The weights that `--init-from`, `generate.py --model` and `evaluate` load, wherever they come from."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt.checkpoint import load_checkpoint
from gpt.checkpoint.files import MANIFEST, MODEL
from gpt.cli import user_errors
from gpt.config import GPTConfig, LlamaConfig, TrainConfig, UserError
from gpt.files import file_errors
from gpt.tokenizer import Tokenizer
from gpt.weights import Model, build_model, gguf, huggingface
from gpt.weights.arrays import WeightArrays, converted
from gpt.weights.gguf_file import is_gguf
from gpt.weights.published import PUBLISHED, find_published

_FREE = ("vocab_size", "dropout")  # a run may have other values than the weights; all others must be the same
MODEL_HELP = f"a run, one step of it, a Hugging Face folder, a file of safetensors or GGUF, {' or '.join(PUBLISHED)}"
_POSITIONS = "wpe.weight"


@dataclass(frozen=True)
class InitialWeights:
    """Weights, with the configuration and the tokenizer that they were trained with."""

    path: str
    config: GPTConfig | LlamaConfig
    weights: WeightArrays
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

    def build_model(self, config: GPTConfig | LlamaConfig | None = None, *, plain: bool = False) -> Model:
        """Return a model that has these weights; config: with a shorter window, or another dropout.

        plain: see gpt.weights.build_model. Raises UserError for weights that do not fit the configuration.
        """
        config, weights = config or self.config, dict(self.weights)
        if _POSITIONS in weights:
            weights[_POSITIONS] = weights[_POSITIONS][: config.block_size]
        with user_errors(about=self.path):
            return build_model(config, plain=plain, weights=weights)


def load_initial(path: str, n_head: int | None = None, quantize: str = "file") -> InitialWeights:
    """Read a run or checkpoint of train.py, a Hugging Face folder or its safetensors, a GGUF file, or a model by name.

    A file or folder comes before a name in PUBLISHED. n_head: of a GPT-2 without config.json,
    whose heads are not 64 wide. quantize: none, everything in float32; file, as it is stored, where that is quantised;
    or q8_0, q4_0 or q4_1. Raises UserError, naming the file, for anything else, and for a model with other heads.
    """
    place = Path(os.path.expanduser(path))
    if path in PUBLISHED and not place.exists():
        place = find_published(path)
    if place.name == MODEL and (place.parent / MANIFEST).exists():
        place = place.parent  # of a checkpoint: its names are GPT-2's, but its matrices are stored transposed
    with file_errors(place):
        if place.is_file() and is_gguf(place):
            config, weights, tokenizer = gguf.read_model(place, quantize)
        elif place.is_file() or huggingface.is_folder(place):
            config, weights = huggingface.read_weights(place, n_head=n_head, quantize=quantize)
            tokenizer = huggingface.find_tokenizer(place, config)
        else:
            checkpoint = load_checkpoint(place, optimizer=False)
            checkpoint.build_model()  # raises UserError where the weights do not fit the configuration
            config, tokenizer = checkpoint.state.model_config, checkpoint.tokenizer
            weights = {name: converted(name, array, quantize) for name, array in checkpoint.weights.items()}
        if tokenizer.vocab_size != config.vocab_size:
            what = f"the embedding has {config.vocab_size} rows"
            raise ValueError(f"{what}, but the tokenizer has {tokenizer.vocab_size} tokens")
    if n_head not in (None, config.n_head):
        raise UserError(f"n_head {n_head}: the weights of {path} have {config.n_head}")
    return InitialWeights(path, config, weights, tokenizer)
