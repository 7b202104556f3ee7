"""Files held against a manifest: JSON and safetensors, checked before anything is made of their contents.

Reading one runs no code: there is no pickle.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from gpt.config import GPTConfig, UserError

Arrays = dict[str, np.ndarray[Any, Any]]

MANIFEST = "manifest.json"
MAX_JSON_BYTES = 2**22  # these files take a few kilobytes: anything far larger is not ours


def write_manifest(folder: Path, names: Iterable[str]) -> None:
    """Write down the size and the sha256 of files that are there."""
    write_json(folder / MANIFEST, {name: _fingerprint(folder / name) for name in names})


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object; ValueError for what is no JSON, such as nan."""
    path.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def verify(folder: Path, names: list[str]) -> None:
    """Hold each file against the manifest before anything is made of its contents."""
    with refusing(folder / MANIFEST):
        manifest = read_json(folder / MANIFEST)
        expected = {name: (manifest[name]["bytes"], manifest[name]["sha256"]) for name in names}
    for name, (size, digest) in expected.items():
        with refusing(folder / name):
            _require_file(folder / name)
            found = _fingerprint(folder / name)
            if found["bytes"] != size:
                raise ValueError(f"damaged: {found['bytes']} bytes, and {size} were written")
            if found["sha256"] != digest:
                raise ValueError(f"damaged: its contents are not those that {MANIFEST} was made of")


@contextmanager
def refusing(file: Path) -> Iterator[None]:
    """Turn whatever a bad file makes fail into a UserError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{file}: missing, so the checkpoint cannot be used") from None
    except KeyError as error:
        raise UserError(f"{file}: no entry {error}") from error
    except (OSError, SafetensorError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{file}: {' '.join(str(error).split())}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; ValueError for anything else, for nan, and for an entry that is there twice."""
    _require_file(path)
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"larger than {MAX_JSON_BYTES} bytes, so it is none of ours")
    values = json.loads(
        path.read_text(encoding="utf-8"),
        parse_constant=_refuse_number,
        parse_float=_finite,
        object_pairs_hook=_without_duplicates,
    )
    if not isinstance(values, dict):
        raise ValueError("does not hold a JSON object")
    return values


def _require_file(path: Path) -> None:
    """A pipe would never end, nor would /dev/zero."""
    if path.exists() and not path.is_file():
        raise ValueError("no ordinary file")


def _refuse_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON's")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is too large for a number")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("an entry is there twice")
    return values


def read_arrays(path: Path) -> Arrays:
    """Read a safetensors file; UserError, naming it, for anything else."""
    with refusing(path):
        arrays: Arrays = load_file(path)
        return arrays


def require_enough(weights: Arrays, config: GPTConfig) -> None:
    """Raise ValueError for a model of more numbers than there are, before one is built that no memory can hold."""
    needed = 12 * config.n_layer * config.n_embd**2 + (config.vocab_size + config.block_size) * config.n_embd
    there = sum(array.size for array in weights.values())
    if there < needed:
        raise ValueError(f"holds {there:,} numbers, and a model of that shape has {needed:,} in its matrices")
