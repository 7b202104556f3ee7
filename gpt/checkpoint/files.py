"""The files of a run and of its checkpoints: their names, and checks of their contents."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from gpt.config import GPTConfig, LlamaConfig
from gpt.files import file_errors, read_json, require_hash, require_regular_file, sha256_of

Arrays = dict[str, np.ndarray[Any, Any]]

# In the folder of a run
CONFIG = "config.toml"  # the settings of the run
METRICS = "metrics.jsonl"  # what training computes: the same bytes however often the run was stopped and resumed
TIMING = "timing.jsonl"  # the speed, which differs between any two runs
SAMPLES = "samples.txt"  # texts that the model generates during training
SAMPLE_HEADING = "======== step {} ========"
BEFORE = "before.json"  # of a finetuned run: what the model wrote before the training

# In the folder of a checkpoint
MODEL, OPTIMIZER, STATE, TOKENIZER = "model.safetensors", "optimizer.safetensors", "state.json", "tokenizer.json"
MANIFEST = "manifest.json"  # size and sha256 of each of the others

MAX_JSON_BYTES = 2**22  # these files take a few kilobytes


def write_manifest(folder: Path, names: Iterable[str]) -> None:
    """Record the size and the sha256 of existing files."""
    described = {n: {"bytes": (folder / n).stat().st_size, "sha256": sha256_of(folder / n)} for n in names}
    write_json(folder / MANIFEST, described)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object; ValueError for what JSON does not have, such as nan."""
    path.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def verify(folder: Path, names: list[str]) -> None:
    """Check files against the manifest; UserError, naming the file, where one differs."""
    with file_errors(folder / MANIFEST):
        manifest = read_json(folder / MANIFEST, MAX_JSON_BYTES)
        expected = {name: (manifest[name]["bytes"], manifest[name]["sha256"]) for name in names}
    for name, (size, sha256) in expected.items():
        with file_errors(folder / name):
            require_regular_file(folder / name)
            if (found := (folder / name).stat().st_size) != size:
                raise ValueError(f"damaged: {found} bytes instead of {size}")
            require_hash(folder / name, sha256, MANIFEST)


def read_arrays(path: Path) -> Arrays:
    """Read a safetensors file; ValueError for anything else."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"not a complete safetensors file: {error}") from error
    except TypeError as error:  # data type 'bfloat16' not understood
        raise ValueError(f"{error}: pip install ml_dtypes") from error


class Sized(Protocol):
    """An array, or a tensor in a file."""

    @property
    def size(self) -> int:
        """The number of its elements."""


def require_enough(weights: Mapping[str, Sized], config: GPTConfig | LlamaConfig) -> None:
    """Raise ValueError for a model with more parameters than there are numbers, before so large a model is built."""
    needed = config.count_parameters().total
    found = sum(array.size for array in weights.values())
    if found < needed:
        raise ValueError(f"holds {found:,} numbers, but the matrices of a model of that shape have {needed:,}")
