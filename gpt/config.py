"""The configuration of a model and of a training run: two dataclasses, and named presets."""

from __future__ import annotations

import difflib
import math
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

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
class ModelConfig(_Config):
    """What the shapes of all models have in common, with nanoGPT's field names; the defaults are GPT-2's."""

    _what = "a model configuration"
    _other_names = {  # in LLMs-from-scratch
        "context_length": "block_size", "emb_dim": "n_embd", "n_heads": "n_head", "n_layers": "n_layer",
        "drop_rate": "dropout", "qkv_bias": "bias",
    }  # fmt: skip
    type_name: ClassVar[str]  # the value of --model

    block_size: int = 1024  # T, the context window
    vocab_size: int = 50257  # V
    n_layer: int = 12
    n_head: int = 12  # H
    n_embd: int = 768  # C, the width

    def __post_init__(self) -> None:
        _check_types(self)
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd"):
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        if self.n_embd % self.n_head:
            what = f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}"
            raise ValueError(f"{what}: every head gets an equal share of it")

    @property
    def head_size(self) -> int:
        """D, the size of a head."""
        return self.n_embd // self.n_head


@dataclass(frozen=True)
class GPTConfig(ModelConfig):
    """The shape of a GPT-2, by default the published one; ValueError for a value outside its range."""

    type_name = "gpt2"

    dropout: float = 0.0
    bias: bool = True  # in every Linear and LayerNorm, as in GPT-2
    norm_eps: float = 1e-5
    gelu: str = "tanh"  # the approximation that GPT-2 was trained with; "none": the exact function

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, "dropout", 0 <= self.dropout < 1, "at least 0 and below 1")
        _require(self, "norm_eps", 0 < self.norm_eps < 1, "above 0 and below 1")
        _require(self, "gelu", self.gelu in ("tanh", "none"), "tanh or none")

    @property
    def n_kv_head(self) -> int:
        """The number of heads of the keys and values: as many as of the queries."""
        return self.n_head

    def count_parameters(self) -> ParameterCount:
        """Return how many parameters the model has."""
        C, bias = self.n_embd, int(self.bias)
        norm = C * (1 + bias)
        matrices = sum(n_out * (n_in + bias) for n_out, n_in in ((3 * C, C), (C, C), (4 * C, C), (C, 4 * C)))
        embeddings, positions = (self.vocab_size + self.block_size) * C, self.block_size * C
        return ParameterCount(embeddings, 2 * norm + matrices, self.n_layer, norm, 0, positions)


@dataclass(frozen=True)
class LlamaConfig(ModelConfig):
    """The shape of a Llama; ValueError for a value outside its range."""

    type_name = "llama"

    n_kv_head: int = 12  # G: n_head / n_kv_head query heads share a head of keys and values
    n_hidden: int = 2048  # the width inside the MLP
    rope_base: float = 10000.0  # of the wavelengths of the rotary embedding
    norm_eps: float = 1e-5
    tied: bool = True  # the output layer shares its weight with the token embeddings

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n_kv_head", "n_hidden"):
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        _require(self, "rope_base", 1 < self.rope_base < math.inf, "above 1")
        _require(self, "norm_eps", 0 < self.norm_eps < 1, "above 0 and below 1")
        if self.n_head % self.n_kv_head:
            what = f"n_head {self.n_head} is not divisible by n_kv_head {self.n_kv_head}"
            raise ValueError(f"{what}: equally many query heads share each head of keys and values")
        if self.head_size % 2:
            raise ValueError(f"n_embd / n_head is {self.head_size}, an odd number: rotary embedding needs pairs")

    def to_dict(self) -> dict[str, Any]:
        return {"model": self.type_name, **super().to_dict()}

    def count_parameters(self) -> ParameterCount:
        """Return how many parameters the model has."""
        C, kv = self.n_embd, self.n_kv_head * self.head_size
        block = 2 * C + 2 * C * C + 2 * kv * C + 3 * self.n_hidden * C
        head = 0 if self.tied else self.vocab_size * C
        return ParameterCount(self.vocab_size * C, block, self.n_layer, C, head, head)


def model_config_from_dict(values: Mapping[str, Any]) -> GPTConfig | LlamaConfig:
    """Build the configuration of a model from its to_dict; ValueError for an unknown model or key."""
    known = {**values}
    name = known.pop("model", GPTConfig.type_name)
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}: {' or '.join(MODELS)} is needed")
    return MODELS[name].from_dict(known)


MODELS: dict[str, type[GPTConfig] | type[LlamaConfig]] = {"gpt2": GPTConfig, "llama": LlamaConfig}


class ParameterCount(NamedTuple):
    """The parameters of a model by what they belong to."""

    embeddings: int
    block: int  # of one block
    n_layer: int
    norm: int  # the last one
    head: int  # of an output layer with a weight of its own
    looked_up: int  # of all these: in embeddings that are looked up and not multiplied

    @property
    def total(self) -> int:
        """Return the number of all."""
        return self.embeddings + self.block * self.n_layer + self.norm + self.head


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

BPE_VOCAB_SIZE = 8192  # unless vocab_size is given
HIDDEN_MULTIPLE = 32  # of which n_hidden is a multiple, unless it is given
BACKENDS = ("auto", "numpy", "numba", "cupy")
ENCODING_ERRORS = ("strict", "replace", "ignore")
TOKENIZERS = ("char", "bpe", "gpt2")  # that a run can start with; "byte-level" comes with weights or prepared data
CHOICES = {
    "backend": BACKENDS,
    "dtype": ("auto", "float32", "tf32", "bfloat16", "float16"),
    "encoding_errors": ENCODING_ERRORS,
    "model": ("gpt2", "llama"),
    "gelu": ("tanh", "none"),
    "tokenizer": (*TOKENIZERS, "byte-level"),
    "quantize": ("none", "file", "q8_0", "q4_0", "q4_1"),
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
    tokenizer: str = flag("bpe", "data", "bpe (trained on the text), char or gpt2")
    vocab_size: int | None = flag(None, "data", f"of --tokenizer bpe (default: {BPE_VOCAB_SIZE})")

    model: str = flag("gpt2", "model", "gpt2, or llama: rotary positions, RMSNorm, SwiGLU, shared key and value heads")
    n_layer: int = flag(4, "model", "transformer blocks")
    n_head: int = flag(4, "model", "attention heads per block; must divide --n-embd")
    n_embd: int = flag(128, "model", "width of the model")
    block_size: int = flag(64, "model", "context window, in tokens")
    dropout: float = flag(0.0, "model", "share of activations dropped during training")
    bias: bool = flag(False, "model", "biases in the linear layers and the layer norms")
    gelu: str = flag("tanh", "model", "gpt2's activation: tanh, its approximation, or none, the exact function")
    n_kv_head: int | None = flag(None, "model", "llama's heads of keys and values (default: --n-head)")
    n_hidden: int | None = flag(None, "model", "llama's width inside the MLP (default: 8/3 of --n-embd)")
    rope_base: float = flag(10000.0, "model", "llama's rotary embedding: the base of its wavelengths")
    tied: bool = flag(True, "model", "llama: the output layer shares the weight of the token embeddings")
    norm_eps: float = flag(1e-5, "model", "added to the mean square in the norms")

    max_iters: int = flag(1800, "training", "optimizer steps in total")
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
    init_from: str | None = flag(None, "training", "a run, Hugging Face folder, GGUF file, smollm2, gpt2 (or random)")

    freeze: str | None = flag(None, "finetuning", "parts that stay as they are: wte, h.3, h.0-20, separated by commas")
    general_data: str | None = flag(None, "finetuning", "text whose loss shows what is forgotten, such as python-docs")
    lora_rank: int = flag(0, "finetuning", "train adapters of this rank beside frozen weights (LoRA); 0: all weights")
    lora_alpha: float | None = flag(None, "finetuning", "updates are scaled by alpha / rank (default: 2 --lora-rank)")
    lora_dropout: float = flag(0.0, "finetuning", "share of an adapter's inputs dropped during training")
    lora_targets: str | None = flag(None, "finetuning", "layers with adapters: q_proj,v_proj (default: all of a block)")
    quantize: str = flag("none", "finetuning", "frozen weights under LoRA: q8_0, q4_0, q4_1, file (as stored) or none")

    backend: str = flag("auto", "run", "numpy, numba, cupy or auto (the fastest that is available)")
    dtype: str = flag("auto", "run", "float32, tf32, bfloat16, float16 or auto (on a GPU bfloat16, else float32)")
    plain: bool = flag(False, "run", "train gpt/model.py as it is written, without fused operations: slower")
    cuda_graph: bool | None = flag(None, "run", "record a step once and replay it (default: on a GPU, where possible)")
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
        for name in ("max_iters", "batch_size", "grad_accum", "eval_interval", "eval_iters", "log_interval"):
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("warmup_iters", "weight_decay", "grad_clip", "sample_interval", "lora_rank"):
            _require(self, name, 0 <= getattr(self, name) < math.inf, "at least 0")
        _require(self, "seed", 0 <= self.seed < 2**64, "at least 0 and below 2**64")
        for name in ("vocab_size", "lr_decay_iters", "threads", "checkpoint_interval", "keep_checkpoints"):
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
        self._require_fields_of_the_model()
        self.model_config(vocab_size=1)  # raises ValueError for an impossible shape

    def _require_fields_of_the_model(self) -> None:
        own = {f.name for f in fields(MODELS[self.model])}
        others = {f.name: name for name, kind in MODELS.items() for f in fields(kind) if f.name not in own}
        for f in fields(self):
            if f.name in others and getattr(self, f.name) != f.default:
                raise ValueError(f"{f.name} {getattr(self, f.name)!r} is for model {others[f.name]}, not {self.model}")

    @property
    def half(self) -> bool:
        """Whether weights and activations are in half precision, with float32 master weights; "auto" is undecided."""
        return self.dtype in ("bfloat16", "float16")

    @property
    def tokens_per_step(self) -> int:
        """Return the number of tokens in one optimizer step."""
        return self.batch_size * self.grad_accum * self.block_size

    def model_config(self, vocab_size: int) -> GPTConfig | LlamaConfig:
        """Return the configuration of the model; the tokenizer determines the size of the vocabulary."""
        kind = MODELS[self.model]
        values = {f.name: getattr(self, f.name) for f in fields(kind) if f.name != "vocab_size"}
        if kind is LlamaConfig:
            hidden = -(-8 * self.n_embd // (3 * HIDDEN_MULTIPLE)) * HIDDEN_MULTIPLE
            values |= {"n_kv_head": self.n_kv_head or self.n_head, "n_hidden": self.n_hidden or hidden}
        return kind(vocab_size=vocab_size, **values)


def _preset(shape: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {key: value for key, value in shape.items() if key != "vocab_size"} | settings


# nanoGPT's settings, half a million tokens per step: for a large --data and a large machine.
_GPT2_RUN: dict[str, Any] = {
    "tokenizer": "gpt2", "batch_size": 12, "grad_accum": 40, "max_iters": 600_000,
    "lr": 6e-4, "min_lr": 6e-5, "warmup_iters": 2000, "beta2": 0.95,
    "eval_interval": 1000, "eval_iters": 200,
}  # fmt: skip

_CHAR: dict[str, Any] = {"tokenizer": "char"}

# The values of `--config NAME`; flags take precedence over them.
NAMED_CONFIGS: dict[str, dict[str, Any]] = {
    "shakespeare-char-cpu": _preset(GPT_CONFIG_SHAKESPEARE_CHAR_CPU, **_CHAR, max_iters=2000),
    "llama-char": _preset(GPT_CONFIG_SHAKESPEARE_CHAR_CPU, **_CHAR, max_iters=2000, model="llama", n_kv_head=2),
    "shakespeare-char": _preset(GPT_CONFIG_SHAKESPEARE_CHAR, **_CHAR, batch_size=64, max_iters=5000, eval_iters=200),
    "gpt2-124m": _preset(GPT_CONFIG_124M, **_GPT2_RUN),
    "gpt2-355m": _preset(GPT_CONFIG_355M, **_GPT2_RUN),
    "gpt2-774m": _preset(GPT_CONFIG_774M, **_GPT2_RUN),
    "gpt2-1558m": _preset(GPT_CONFIG_1558M, **_GPT2_RUN),
}

# A bool is an int in Python, but not in a configuration; an int is accepted for a float.
_IS_A = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,), "None": (type(None),)}


def _check_types(config: _Config) -> None:
    for f in fields(config):
        value, kinds = getattr(config, f.name), str(f.type).split(" | ")
        if not any(type(value) in _IS_A[kind] for kind in kinds):
            raise ValueError(f"{f.name} must be {kinds[0]}, not {value!r}")
        _require(config, f.name, type(value) is not int or value < 2**64, "below 2**64")
        # A file name may have bytes that are not UTF-8, which Python represents by surrogates; no TOML can hold them.
        if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
            raise ValueError(f"{f.name} {value!r} contains NUL or bytes that are not UTF-8: rename the file")


def _require(config: _Config, name: str, holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {rule}, not {getattr(config, name)!r}")
