"""GGUF files, the format of llama.cpp: metadata and tensors, each claim of the file checked before it is used.

    magic "GGUF", version, number of tensors, number of entries
    every entry of the metadata: key, type, value
    every tensor: name, dimensions (the last of ours first), type, offset
    padding, and the tensors' bytes

The package gguf reads such files, too. It takes seconds for the 98,000 strings of a vocabulary and trusts the file, so
that this module reads them; gguf writes them, and dequantises the types that tensorgrad cannot compute with.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tensorgrad.backend import Array

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
MAX_ARRAY = 2**22  # entries; the largest vocabularies have a sixteenth
DEFAULT_ALIGNMENT = 32

# The types of numbers in the metadata, by their number in the file, as struct and NumPy write them.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class TensorType:
    """How the elements of a tensor are stored: `block` of them, along the last dimension, in n_bytes."""

    name: str
    block: int
    n_bytes: int


TYPES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    8: TensorType("Q8_0", 32, 34),
    12: TensorType("Q4_K", 256, 144),
    14: TensorType("Q6_K", 256, 210),
    30: TensorType("BF16", 1, 2),
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it is in the file: its shape, as NumPy writes it, and its bytes, which are mapped, not read."""

    type: str
    shape: tuple[int, ...]
    data: Array  # uint8, (bytes,)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class GGUFFile:
    """The contents of a file: metadata as Python values, and tensors by their names."""

    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]


def is_gguf(path: Path) -> bool:
    """Return whether a file begins as a GGUF file does; OSError for one that cannot be read."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_gguf(path: Path) -> GGUFFile:
    """Read the metadata, and map the tensors; ValueError for what is damaged or not supported.

    Memory is taken for what the file contains, not for what it claims to contain.
    """
    with path.open("rb") as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # empty
            raise ValueError("not a GGUF file: it is empty") from None
    reader = _Reader(mapped)
    if mapped[:4] != MAGIC:
        raise ValueError("not a GGUF file: it does not begin with GGUF")
    reader.at = len(MAGIC)
    version = reader.number("I")
    if version not in VERSIONS:
        raise ValueError(f"GGUF version {version} is not supported: {' and '.join(map(str, VERSIONS))} are")
    n_tensors, n_entries = reader.number("Q"), reader.number("Q")
    metadata = reader.metadata(n_entries)
    found = [reader.tensor(TYPES) for _ in reader.counted(n_tensors, least=24)]
    return GGUFFile(metadata, _map_tensors(mapped, reader.at, metadata.get("general.alignment"), found))


_Description = tuple[str, TensorType, tuple[int, ...], int]  # name, type, shape, offset


def _map_tensors(mapped: mmap.mmap, end: int, alignment: Any, found: list[_Description]) -> dict[str, StoredTensor]:
    alignment = DEFAULT_ALIGNMENT if alignment is None else alignment
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment {alignment!r} is not a power of two")
    start = -(-end // alignment) * alignment
    everything = np.frombuffer(mapped, np.uint8)
    tensors: dict[str, StoredTensor] = {}
    for name, kind, shape, offset in found:
        first = start + offset
        last = first + math.prod(shape) // kind.block * kind.n_bytes
        if offset % alignment or last > len(everything):
            raise ValueError(f"damaged: tensor {name[:60]!r}, {kind.name} {shape}, is not inside the file")
        if name in tensors:
            raise ValueError(f"damaged: tensor {name[:60]!r} occurs twice")
        tensors[name] = StoredTensor(kind.name, shape, everything[first:last])
    return tensors


class _Reader:
    """Reads the header from front to back; ValueError where it goes beyond the end of the file."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self.mapped, self.at, self.size = mapped, 0, len(mapped)

    def take(self, n: int) -> int:
        """Return where the next n bytes begin."""
        start = self.at
        if n > self.size - start:
            raise ValueError(f"damaged: {n} bytes at {start} would go beyond the end, at {self.size}")
        self.at = start + n
        return start

    def counted(self, n: int, least: int) -> range:
        """Return range(n); ValueError where n entries, of at least so many bytes each, would not fit into the file."""
        if n > (self.size - self.at) // least:
            raise ValueError(f"damaged: {n} entries at {self.at} would go beyond the end, at {self.size}")
        return range(n)

    def number(self, kind: str) -> Any:
        return struct.unpack_from(f"<{kind}", self.mapped, self.take(struct.calcsize(f"<{kind}")))[0]

    def text(self) -> str:
        start = self.take(self.number("Q"))
        return str(self.mapped[start : self.at], "utf-8")

    def value(self, kind: int) -> Any:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise ValueError(f"damaged: type {kind} of an entry of the metadata is unknown")
        kind, n = self.number("I"), self.number("Q")
        if n > MAX_ARRAY:
            raise ValueError(f"an array of {n} entries in the metadata: at most {MAX_ARRAY} are supported")
        if kind == _STRING:
            return [self.text() for _ in self.counted(n, least=8)]
        if kind not in _NUMBERS:
            raise ValueError(f"an array of type {kind} in the metadata is not supported")
        dtype = np.dtype(_NUMBERS[kind]).newbyteorder("<")
        self.counted(n, least=dtype.itemsize)
        return np.frombuffer(self.mapped, dtype, n, self.take(n * dtype.itemsize)).tolist()

    def metadata(self, n: int) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for _ in self.counted(n, least=13):
            key = self.text()
            if key in entries:
                raise ValueError(f"damaged: entry {key[:60]!r} of the metadata occurs twice")
            entries[key] = self.value(self.number("I"))
        return entries

    def tensor(self, types: dict[int, TensorType]) -> _Description:
        name, n = self.text(), self.number("I")
        if not 1 <= n <= MAX_DIMENSIONS:
            raise ValueError(f"damaged: tensor {name[:60]!r} has {n} dimensions")
        shape = tuple(self.number("Q") for _ in range(n))[::-1]
        kind, offset = self.number("I"), self.number("Q")
        if kind not in types:
            known = ", ".join(each.name for each in types.values())
            raise ValueError(f"tensor {name[:60]!r} is of type {type_name(kind)}: supported are {known}")
        if 0 in shape or shape[-1] % types[kind].block:
            raise ValueError(f"damaged: tensor {name[:60]!r} of type {types[kind].name} has shape {shape}")
        return name, types[kind], shape, offset


def type_name(kind: int) -> str:
    """Return the name of a type of tensors that only the package gguf knows, or its number."""
    try:
        from gguf import GGMLQuantizationType

        return GGMLQuantizationType(kind).name
    except (ImportError, ValueError):
        return str(kind)
