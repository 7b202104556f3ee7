"""The configuration of a model and of a training run: two dataclasses, and named presets."""

from __future__ import annotations

import difflib
import math
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Self, TypeVar

T = TypeVar("T")


class UserError(Exception):
    """A mistake of the user, in one line: programs print it without a traceback and exit with status 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?`, quoted for a shell, for the closest known name; empty where none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {shlex.quote(close[0])}?" if close else ""


@dataclass(frozen=True)
class _Config:
    _what: ClassVar[str]  # in messages
    _other_names: ClassVar[Mapping[str, str]] = {}  # the names of fields in other programs

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from a dict such as GPT_CONFIG_124M; ValueError for an unknown key."""
        names = [f.name for f in fields(cls)]
        others = ", ".join(f"{key} is called {cls._other_names[key]}" for key in values if key in cls._other_names)
        for key in values:
            if key not in names:
                hint = f"; here {others}" if others else nearest(str(key), names)
                raise ValueError(f"unknown key {key!r} in {cls._what}{hint}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class GPTConfig(_Config):
    """The shape of a GPT, with nanoGPT's field names, by default GPT-2's; ValueError for a value outside its range."""

    _what = "a model configuration"
    _other_names = {  # in LLMs-from-scratch
        "context_length": "block_size", "emb_dim": "n_embd", "n_heads": "n_head", "n_layers": "n_layer",
        "drop_rate": "dropout", "qkv_bias": "bias",
    }  # fmt: skip

    block_size: int = 1024  # T, the context window
    vocab_size: int = 50257  # V
    n_layer: int = 12
    n_head: int = 12  # H
    n_embd: int = 768  # C, the width
    dropout: float = 0.0
    bias: bool = True  # in every Linear and LayerNorm, as in GPT-2

    def __post_init__(self) -> None:
        _check_types(self)
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd"):
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        _require(self, "dropout", 0 <= self.dropout < 1, "at least 0 and below 1")
        if self.n_embd % self.n_head:
            what = f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}"
            raise ValueError(f"{what}: every head gets an equal share of it")


_GPT2 = {"block_size": 1024, "vocab_size": 50257, "dropout": 0.0, "bias": True}
_SHAKESPEARE = {"vocab_size": 65, "bias": False}

GPT_CONFIG_124M: dict[str, Any] = {**_GPT2, "n_layer": 12, "n_head": 12, "n_embd": 768}
GPT_CONFIG_355M: dict[str, Any] = {**_GPT2, "n_layer": 24, "n_head": 16, "n_embd": 1024}
GPT_CONFIG_774M: dict[str, Any] = {**_GPT2, "n_layer": 36, "n_head": 20, "n_embd": 1280}
GPT_CONFIG_1558M: dict[str, Any] = {**_GPT2, "n_layer": 48, "n_head": 25, "n_embd": 1600}

GPT_CONFIG_SHAKESPEARE_CHAR_CPU: dict[str, Any] = {
    **_SHAKESPEARE, "n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "dropout": 0.0,
}  # fmt: skip
GPT_CONFIG_SHAKESPEARE_CHAR: dict[str, Any] = {
    **_SHAKESPEARE, "n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "dropout": 0.2,
}  # fmt: skip

BPE_VOCAB_SIZE = 4096  # unless vocab_size is given
BACKENDS = ("auto", "numpy", "numba", "cupy")
ENCODING_ERRORS = ("strict", "replace", "ignore")
TOKENIZERS = ("char", "bpe", "gpt2")
CHOICES = {
    "backend": BACKENDS,
    "dtype": ("float32", "tf32", "bfloat16", "float16"),
    "encoding_errors": ENCODING_ERRORS,
    "tokenizer": TOKENIZERS,
    "on_save_error": ("stop", "continue"),
    "on_nonfinite": ("stop", "skip"),
    "logger": ("tensorboard", "wandb"),
}


def flag(default: T, group: str, help: str) -> T:
    """Declare a field that is also a flag of train.py, under the heading `group` and with this text in `--help`."""
    option: T = field(default=default, metadata={"group": group, "help": help})
    return option


@dataclass(frozen=True)
class TrainConfig(_Config):
    """The settings of a run, which are flags of train.py and keys in TOML; ValueError for one outside its range."""

    _what = "a training configuration"

    data: str = flag("shakespeare", "data", "shakespeare, kjv, python-docs, a file or folder, or prepared data")
    encoding_errors: str = flag("strict", "data", "bytes that are not UTF-8: strict (an error), replace or ignore")
    normalize_whitespace: bool = flag(False, "data", "remove white space at line ends, and repeated blank lines")
    allow_special: bool = flag(False, "data", "read <|endoftext|> in the text as that token, of bpe or gpt2")
    tokenizer: str = flag("char", "data", "char, bpe (trained on the text) or gpt2")
    vocab_size: int | None = flag(None, "data", f"of --tokenizer bpe (default: {BPE_VOCAB_SIZE})")

    n_layer: int = flag(4, "model", "transformer blocks")
    n_head: int = flag(4, "model", "attention heads per block; must divide --n-embd")
    n_embd: int = flag(128, "model", "width of the model")
    block_size: int = flag(64, "model", "context window, in tokens")
    dropout: float = flag(0.0, "model", "share of activations dropped during training")
    bias: bool = flag(False, "model", "biases in the linear layers and the layer norms")

    max_iters: int = flag(2000, "training", "optimizer steps in total")
    batch_size: int = flag(12, "training", "context windows per batch")
    grad_accum: int = flag(1, "training", "batches whose gradients are accumulated for one step")
    recompute: bool = flag(False, "training", "recompute blocks in backward: less memory, more time")
    lr: float = flag(1e-3, "training", "highest learning rate, reached after the warm-up")
    min_lr: float = flag(1e-4, "training", "learning rate at the end of the cosine decay")
    warmup_iters: int = flag(100, "training", "steps in which the learning rate rises from 0")
    lr_decay_iters: int | None = flag(None, "training", "step at which --min-lr is reached (default: --max-iters)")
    weight_decay: float = flag(0.1, "training", "of matrices; biases and norms are not decayed")
    beta1: float = flag(0.9, "training", "AdamW: decay of the mean of the gradient")
    beta2: float = flag(0.99, "training", "AdamW: decay of the mean of its square")
    grad_clip: float = flag(1.0, "training", "largest norm of the whole gradient; 0: no limit")
    seed: int = flag(1337, "training", "of weights, dropout, batches and the sample")
    init_from: str | None = flag(
        None, "training", "initial weights: a checkpoint, or GPT-2's model.safetensors (default: random)"
    )

    backend: str = flag("auto", "run", "numpy, numba, cupy or auto (the fastest that is available)")
    dtype: str = flag("float32", "run", "float32, tf32, bfloat16 or float16; sums are float32 in any case")
    plain: bool = flag(False, "run", "train gpt/model.py as it is written, without fused operations: slower")
    cuda_graph: bool = flag(False, "run", "record a step once and replay it: less work for the CPU beside a GPU")
    log_interval: int = flag(10, "run", "steps between transfers of the loss from a GPU, each of which waits for it")
    threads: int | None = flag(None, "run", "CPU threads for everything (default: every core)")
    eval_interval: int = flag(250, "run", "steps between validations")
    eval_iters: int = flag(20, "run", "batches that a validation averages")
    checkpoint_interval: int | None = flag(
        None, "run", "steps between checkpoints; the best step is always saved (default: at each validation)"
    )
    keep_checkpoints: int = flag(2, "run", "how many of the newest checkpoints to keep, besides the best")
    async_save: bool = flag(True, "run", "write checkpoints while training continues; needs memory for a copy")
    on_save_error: str = flag("stop", "run", "stop, or continue and try again at the next checkpoint")
    on_nonfinite: str = flag("stop", "run", "at a step with nan or infinity: stop, or skip it")
    plot: bool = flag(True, "run", "draw loss.png during training; needs matplotlib")
    logger: str | None = flag(None, "run", "also log every metric to tensorboard or wandb")
    sample_interval: int = flag(0, "run", "steps between texts that the model generates into samples.txt; 0: none")
    log_ratios: bool = flag(False, "run", "log the norm of the gradient over that of the weights, for every layer")
    out: str | None = flag(None, "run", "folder of the run (default: a new one under checkpoints/)")

    def __post_init__(self) -> None:
        _check_types(self)
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in known:
                hint = nearest(value, known) or f" (one of {', '.join(known)})"
                raise ValueError(f"unknown {name} {value!r}{hint}")
        counts = ("eval_interval", "eval_iters", "keep_checkpoints", "log_interval")
        for name in ("max_iters", "batch_size", "grad_accum", *counts):
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("warmup_iters", "weight_decay", "grad_clip", "sample_interval"):
            _require(self, name, 0 <= getattr(self, name) < math.inf, "at least 0")
        _require(self, "seed", 0 <= self.seed < 2**64, "at least 0 and below 2**64")
        for name in ("vocab_size", "lr_decay_iters", "threads", "checkpoint_interval"):
            value = getattr(self, name)
            _require(self, name, value is None or value >= 1, "at least 1")
        for name in ("beta1", "beta2"):
            _require(self, name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        _require(self, "lr", 0 < self.lr < math.inf, "above 0")
        _require(self, "min_lr", 0 <= self.min_lr <= self.lr, f"between 0 and lr ({self.lr:g})")
        if self.cuda_graph and self.log_ratios:
            raise ValueError("cuda_graph does not work with log_ratios: a replayed step does not show its gradients")
        if self.vocab_size is not None and self.tokenizer != "bpe":
            others = f"{self.tokenizer} determines its own vocabulary"
            raise ValueError(f"vocab_size {self.vocab_size} is for tokenizer bpe; {others}")
        self.model_config(vocab_size=1)  # raises ValueError for an impossible shape

    @property
    def half(self) -> bool:
        """Whether weights and activations are in half precision, with float32 master weights."""
        return self.dtype in ("bfloat16", "float16")

    @property
    def tokens_per_step(self) -> int:
        """Return the number of tokens in one optimizer step."""
        return self.batch_size * self.grad_accum * self.block_size

    def model_config(self, vocab_size: int) -> GPTConfig:
        """Return the configuration of the model; the tokenizer determines the size of the vocabulary."""
        names = [f.name for f in fields(self) if f.metadata["group"] == "model"]
        return GPTConfig(vocab_size=vocab_size, **{name: getattr(self, name) for name in names})


def _preset(model: dict[str, Any], **training: Any) -> dict[str, Any]:
    return {key: value for key, value in model.items() if key != "vocab_size"} | training


# nanoGPT's settings, half a million tokens per step: for a large --data and a large machine.
_GPT2_RUN: dict[str, Any] = {
    "tokenizer": "gpt2", "batch_size": 12, "grad_accum": 40, "max_iters": 600_000,
    "lr": 6e-4, "min_lr": 6e-5, "warmup_iters": 2000, "beta2": 0.95,
    "eval_interval": 1000, "eval_iters": 200,
}  # fmt: skip

# The values of `--config NAME`; flags take precedence over them.
NAMED_CONFIGS: dict[str, dict[str, Any]] = {
    "shakespeare-char-cpu": _preset(GPT_CONFIG_SHAKESPEARE_CHAR_CPU),
    "shakespeare-char": _preset(GPT_CONFIG_SHAKESPEARE_CHAR, batch_size=64, max_iters=5000, eval_iters=200),
    "gpt2-124m": _preset(GPT_CONFIG_124M, **_GPT2_RUN),
    "gpt2-355m": _preset(GPT_CONFIG_355M, **_GPT2_RUN),
    "gpt2-774m": _preset(GPT_CONFIG_774M, **_GPT2_RUN),
    "gpt2-1558m": _preset(GPT_CONFIG_1558M, **_GPT2_RUN),
}

# A bool is an int in Python, but not in a configuration; an int is accepted for a float.
_IS_A = {
    "int": lambda value: type(value) is int,
    "float": lambda value: type(value) in (int, float),
    "bool": lambda value: type(value) is bool,
    "str": lambda value: type(value) is str,
    "None": lambda value: value is None,
}


def _check_types(config: _Config) -> None:
    for f in fields(config):
        value, kinds = getattr(config, f.name), str(f.type).split(" | ")
        if not any(_IS_A[kind](value) for kind in kinds):
            raise ValueError(f"{f.name} must be {kinds[0]}, not {value!r}")
        _require(config, f.name, type(value) is not int or value < 2**64, "below 2**64")
        # A file name may have bytes that are not UTF-8, which Python represents by surrogates; no TOML can hold them.
        if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
            raise ValueError(f"{f.name} {value!r} contains NUL or bytes that are not UTF-8: rename the file")


def _require(config: _Config, name: str, holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {rule}, not {getattr(config, name)!r}")
