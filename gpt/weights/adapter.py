"""Adapters in PEFT's format: adapter_config.json, and adapter_model.safetensors with A and B of every layer."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from gpt.config import GPTConfig, LlamaConfig
from gpt.files import file_errors, read_json, require_regular_file
from gpt.lora import TARGETS, LoRA, merged
from gpt.weights.names import parameter_names

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
MAX_CONFIG_BYTES = 2**20

_PREFIX = "base_model.model."
_BASE_SHA256 = "base_sha256"  # in the metadata of the safetensors: of an entry of the JSON, PEFT would warn

# Entries of adapter_config.json that do not change what an adapter computes from A and B, or that are read below.
_READ = {"peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "init_lora_weights", "bias"}
_WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern",
    "layers_to_transform", "megatron_core", "peft_version", "qalora_group_size", "revision", "task_type",
}  # fmt: skip
_INITIAL = (True, False, None, "gaussian", "orthogonal")  # of init_lora_weights; others change the weights of the base


@dataclass(frozen=True)
class Base:
    """The model that adapters belong to: where its weights are, and the hash of their file."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Adapter:
    """The adapters of a model in memory, and what they were trained on."""

    lora: LoRA
    weights: dict[str, Any]  # A and B by their names here: h.0.attn.q_proj.lora_A.weight
    base_sha256: str | None  # None: PEFT wrote it, which records no hash

    def merge_into(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """Return the weights of the base with the updates added; ValueError for a layer or shape that it has not.

        A quantised matrix with an update becomes float32.
        """
        result = dict(weights)
        for path, (a, b) in self.layers().items():
            weight = weights.get(f"{path}.weight")
            needed = None if weight is None else (b.shape[0], a.shape[1])
            if weight is None or weight.shape != needed or a.shape[0] != b.shape[1]:
                has = "is not in it" if weight is None else f"has the shape {weight.shape} in it"
                raise ValueError(f"an adapter of another model: {path}, with A {a.shape} and B {b.shape}, {has}")
            result[f"{path}.weight"] = merged(weight, a, b, self.lora.alpha / self.lora.rank)
        return result

    def layers(self) -> dict[str, tuple[Any, Any]]:
        """Return A and B of every layer, by its path: h.0.attn.q_proj."""
        paths = dict.fromkeys(name.rpartition(".lora_")[0] for name in self.weights)
        return {p: (self.weights[f"{p}.lora_A.weight"], self.weights[f"{p}.lora_B.weight"]) for p in paths}


def to_peft(weights: Mapping[str, Any], config: GPTConfig | LlamaConfig) -> dict[str, Any]:
    """Return A and B by PEFT's names: base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight."""
    names = _peft_names(config)
    return {names[name]: array for name, array in weights.items()}


def config_entries(lora: LoRA, config: GPTConfig | LlamaConfig, base_path: str) -> dict[str, Any]:
    """Return the contents of adapter_config.json."""
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_path, "inference_mode": True,
        "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout,
        "target_modules": list(lora.targets or TARGETS[config.type_name]),
        "fan_in_fan_out": config.type_name == "gpt2",  # its matrices are stored as (in, out)
        "bias": "none", "init_lora_weights": True, "use_rslora": False, "use_dora": False, "modules_to_save": None,
    }  # fmt: skip


def serialize(weights: Mapping[str, Any], config: GPTConfig | LlamaConfig, base: Base) -> bytes:
    """Return the contents of adapter_model.safetensors.

    The package safetensors writes several metadata in any order, and equal adapters have to be equal files.
    """
    written = save(to_peft(weights, config))
    n = int.from_bytes(written[:8], "little")
    header = {"__metadata__": {"format": "pt", _BASE_SHA256: base.sha256}, **json.loads(written[8 : 8 + n])}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the arrays begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + written[8 + n :]


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds adapters."""
    return (folder / ADAPTER_CONFIG).exists()


def read_base_path(folder: Path) -> str | None:
    """Return the path or name of the base that adapter_config.json gives."""
    with file_errors(folder / ADAPTER_CONFIG):
        path = read_json(folder / ADAPTER_CONFIG, MAX_CONFIG_BYTES).get("base_model_name_or_path")
    return str(path) if path else None


def read_adapter(folder: Path, config: GPTConfig | LlamaConfig) -> Adapter:
    """Read adapters for a model of that configuration; UserError, naming the file, for what does not fit it."""
    with file_errors(folder / ADAPTER_CONFIG):
        entries = read_json(folder / ADAPTER_CONFIG, MAX_CONFIG_BYTES)
        lora = _lora_from_entries(entries)
    with file_errors(folder / ADAPTER):
        require_regular_file(folder / ADAPTER)
        stored, written = _read(folder / ADAPTER)
        ours = {theirs: name for name, theirs in _peft_names(config).items()}
        if unknown := next((name for name in stored if name not in ours), None):
            raise ValueError(f"an adapter of another model: {unknown[:100]} is for a layer that the base has not")
        weights = {ours[name]: _float(name, array) for name, array in stored.items()}
        for name, array in weights.items():
            path, _, letter = name.removesuffix(".weight").rpartition(".lora_")
            if f"{path}.lora_{'AB'['BA'.index(letter)]}.weight" not in weights:
                raise ValueError(f"damaged: {path} has only one of lora_A and lora_B")
            if array.ndim != 2 or array.shape["AB".index(letter)] != lora.rank:
                raise ValueError(f"{name} has shape {array.shape}, which is not of rank {lora.rank}")
        if not weights:
            raise ValueError("holds no adapter")
    return Adapter(lora, weights, written.get(_BASE_SHA256))


def _peft_names(config: GPTConfig | LlamaConfig) -> dict[str, str]:
    paths = {
        ours.removesuffix(".weight"): theirs.removesuffix(".weight")
        for ours, theirs in parameter_names(config, "hf").items()
        if ours.split(".")[-2] in TARGETS[config.type_name] and ours.endswith(".weight")
    }
    parts = ("lora_A.weight", "lora_B.weight")
    return {f"{ours}.{part}": f"{_PREFIX}{theirs}.{part}" for ours, theirs in paths.items() for part in parts}


def _lora_from_entries(entries: Mapping[str, Any]) -> LoRA:
    """Return what the entries say; ValueError, naming it, for one that is switched on and not supported."""
    if entries.get("peft_type") != "LORA":
        raise ValueError(f"peft_type {str(entries.get('peft_type'))[:40]!r} is not supported: only LORA is")
    if entries.get("bias", "none") != "none":
        raise ValueError(f"bias {str(entries['bias'])[:40]!r} is not supported: only none is")
    if (initial := entries.get("init_lora_weights")) not in _INITIAL:
        raise ValueError(f"init_lora_weights {str(initial)[:40]!r} is not supported: it changes the base's weights")
    for key, value in entries.items():
        if key not in _READ | _WITHOUT_EFFECT and value not in (None, False) and value not in ({}, [], "megatron.core"):
            raise ValueError(f"{key} {str(value)[:40]!r} is not supported: leave it out in training")
    rank, alpha, dropout = (entries[key] for key in ("r", "lora_alpha", "lora_dropout"))
    if type(rank) is not int or rank < 1:
        raise ValueError(f"r {rank!r} is not a whole number of at least 1")
    targets = entries.get("target_modules")
    targets = tuple(targets) if isinstance(targets, list) and all(isinstance(name, str) for name in targets) else ()
    return LoRA(rank, float(alpha), float(dropout), targets)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the arrays of a safetensors file, and its metadata; ValueError for anything else."""
    try:
        with safe_open(path, "np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"not a complete safetensors file: {error}") from error
    except TypeError as error:  # data type 'bfloat16' not understood
        raise ValueError(f"{error}: pip install ml_dtypes") from error


def _float(name: str, array: Any) -> Any:
    if array.dtype.kind not in "fV" or array.dtype == bool:
        raise ValueError(f"{name} is {array.dtype}: floating numbers are needed")
    return np.ascontiguousarray(array if array.dtype.itemsize >= 4 else array.astype(np.float32))
