"""Models in GGUF files: Llama and GPT-2, read in the types that llama.cpp commonly stores, and written."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpt.config import GPTConfig, LlamaConfig
from gpt.files import atomic_write
from gpt.tokenizer import Tokenizer
from gpt.tokenizer.gguf import from_metadata, to_metadata
from gpt.weights.arrays import (
    FloatBlock,
    WeightArrays,
    converted,
    require_names,
    to_float16,
    with_bias,
    with_biases,
)
from gpt.weights.gguf_file import StoredTensor, read_gguf
from gpt.weights.names import parameter_names
from tensorgrad import QuantizedArray
from tensorgrad.backend import Array
from tensorgrad.backend.quantization import FORMATS

_SUPPORTED = ("llama", "gpt2")  # values of general.architecture
# What a file may say only in this way: key, without the architecture -> the value that is supported.
_REQUIRED = {"rope.scaling.type": ("none",), "expert_count": (0,), "attention.causal": (True,)}


def read_model(path: Path, quantize: str = "file") -> tuple[GPTConfig | LlamaConfig, WeightArrays, Tokenizer]:
    """Return the configuration, the weights by our names, and the tokenizer.

    quantize: as in `converted`. Matrices of type q8_0, q4_0 or q4_1 stay in the file, as QuantizedArray; those of any
    other type are float32.
    Raises ValueError, naming the entry or the tensor, for what is missing, damaged or not supported.
    """
    file = read_gguf(path)
    head = file.tensors.get("output.weight")
    tied = head is None or _same(head, file.tensors.get("token_embd.weight"))
    config = config_from_metadata(file.metadata, vocab_size=_rows(file.tensors.get("token_embd.weight")), tied=tied)
    stored = {name: tensor for name, tensor in file.tensors.items() if not (tied and tensor is head)}
    ours = require_names(stored, config, "gguf")
    # With --quantize q8_0 and the like, vectors alone are floating; else those that are not stored quantised.
    kept = {"none": (), "file": FORMATS}.get(quantize)
    block = FloatBlock(
        math.prod(tensor.shape)
        for tensor in ours.values()
        if len(tensor.shape) < 2 or kept is not None and tensor.type.lower() not in kept
    )
    weights = {
        name: block.put(converted(name, _weights(name, tensor, config), quantize)) for name, tensor in ours.items()
    }
    return config, weights, from_metadata(file.metadata, vocab_size=config.vocab_size)


def config_from_metadata(metadata: Mapping[str, Any], *, vocab_size: int, tied: bool) -> GPTConfig | LlamaConfig:
    """Return the configuration that the metadata describe; ValueError, naming the entry, for what is not supported."""
    name = metadata.get("general.architecture")
    if name not in _SUPPORTED:
        raise ValueError(f"general.architecture {str(name)[:40]!r} is not supported: {' and '.join(_SUPPORTED)} are")
    entries = {key.removeprefix(f"{name}."): value for key, value in metadata.items() if key.startswith(f"{name}.")}

    def get(key: str, kind: type, default: Any = None) -> Any:
        value = entries.get(key, default)
        if type(value) is not kind:
            raise ValueError(f"{name}.{key} is {str(value)[:40]!r}: a {kind.__name__} is needed")
        return value

    for key, allowed in _REQUIRED.items():
        if key in entries and entries[key] not in allowed:
            raise ValueError(f"{name}.{key} {str(entries[key])[:40]!r} is not supported: only {allowed[0]!r} is")
    shape = {
        "block_size": get("context_length", int), "vocab_size": vocab_size, "n_layer": get("block_count", int),
        "n_head": get("attention.head_count", int), "n_embd": get("embedding_length", int),
    }  # fmt: skip
    n_hidden = get("feed_forward_length", int)
    if name == "gpt2":
        if n_hidden != 4 * shape["n_embd"]:
            raise ValueError(f"gpt2.feed_forward_length {n_hidden} is not supported: only 4 times the width is")
        return GPTConfig(**shape, norm_eps=_decimal(get("attention.layer_norm_epsilon", float)))
    config = LlamaConfig(
        **shape, n_hidden=n_hidden, n_kv_head=get("attention.head_count_kv", int, shape["n_head"]), tied=tied,
        norm_eps=_decimal(get("attention.layer_norm_rms_epsilon", float)),
        rope_base=_decimal(get("rope.freq_base", float, 10000.0)),
    )  # fmt: skip
    for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        if get(key, int, config.head_size) != config.head_size:
            raise ValueError(f"llama.{key} {entries[key]} is not supported: only width / heads is")
    return config


def _decimal(value: float) -> float:
    """Return the shortest number whose float32 is the same: files hold 1e-5 as 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _rows(embedding: StoredTensor | None) -> int:
    return 0 if embedding is None else embedding.shape[0]


def _same(a: StoredTensor, b: StoredTensor | None) -> bool:
    """Whether two tensors have the same bytes, as where a tied output layer was written a second time."""
    return b is not None and (a.type, a.shape) == (b.type, b.shape) and np.array_equal(a.data, b.data)


def _weights(name: str, tensor: StoredTensor, config: GPTConfig | LlamaConfig) -> Any:
    rows = tensor.data.reshape(tensor.shape[0], -1) if len(tensor.shape) == 2 else tensor.data.reshape(1, -1)
    if _is_rotated(name, config):
        rows = rotated_in_halves(rows, config.head_size)
    if len(tensor.shape) == 2 and tensor.type.lower() in FORMATS:
        return QuantizedArray(tensor.type.lower(), (tensor.shape[0], tensor.shape[1]), rows)
    return dequantize(tensor.type, rows).reshape(tensor.shape)


def _is_rotated(name: str, config: GPTConfig | LlamaConfig) -> bool:
    """Whether it is a projection to what is rotated by its position: queries or keys of a Llama."""
    return isinstance(config, LlamaConfig) and name.endswith((".q_proj.weight", ".k_proj.weight"))


def rotated_in_halves(rows: Array, head_size: int) -> Array:
    """Return the rows of a projection to queries or keys, (n, bytes), from llama.cpp's order in our own.

    llama.cpp rotates x[2i] with x[2i + 1], and Llama here x[i] with x[i + D/2]: it stores the two next to each other.
    """
    return rows.reshape(-1, head_size // 2, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def rotated_in_pairs(rows: Array, head_size: int) -> Array:
    """Return the rows in llama.cpp's order: the inverse of rotated_in_halves."""
    return rows.reshape(-1, 2, head_size // 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def dequantize(type: str, rows: Array) -> Array:
    """Return bytes of a type of GGUF, uint8 (n, bytes of a row), as float32, (n, elements of a row)."""
    if type == "F32":
        return rows.view("<f4").astype(np.float32)
    if type == "F16":
        return rows.view("<f2").astype(np.float32)
    if type == "BF16":  # the upper half of a float32
        return (rows.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    if type.lower() in FORMATS:
        quantized = FORMATS[type.lower()]
        return QuantizedArray(type.lower(), (len(rows), rows.shape[1] // quantized.n_bytes * 32), rows).dequantize()
    try:
        from gguf import GGMLQuantizationType, quants
    except ImportError:
        raise ValueError(f"weights of type {type} are read with the package gguf: pip install gguf") from None
    return quants.dequantize(rows, GGMLQuantizationType[type])


TYPES = ("f32", "f16", *FORMATS)  # that are written


def write_model(
    path: Path, config: GPTConfig | LlamaConfig, weights: WeightArrays, tokenizer: Tokenizer, type: str = "f32"
) -> None:
    """Write a file that llama.cpp reads, with the matrices in one of TYPES, and vectors and positions in F32.

    Raises ValueError for what GGUF cannot express, and for a width that is no multiple of 32 where blocks are written.
    """
    try:
        from gguf import GGMLQuantizationType, GGUFWriter
    except ImportError:
        raise ValueError("GGUF files are written with the package gguf: pip install gguf") from None
    if isinstance(config, GPTConfig) and config.gelu != "tanh":
        raise ValueError(f"gelu {config.gelu} cannot be written to GGUF, where a GPT-2 has the approximation tanh")
    metadata = {**config_to_metadata(config), **to_metadata(tokenizer)}  # before the file is made: it may raise
    arrays = {name: _stored(name, array, config, type) for name, array in with_biases(weights, config).items()}
    with atomic_write(path) as file:
        writer = GGUFWriter(file.name, config.type_name)
        for key, value in metadata.items():
            _add(writer, key, value)
        names = parameter_names(with_bias(config), "gguf")
        for name, array in arrays.items():
            kind = None if array.dtype != np.uint8 else GGMLQuantizationType[type.upper()]
            writer.add_tensor(names[name], array, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def config_to_metadata(config: GPTConfig | LlamaConfig) -> dict[str, Any]:
    """Return the entries that config_from_metadata reads, without general.architecture."""
    shape: dict[str, Any] = {
        "context_length": config.block_size, "embedding_length": config.n_embd, "block_count": config.n_layer,
        "attention.head_count": config.n_head, "vocab_size": config.vocab_size,
    }  # fmt: skip
    if isinstance(config, LlamaConfig):
        shape |= {
            "feed_forward_length": config.n_hidden, "attention.head_count_kv": config.n_kv_head,
            "attention.layer_norm_rms_epsilon": config.norm_eps, "rope.freq_base": config.rope_base,
            "rope.dimension_count": config.head_size,
        }  # fmt: skip
    else:
        shape |= {"feed_forward_length": 4 * config.n_embd, "attention.layer_norm_epsilon": config.norm_eps}
    return {f"{config.type_name}.{key}": value for key, value in shape.items()}


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    else:
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](key, value)


def _stored(name: str, array: Any, config: GPTConfig | LlamaConfig, type: str) -> Array:
    """Return an array as it is written: float32, float16, or the bytes of blocks, a row of them for each row."""
    array = converted(name, array, type if type in FORMATS else "none")
    is_quantized = isinstance(array, QuantizedArray)
    rows = array.blocks if is_quantized else array
    if _is_rotated(name, config):
        rows = rotated_in_pairs(rows, config.head_size)
    if type == "f16" and rows.ndim == 2 and name != "wpe.weight":
        rows = to_float16(name, rows)
    return np.ascontiguousarray(rows)
