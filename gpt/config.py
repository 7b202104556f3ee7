"""The configuration of a model, named ones, and what is common to all configurations. Of a run: gpt/train/config.py."""

from __future__ import annotations

import difflib
import math
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, NamedTuple, Self


class UserError(Exception):
    """A mistake of the user, in one line: programs print it without a traceback and exit with status 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?`, quoted for a shell, for the closest known name; empty where none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {shlex.quote(close[0])}?" if close else ""


@dataclass(frozen=True)
class Config:
    """A dataclass that is read from a dict, with an error that names the nearest key."""

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
class ModelConfig(Config):
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
        check_types(self)
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
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
        require(self, "dropout", 0 <= self.dropout < 1, "at least 0 and below 1")
        require(self, "norm_eps", 0 < self.norm_eps < 1, "above 0 and below 1")
        require(self, "gelu", self.gelu in ("tanh", "none"), "tanh or none")

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
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "rope_base", 1 < self.rope_base < math.inf, "above 1")
        require(self, "norm_eps", 0 < self.norm_eps < 1, "above 0 and below 1")
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
BACKENDS = ("auto", "numpy", "numba", "cupy")
ENCODING_ERRORS = ("strict", "replace", "ignore")
TOKENIZERS = ("char", "bpe", "gpt2")  # that a run can start with; "byte-level" comes with weights or prepared data

# A bool is an int in Python, but not in a configuration; an int is accepted for a float.
_IS_A = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,), "None": (type(None),)}


def check_types(config: Config) -> None:
    """Raise ValueError for a field whose value is not of its type, or cannot be written to a file."""
    for f in fields(config):
        value, kinds = getattr(config, f.name), str(f.type).split(" | ")
        if not any(type(value) in _IS_A[kind] for kind in kinds):
            raise ValueError(f"{f.name} must be {kinds[0]}, not {value!r}")
        require(config, f.name, type(value) is not int or value < 2**64, "below 2**64")
        # A file name may have bytes that are not UTF-8, which Python represents by surrogates; no TOML can hold them.
        if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
            raise ValueError(f"{f.name} {value!r} contains NUL or bytes that are not UTF-8: rename the file")


def require(config: Config, name: str, holds: bool, rule: str) -> None:
    """Raise ValueError, naming the field and its value, unless the rule holds."""
    if not holds:
        raise ValueError(f"{name} must be {rule}, not {getattr(config, name)!r}")
