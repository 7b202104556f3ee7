"""Prepared data: tokens in shards, and the manifest that says what they are.

    DIR/
      manifest.json       sources and options, counts, sha256 of every other file
      tokenizer.json
      train-00000.bin     token ids, uint16 or uint32, little-endian, and nothing else:
      val-00000.bin       numpy.memmap(path, "<u2") reads them, and so does nanoGPT

Training reads the tokens of one batch at a time, with `pread`. The pages of a memory map would count as memory of the
process, and when somebody truncates a mapped file, the process ends with SIGBUS, not with an error that can be caught.
"""

import hashlib
import os
import re
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt.config import UserError
from gpt.files import file_errors, read_at, read_json, require_hash
from gpt.tokenizer import Tokenizer, TokenizerError, load_tokenizer

Array = np.ndarray[Any, Any]

FORMAT, VERSION = "tensorgrad tokens", 1
MANIFEST, PROGRESS, TOKENIZER = "manifest.json", "progress.json", "tokenizer.json"
SPLITS = ("train", "val")
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
MAX_MANIFEST_BYTES = 2**28  # a manifest of a million sources takes about a hundred megabytes
_SHARD = re.compile(r"(train|val)-\d{5,}\.bin")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def dtype_name(tokenizer: Tokenizer) -> str:
    """Return the smallest type that holds every id of the tokenizer."""
    return "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"


class Shard:
    """One file of token ids, opened when it is first read."""

    def __init__(self, path: Path, dtype: np.dtype[Any], n_tokens: int, sha256: str) -> None:
        self.path, self.dtype, self.n_tokens, self.sha256 = path, dtype, n_tokens, sha256
        self._descriptor: int | None = None
        if not path.is_file():
            raise UserError(f"{path}: missing, but the manifest beside it lists it")
        if (size := path.stat().st_size) != self.n_bytes:
            raise UserError(f"{path}: damaged: {size} bytes instead of {self.n_bytes}")

    @property
    def n_bytes(self) -> int:
        """The size that the file must have."""
        return self.n_tokens * self.dtype.itemsize

    def read(self, start: int, stop: int) -> Array:
        """Return tokens start to stop; UserError where the file has been changed or deleted."""
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))  # Windows
                weakref.finalize(self, os.close, self._descriptor)
            status = os.fstat(self._descriptor)
            if not status.st_nlink:
                raise UserError(f"{self.path}: deleted while it was in use")
            size = self.dtype.itemsize
            data = read_at(self._descriptor, (stop - start) * size, start * size)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error.strerror}") from error
        if status.st_size != self.n_bytes or len(data) != (stop - start) * size:
            found = f"{status.st_size} bytes instead of {self.n_bytes}"
            raise UserError(f"{self.path}: changed while it was in use: {found}")
        return np.frombuffer(data, self.dtype)


class ShardedTokens:
    """The tokens of one split, in one or more files, read like one array."""

    def __init__(self, shards: list[Shard], dtype: np.dtype[Any], vocab_size: int) -> None:
        self.shards, self.dtype, self.vocab_size = shards, dtype, vocab_size
        self._ends = np.cumsum([shard.n_tokens for shard in shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.shards else 0

    def read(self, start: int, stop: int) -> Array:
        """Return tokens start to stop, (stop - start,), int64; UserError for one outside the vocabulary."""
        out = np.empty(stop - start, np.int64)
        at = start
        while at < stop:
            i = int(np.searchsorted(self._ends, at, side="right"))
            shard, first = self.shards[i], int(self._ends[i]) - self.shards[i].n_tokens
            end = min(stop, int(self._ends[i]))
            tokens = shard.read(at - first, end - first)
            if tokens.max() >= self.vocab_size:
                raise UserError(f"{shard.path}: damaged: token {tokens.max()} in a vocabulary of {self.vocab_size}")
            out[at - start : end - start] = tokens
            at = end
        return out

    def rows(self, starts: Array, length: int) -> Array:
        """Return the `length` tokens that begin at each start, (len(starts), length), int64."""
        rows = np.empty((len(starts), length), np.int64)
        for row, start in zip(rows, starts.tolist(), strict=True):
            row[:] = self.read(start, start + length)
        return rows

    @property
    def sha256(self) -> str:
        """The identity of the split: a hash of the hashes of its shards, as the manifest has them."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    def check_hashes(self) -> None:
        """Raise UserError, naming the file, where a shard has changed since it was written."""
        for shard in self.shards:
            with file_errors(shard.path):
                require_hash(shard.path, shard.sha256, MANIFEST)


@dataclass(frozen=True)
class Prepared:
    """A folder written by `python -m gpt data prepare`."""

    folder: Path
    tokenizer: Tokenizer
    train: ShardedTokens
    val: ShardedTokens
    manifest: dict[str, Any]


def is_prepared(name: str | os.PathLike[str]) -> bool:
    """Whether this is a folder of prepared data, finished or not."""
    folder = Path(os.path.expanduser(name))
    return any((folder / file).is_file() for file in (MANIFEST, PROGRESS))


def load_prepared(name: str | os.PathLike[str], *, hashes: bool = False) -> Prepared:
    """Open a folder of prepared data.

    The manifest is checked for consistency, and against the tokenizer's hash and the size of every shard; with `hashes`
    also against the contents of every shard, which takes a while. Raises UserError, naming the file that is wrong.
    """
    folder = Path(os.path.expanduser(name))
    if not (folder / MANIFEST).exists():
        if (folder / PROGRESS).exists():
            raise UserError(f"data '{folder}' is incomplete: run the same prepare command again to finish it")
        raise UserError(
            f"{folder} is not a folder of prepared data: it has no {MANIFEST}; python -m gpt data prepare writes one"
        )
    manifest = read_manifest(folder)
    tokenizer = _load_tokenizer(folder, manifest)
    with file_errors(folder / MANIFEST):
        if tokenizer.vocab_size != manifest["vocab_size"]:
            raise ValueError(f"vocab_size {manifest['vocab_size']!r}, but the tokenizer has {tokenizer.vocab_size}")
        train, val = (_open_split(folder, manifest, split) for split in SPLITS)
    if hashes:
        train.check_hashes()
        val.check_hashes()
    return Prepared(folder, tokenizer, train, val, manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read manifest.json and check its format and version; UserError for another file."""
    path = folder / MANIFEST
    with file_errors(path):
        manifest = read_json(path, MAX_MANIFEST_BYTES)
        if manifest.get("format") != FORMAT:
            raise ValueError("not the manifest of prepared data (python -m gpt data prepare writes one)")
        if manifest["version"] != VERSION:
            raise ValueError(f"version {manifest['version']!r}, but this program reads {VERSION}")
    return manifest


def _load_tokenizer(folder: Path, manifest: dict[str, Any]) -> Tokenizer:
    path = folder / TOKENIZER
    with file_errors(folder / MANIFEST):
        expected = manifest["tokenizer"]["sha256"]
    with file_errors(path):
        require_hash(path, expected, MANIFEST)
    try:
        return load_tokenizer(path)
    except TokenizerError as error:
        raise UserError(str(error)) from error


def _open_split(folder: Path, manifest: dict[str, Any], split: str) -> ShardedTokens:
    dtype, vocab_size = DTYPES[manifest["dtype"]], _count(manifest["vocab_size"])
    entry, shards = manifest["splits"][split], []
    for described in entry["shards"]:
        file, sha256, n_tokens = described["file"], described["sha256"], _count(described["tokens"])
        if not (_SHARD.fullmatch(file) and file.startswith(split)):  # such as ../../secrets
            raise ValueError(f"{file!r} is not the name of a shard")
        if not _SHA256.fullmatch(sha256):
            raise ValueError(f"{file}: {sha256!r} is not a sha256")
        shards.append(Shard(folder / file, dtype, n_tokens, sha256))
    tokens = ShardedTokens(shards, dtype, vocab_size)
    if len({shard.path for shard in shards}) != len(shards):
        raise ValueError(f"a shard of {split} is listed twice")
    if len(tokens) != entry["tokens"]:
        raise ValueError(f"{split} has {entry['tokens']!r} tokens, but its shards have {len(tokens)}")
    return tokens


def _count(value: Any) -> int:
    if type(value) is not int or not 0 < value < 2**48:
        raise ValueError(f"{value!r} is not a count")
    return value
