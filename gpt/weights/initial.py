"""The weights that `--init-from`, `generate.py --model` and `evaluate` load, wherever they come from."""

import hashlib
import os
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from gpt.checkpoint import Checkpoint, load_checkpoint
from gpt.checkpoint.files import MANIFEST, MODEL
from gpt.checkpoint.steps import newest_checkpoint
from gpt.cli import user_errors
from gpt.config import GPTConfig, LlamaConfig, UserError, nearest
from gpt.files import file_errors, sha256_of
from gpt.lora import LoRA, add_lora, load_adapters
from gpt.tokenizer import Tokenizer
from gpt.train.config import TrainConfig
from gpt.weights import Model, build_model, gguf, huggingface
from gpt.weights.adapter import ADAPTER, Base, is_adapter, read_adapter, read_base_path
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
    base_path: str  # the path again; of a run, that of its checkpoint
    files: tuple[Path, ...]  # that hold the weights

    @cached_property
    def sha256(self) -> str:
        """The hash of the file that holds the weights; of several, of their hashes."""
        hashes = [sha256_of(file) for file in self.files]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()

    @property
    def base(self) -> Base:
        """How the checkpoints of adapters refer to these weights."""
        return Base(self.base_path, self.sha256)

    def require_base(self, sha256: str | None, whose: str) -> None:
        """Raise UserError where adapters were trained beside other weights; None: that is not recorded."""
        if sha256 not in (None, self.sha256):
            has = f"weights with the sha256 {str(sha256)[:12]}..., and {self.path} has {self.sha256[:12]}..."
            raise UserError(f"{whose}: an adapter of another base: it was trained beside {has}")

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


def load_initial(
    path: str | None, n_head: int | None = None, quantize: str = "file", adapter: str | None = None
) -> InitialWeights:
    """Read a run or checkpoint of train.py, a Hugging Face folder or its safetensors, a GGUF file, or a model by name.

    A file or folder comes before a name in PUBLISHED. n_head: of a GPT-2 without config.json, whose heads are not 64
    wide. quantize: none, everything in float32; file, as it is stored, where that is quantised; or q8_0, q4_0 or q4_1.
    adapter: a folder of PEFT, or a run with LoRA, which is merged into the weights; path may then be None, for the base
    that it names. The path of a run with LoRA stands for its base and its newest adapter.
    Raises UserError, naming the file, for anything else, and for a model with other heads.
    """
    if adapter is not None:
        return _with_adapter(path, _adapter_folder(adapter), n_head, quantize)
    if path is None:
        raise ValueError("load_initial: a path or an adapter is needed")
    place = Path(os.path.expanduser(path))
    if path in PUBLISHED and not place.exists():
        place = find_published(path)
    if not place.exists():
        raise UserError(f"{path}: no such checkpoint{nearest(path, PUBLISHED) or f'; give {MODEL_HELP}'}")
    if place.name in (MODEL, ADAPTER) and (place.parent / MANIFEST).exists():
        place = place.parent  # of a checkpoint: its names are GPT-2's, but its matrices are stored transposed
    base_path = path
    with file_errors(place):
        if place.is_file() and is_gguf(place):
            config, weights, tokenizer = gguf.read_model(place, quantize)
            files: tuple[Path, ...] = (place,)
        elif place.is_file() and not huggingface.is_safetensors(place):
            raise UserError(f"{path}: neither safetensors nor GGUF; give {MODEL_HELP}")
        elif place.is_file() or huggingface.is_folder(place):
            config, weights = huggingface.read_weights(place, n_head=n_head, quantize=quantize)
            tokenizer = huggingface.find_tokenizer(place, config)
            files = huggingface.weight_files(place)
        else:
            checkpoint = load_checkpoint(place, optimizer=False)
            if checkpoint.state.base is not None:
                return replace(_with_adapter(None, checkpoint.path, None, quantize), path=path)
            if "labels" in checkpoint.state.task:
                raise UserError(f"{path} is a classifier, which writes no text: python -m gpt finetune predict uses it")
            checkpoint.build_model()  # raises UserError where the weights do not fit the configuration
            config, tokenizer = checkpoint.state.model_config, checkpoint.tokenizer
            weights = {name: converted(name, array, quantize) for name, array in checkpoint.weights.items()}
            base_path, files = str(checkpoint.path), (checkpoint.path / MODEL,)
        if tokenizer.vocab_size != config.vocab_size:
            what = f"the embedding has {config.vocab_size} rows"
            raise ValueError(f"{what}, but the tokenizer has {tokenizer.vocab_size} tokens")
    if n_head not in (None, config.n_head):
        raise UserError(f"n_head {n_head}: the weights of {path} have {config.n_head}")
    return InitialWeights(path, config, weights, tokenizer, base_path, files)


def _adapter_folder(path: str) -> Path:
    folder = Path(os.path.expanduser(path))
    folder = folder.parent if folder.name == ADAPTER else folder
    if not folder.is_dir():
        raise UserError(f"adapter {path}: no such folder")
    return folder if is_adapter(folder) else newest_checkpoint(folder)


def _with_adapter(path: str | None, folder: Path, n_head: int | None, quantize: str) -> InitialWeights:
    """Return the weights of a base, by default of that which the adapter names, with the adapter merged into them."""
    how = "file"
    if (folder / MANIFEST).exists():
        state = load_checkpoint(folder, optimizer=False).state  # which checks every file
        how, n_head = state.train_config.quantize, state.model_config.n_head
        if state.base is None:
            raise UserError(f"{folder}: this run has no adapter: all its weights were trained")
    named = read_base_path(folder)
    if path is None and named is None:
        raise UserError(f"{folder}: the adapter does not name its base: give --model")
    base = load_initial(path or str(named), n_head, how)
    adapter = read_adapter(folder, base.config)
    base.require_base(adapter.base_sha256, str(folder))
    with file_errors(folder / ADAPTER):
        weights = adapter.merge_into(base.weights)
        weights = {name: converted(name, array, quantize) for name, array in weights.items()}
    return replace(base, weights=weights, base_path=str(folder), files=(folder / ADAPTER, *base.files))


def build_checkpoint(checkpoint: Checkpoint, *, plain: bool = False) -> Model:
    """Return the model of a checkpoint; of a run with LoRA, its base with the adapters beside it, not merged.

    Raises UserError where the base is not there, or is not the one that the run began with.
    """
    state = checkpoint.state
    lora = LoRA.of(state.train_config)
    if state.base is None or lora is None:
        return checkpoint.build_model(plain=plain)
    base = load_initial(state.base.path, state.model_config.n_head, state.train_config.quantize)
    base.require_base(state.base.sha256, str(checkpoint.path))
    model = base.build_model(state.model_config, plain=plain)
    with file_errors(checkpoint.path / ADAPTER):
        add_lora(model, lora)
        load_adapters(model, checkpoint.weights)
    return model
