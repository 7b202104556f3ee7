"""What the readers of weights share: matrices by our names, checked against a configuration, and quantised."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from gpt.checkpoint.files import Sized, require_enough
from gpt.config import GPTConfig, LlamaConfig
from gpt.weights.names import Format, parameter_names
from tensorgrad import QuantizedArray, quantize
from tensorgrad.backend.quantization import FORMATS

T = TypeVar("T", bound=Sized)
WeightArrays = dict[str, Any]  # our name -> float32, or a QuantizedArray

ALIGNMENT = 16  # elements: 64 bytes, a line of the cache
QUANTIZE = ("none", "file", *FORMATS)  # the values of --quantize
QUANTIZE_HELP = "weights as q8_0, q4_0 or q4_1; file: as they are stored; none: all in float32"


def require_names(stored: Mapping[str, T], config: GPTConfig | LlamaConfig, format: Format) -> dict[str, T]:
    """Return what is stored by our names.

    Raises ValueError for entries that are missing or that the model does not have, and for a model that has more
    parameters than there are numbers, before memory is taken for so large a model.
    """
    if config.n_layer > len(stored):
        raise ValueError(f"{config.n_layer} layers cannot be in {len(stored)} tensors")
    names = parameter_names(config, format)
    theirs = set(names.values())
    problems = [f"missing {name}" for name in names.values() if name not in stored]
    problems += [f"unexpected {name[:80]}" for name in stored if name not in theirs]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"not the weights of this model: {', '.join(problems[:3])}{more}")
    require_enough(stored, config)
    return {ours: stored[name] for ours, name in names.items()}


def converted(name: str, array: Any, how: str) -> Any:
    """Return the weights of that name in another form: float32 (`none`), as they are (`file`), or quantised.

    Position embeddings and the vectors of norms are not quantised. Raises ValueError for a width that is no multiple of
    32, and for a form that is not in QUANTIZE.
    """
    if how not in QUANTIZE:
        raise ValueError(f"quantize {how!r} is unknown: choose {', '.join(QUANTIZE)}")
    is_quantized = isinstance(array, QuantizedArray)
    if how == "none":
        return array.dequantize() if is_quantized else array
    if how == "file" or is_quantized and array.type == how or array.ndim < 2 or name == "wpe.weight":
        return array
    array = array.dequantize() if is_quantized else np.asarray(array)
    if array.shape[1] % 32:
        raise ValueError(f"{name} {array.shape} cannot be quantised: its rows are no multiple of 32")
    return quantize(array, how)


class FloatBlock:
    """One block of memory for the float32 weights of a model: `put` returns a copy of an array in it.

    The system backs a large block with large pages, which are read faster than those of many arrays of a few megabytes:
    for SmolLM2, by a tenth of the time of a token. sizes: of the arrays that it has room for.
    """

    def __init__(self, sizes: Iterable[int]) -> None:
        self.memory = np.empty(sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes), np.float32)
        self.used = 0

    def put(self, array: Any) -> Any:
        """Return the copy of a float32 array; anything else, or what the block has no room for, as it is."""
        end = self.used + getattr(array, "size", 0)
        if not isinstance(array, np.ndarray) or array.dtype != np.float32 or end > self.memory.size:
            return array
        copy = self.memory[self.used : end].reshape(array.shape)
        copy[...] = array
        self.used = -(-end // ALIGNMENT) * ALIGNMENT
        return copy


def with_bias(config: GPTConfig | LlamaConfig) -> GPTConfig | LlamaConfig:
    """Return a GPT-2's configuration with biases, which other programs expect; a Llama's as it is."""
    return replace(config, bias=True) if isinstance(config, GPTConfig) else config


def with_biases(weights: WeightArrays, config: GPTConfig | LlamaConfig) -> WeightArrays:
    """Return the weights of a GPT-2 with biases of 0 where it has none, in the order of parameter_names."""
    names = parameter_names(with_bias(config), "hf")
    sizes = {n: len(weights[n.replace(".bias", ".weight")]) for n in names if n.endswith(".bias") and n not in weights}
    zeros = {name: np.zeros(size, np.float32) for name, size in sizes.items()}
    return {name: zeros[name] if name in zeros else weights[name] for name in names}


def to_float16(name: str, array: Any) -> Any:
    """Return weights in float16; ValueError for those that are too large."""
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.array_equal(np.isfinite(half), np.isfinite(array)):
        raise ValueError(f"{name} has weights beyond the range of float16: choose another type")
    return half
