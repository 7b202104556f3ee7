"""Models in Hugging Face's folders: config.json, obeyed or refused, and safetensors, in one file or several."""

import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from gpt.checkpoint.files import MANIFEST, MODEL, Arrays, read_arrays, write_json
from gpt.checkpoint.steps import temporary_folder
from gpt.config import GPTConfig, LlamaConfig
from gpt.files import read_json
from gpt.tokenizer import GPT2Tokenizer, Tokenizer
from gpt.tokenizer.byte_level import ByteLevelTokenizer
from gpt.tokenizer.convert import as_byte_level
from gpt.tokenizer.huggingface import FILES, read_tokenizer, to_files
from gpt.weights.arrays import (
    FloatBlock,
    WeightArrays,
    converted,
    require_names,
    to_float16,
    with_bias,
    with_biases,
)
from gpt.weights.names import parameter_names

CONFIG_JSON, INDEX = "config.json", "model.safetensors.index.json"
MAX_CONFIG_BYTES, MAX_INDEX_BYTES = 2**20, 2**24
HEAD_SIZE = 64  # of every published GPT-2: where there is no config.json

logger = logging.getLogger(__name__)

# Our fields: the key of config.json, and transformers' value where there is none.
_GPT2_FIELDS = {
    "block_size": ("n_positions", 1024), "n_layer": ("n_layer", 12), "n_head": ("n_head", 12),
    "n_embd": ("n_embd", 768), "norm_eps": ("layer_norm_epsilon", 1e-5),
}  # fmt: skip
_LLAMA_FIELDS = {
    "block_size": ("max_position_embeddings", 2048), "n_layer": ("num_hidden_layers", 32),
    "n_head": ("num_attention_heads", 32), "n_embd": ("hidden_size", 4096), "n_hidden": ("intermediate_size", 11008),
    "norm_eps": ("rms_norm_eps", 1e-6), "tied": ("tie_word_embeddings", False),
}  # fmt: skip
_VOCAB_SIZES = {"gpt2": 50257, "llama": 32000}
_GELUS = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_fast": "tanh", "gelu": "none"}

# What changes the mathematics: key -> the values that are supported, the first of them where the key is missing.
_SUPPORTED: dict[str, dict[str, tuple[Any, ...]]] = {
    "gpt2": {
        "activation_function": ("gelu_new", *_GELUS), "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,), "reorder_and_upcast_attn": (False,),
        "add_cross_attention": (False,), "tie_word_embeddings": (True,), "quantization_config": (None,),
    },
    "llama": {
        "hidden_act": ("silu", "swish"), "attention_bias": (False,), "mlp_bias": (False,), "rope_scaling": (None,),
        "partial_rotary_factor": (1.0, 1, None), "quantization_config": (None,),
    },
}  # fmt: skip

# Stored as (in, out): OpenAI's code has convolutions of width one in the place of linear layers.
_TRANSPOSED = re.compile(r"(c_attn|c_proj|c_fc)\.weight$")
# Not weights: the causal mask and the wavelengths of the rotary embedding, which early versions saved.
_BUFFER = re.compile(r"\.attn\.(bias|masked_bias)$|\.rotary_emb\.inv_freq$")
_PREFIXES = {"gpt2": "transformer.", "llama": "model."}  # which a file may leave out


def is_safetensors(file: Path) -> bool:
    """Return whether a file begins as this form does: the length of a header of JSON in 8 bytes, and the header."""
    with file.open("rb") as opened:
        return opened.read(9)[8:] == b"{"


def is_folder(place: Path) -> bool:
    """Return whether a folder holds a model in this form; the folder of a checkpoint does not."""
    return not (place / MANIFEST).exists() and any((place / name).exists() for name in (MODEL, INDEX, CONFIG_JSON))


def read_weights(
    place: Path, *, n_head: int | None = None, quantize: str = "file"
) -> tuple[GPTConfig | LlamaConfig, WeightArrays]:
    """Return the configuration, and the weights by our names, in float32 or quantised.

    place: a folder, or a file of safetensors beside its config.json. Without config.json it has to be a GPT-2, whose
    heads are 64 wide unless n_head is given: a line that says so is logged. quantize: as in `converted`. Raises
    ValueError, naming the entry or the tensor, for what is missing, damaged or not supported.
    """
    folder = place if place.is_dir() else place.parent
    arrays = _read_folder(folder) if place.is_dir() else read_arrays(place)
    if (folder / CONFIG_JSON).exists():
        config = config_from_entries(read_json(folder / CONFIG_JSON, MAX_CONFIG_BYTES))
        if n_head not in (None, config.n_head):
            raise ValueError(f"n_head {n_head}: {CONFIG_JSON} has {config.n_head}")
        arrays = _with_prefixes(arrays, config.type_name)
    else:
        arrays = _with_prefixes(arrays, "gpt2")
        config = _guess_config(arrays, n_head)
    arrays = _without_tied_head(arrays, config)
    ours = require_names(arrays, config, "hf")
    block = FloatBlock(array.size for array in ours.values() if array.ndim < 2 or quantize in ("none", "file"))
    return config, {
        name: block.put(converted(name, _to_float32(name, array), quantize)) for name, array in ours.items()
    }


def weight_files(place: Path) -> tuple[Path, ...]:
    """Return the files that read_weights reads arrays from, in the order of their names."""
    if place.is_file():
        return (place,)
    if not (place / INDEX).exists():
        return (place / MODEL,)
    files = read_json(place / INDEX, MAX_INDEX_BYTES)["weight_map"].values()
    return tuple(place / name for name in sorted(set(files)))


def config_from_entries(entries: Mapping[str, Any]) -> GPTConfig | LlamaConfig:
    """Return the configuration that a config.json describes; ValueError names the entry that is not supported."""
    kind = entries.get("model_type")
    if kind not in _SUPPORTED:
        known = " and ".join(_SUPPORTED)
        raise ValueError(f"{CONFIG_JSON}: model_type {str(kind)[:40]!r} is not supported: {known} are")
    for key, allowed in _SUPPORTED[kind].items():
        value = entries.get(key, allowed[0])
        if not any(value is each or type(value) is type(each) and value == each for each in allowed):
            known = " or ".join(dict.fromkeys(map(str, allowed)))
            raise ValueError(f"{CONFIG_JSON}: {key} {str(value)[:80]!r} is not supported: only {known} is")
    fields = _GPT2_FIELDS if kind == "gpt2" else _LLAMA_FIELDS
    shape = {ours: entries.get(key, default) for ours, (key, default) in fields.items()}
    shape["vocab_size"] = entries.get("vocab_size", _VOCAB_SIZES[kind])
    if kind == "llama":
        heads = shape["n_head"]
        shape["n_kv_head"] = heads if entries.get("num_key_value_heads") is None else entries["num_key_value_heads"]
        config: GPTConfig | LlamaConfig = LlamaConfig(**shape, rope_base=_rope_base(entries))
        _require_size(entries, "head_dim", config.head_size)
        return config
    gelu = _GELUS[entries.get("activation_function", "gelu_new")]
    config = GPTConfig(**shape, gelu=gelu)
    _require_size(entries, "n_inner", 4 * config.n_embd)
    return config


def _require_size(entries: Mapping[str, Any], key: str, size: int) -> None:
    if entries.get(key) not in (None, size):
        raise ValueError(f"{CONFIG_JSON}: {key} {str(entries[key])[:40]} is not supported: only {size} is")


def _rope_base(entries: Mapping[str, Any]) -> Any:
    """Return rope_theta, which transformers 5 writes into rope_parameters."""
    parameters = entries.get("rope_parameters")
    if parameters is None:
        return entries.get("rope_theta", 10000.0)
    if not isinstance(parameters, dict):
        raise ValueError(f"{CONFIG_JSON}: rope_parameters is {type(parameters).__name__}, not an object")
    others = {key: value for key, value in parameters.items() if key != "rope_theta"}
    if others.pop("rope_type", "default") != "default" or others.pop("partial_rotary_factor", 1) != 1 or others:
        given = f"rope_parameters {str(parameters)[:200]}"
        raise ValueError(f"{CONFIG_JSON}: {given} is not supported: only rope_type default is")
    return parameters.get("rope_theta", 10000.0)


def _read_folder(folder: Path) -> Arrays:
    """Read model.safetensors, or the several files that the index names, which have to be in the same folder."""
    if not (folder / INDEX).exists():
        return read_arrays(folder / MODEL)
    files = read_json(folder / INDEX, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise ValueError(f"{INDEX}: weight_map is not an object of file names")
    arrays: Arrays = {}
    for file in sorted(set(files.values())):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise ValueError(f"{INDEX}: {file[:80]!r} is not the name of a safetensors file in this folder")
        for name, array in read_arrays(folder / file).items():
            if files.get(name) != file:
                raise ValueError(f"{file}: tensor {name[:80]!r} is not in {INDEX}")
            arrays[name] = array
    if missing := next((name for name in files if name not in arrays), None):
        raise ValueError(f"{files[missing][:80]}: no tensor {missing[:80]!r}, which {INDEX} has there")
    return arrays


def _with_prefixes(arrays: Arrays, kind: str) -> Arrays:
    """Return the arrays by the names that parameter_names gives; buffers are left out."""
    prefix = _PREFIXES[kind]
    return {
        name if name.startswith(prefix) or name == "lm_head.weight" else prefix + name: array
        for name, array in arrays.items()
        if not _BUFFER.search(name)
    }


def _without_tied_head(arrays: Arrays, config: GPTConfig | LlamaConfig) -> Arrays:
    """Return the arrays without an output layer that is a copy of the embedding."""
    head, embedding = arrays.get("lm_head.weight"), parameter_names(config, "hf")["wte.weight"]
    if head is None or isinstance(config, LlamaConfig) and not config.tied:
        return arrays
    if not np.array_equal(head, arrays.get(embedding, ())):
        raise ValueError(f"lm_head.weight differs from {embedding}: only a tied head is supported")
    return {name: array for name, array in arrays.items() if name != "lm_head.weight"}


def _to_float32(name: str, array: Any) -> Any:
    if array.dtype.kind == "c":
        raise ValueError(f"{name} is {array.dtype}: only real numbers are supported")
    return np.ascontiguousarray(array.T if _TRANSPOSED.search(name) else array, np.float32)


def _guess_config(arrays: Arrays, n_head: int | None) -> GPTConfig:
    """Return the configuration of a GPT-2 without config.json: its shapes, and what all published ones have."""
    for name in ("wte.weight", "wpe.weight"):
        if arrays.get(f"transformer.{name}", np.zeros(())).ndim != 2:
            raise ValueError(f"no {CONFIG_JSON} beside it and no matrix {name}: these are not the weights of a GPT-2")
    vocab_size, n_embd = arrays["transformer.wte.weight"].shape
    if n_head is None and n_embd % HEAD_SIZE:
        raise ValueError(f"n_embd {n_embd} is not a multiple of {HEAD_SIZE}: give n_head, or {CONFIG_JSON}")
    layers = {int(match[1]) for name in arrays if (match := re.match(r"transformer\.h\.(\d{1,9})\.", name))}
    config = GPTConfig(
        block_size=arrays["transformer.wpe.weight"].shape[0],
        vocab_size=vocab_size,
        n_layer=max(len(layers), 1),
        n_head=n_head or n_embd // HEAD_SIZE,
        n_embd=n_embd,
        bias="transformer.ln_f.bias" in arrays,
    )
    logger.warning("no %s: taken for a GPT-2 with %d heads, gelu tanh and eps 1e-5", CONFIG_JSON, config.n_head)
    return config


def find_tokenizer(place: Path, config: GPTConfig | LlamaConfig) -> Tokenizer:
    """Return the tokenizer beside the weights; GPT-2's, perhaps padded, where a GPT-2 comes without one.

    Raises TokenizerError for one that is missing, damaged or not supported.
    """
    folder = place if place.is_dir() else place.parent
    if (folder / FILES[0]).exists() or config.type_name != "gpt2":
        return read_tokenizer(folder, vocab_size=config.vocab_size)
    gpt2 = GPT2Tokenizer()
    if config.vocab_size <= gpt2.vocab_size:
        return gpt2
    same = as_byte_level(gpt2)
    options: dict[str, Any] = {"special": same.special, "roles": same.roles, "vocab_size": config.vocab_size}
    return ByteLevelTokenizer(same.tokens, same.ids, same.pre, **options)


TYPES = ("f32", "f16")  # that are written


def write_folder(
    folder: Path, config: GPTConfig | LlamaConfig, weights: WeightArrays, tokenizer: Tokenizer, type: str = "f32"
) -> None:
    """Write a new folder that transformers reads, or none: config.json, the weights and the tokenizer's files."""
    files = to_files(tokenizer)  # before the folder is made: it may raise
    names = parameter_names(with_bias(config), "hf")
    arrays = {}
    for name, array in with_biases(weights, config).items():
        array = converted(name, array, "none")
        array = to_float16(name, array) if type == "f16" else array
        transposed = isinstance(config, GPTConfig) and _TRANSPOSED.search(name)
        arrays[names[name]] = np.ascontiguousarray(array.T if transposed else array)
    hidden = temporary_folder(folder)
    shutil.rmtree(hidden, ignore_errors=True)  # what a killed process left
    hidden.mkdir(parents=True)
    try:
        save_file(arrays, hidden / MODEL, metadata={"format": "pt"})
        dtype = {"dtype": "float16" if type == "f16" else "float32"}
        write_json(hidden / CONFIG_JSON, {**config_to_entries(config, tokenizer), **dtype})
        for name, entries in files.items():
            write_json(hidden / name, entries)
        shutil.copymode(hidden / CONFIG_JSON, hidden / MODEL)  # safetensors makes files that nobody else can read
        hidden.rename(folder)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def config_to_entries(config: GPTConfig | LlamaConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the entries of config.json."""
    ends = {"bos_token_id": tokenizer.bos if tokenizer.eot is None else tokenizer.eot, "eos_token_id": tokenizer.eot}
    fields = _LLAMA_FIELDS if isinstance(config, LlamaConfig) else _GPT2_FIELDS
    entries = {key: getattr(config, ours) for ours, (key, _) in fields.items()}
    entries |= {"model_type": config.type_name, "vocab_size": config.vocab_size, **ends}
    if isinstance(config, LlamaConfig):
        own = {"num_key_value_heads": config.n_kv_head, "hidden_act": "silu", "rope_theta": config.rope_base}
        return {"architectures": ["LlamaForCausalLM"], **entries, **own}
    gelu = {"tanh": "gelu_new", "none": "gelu"}[config.gelu]
    dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), config.dropout)
    return {"architectures": ["GPT2LMHeadModel"], **entries, "activation_function": gelu, **dropout}
