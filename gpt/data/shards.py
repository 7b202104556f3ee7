"""Prepared data: tokens in shards, and the manifest that says what they are.

    DIR/
      manifest.json       what it was made of and how, counts, sha256 of every other file
      tokenizer.json
      train-00000.bin     token ids one after the other, uint16 or uint32, little-endian, nothing else:
      val-00000.bin       numpy.memmap(path, "<u2") shows one, and so does nanoGPT

Training reads the few thousand tokens of a batch where they lie, so its memory does not grow with the data. They are
read with `pread` rather than through a mapping: the pages stay the system's (a mapping's count as the process's), and a
shard that somebody cuts short is an error that can be caught, where a mapping ends the process with SIGBUS.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt.config import UserError
from gpt.tokenizer import Tokenizer, TokenizerError, load_tokenizer

Array = np.ndarray[Any, Any]

FORMAT, VERSION = "tensorgrad tokens", 1
MANIFEST, PROGRESS, TOKENIZER = "manifest.json", "progress.json", "tokenizer.json"
SPLITS = ("train", "val")
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
MAX_MANIFEST_BYTES = 2**28  # a million sources take about a hundred megabytes
_SHARD = re.compile(r"(train|val)-\d{5,}\.bin")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Shard:
    """One file of token ids, opened when it is first read."""

    def __init__(self, path: Path, dtype: np.dtype[Any], n_tokens: int, sha256: str) -> None:
        self.path, self.dtype, self.n_tokens, self.sha256 = path, dtype, n_tokens, sha256
        self._descriptor: int | None = None
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            raise UserError(f"{path}: missing; the manifest beside it names it")
        if size != self.n_bytes:
            raise UserError(f"{path}: damaged: {size} bytes, and {self.n_bytes} were written")

    @property
    def n_bytes(self) -> int:
        """The size that the file has to have."""
        return self.n_tokens * self.dtype.itemsize

    def read(self, start: int, stop: int) -> Array:
        """Return tokens start to stop; UserError where they are not there any more."""
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDONLY)
                weakref.finalize(self, os.close, self._descriptor)
            status = os.fstat(self._descriptor)
            if not status.st_nlink:
                raise UserError(f"{self.path}: deleted while it was in use")
            size = self.dtype.itemsize
            data = os.pread(self._descriptor, (stop - start) * size, start * size)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error.strerror}") from error
        if status.st_size != self.n_bytes or len(data) != (stop - start) * size:
            raise UserError(f"{self.path}: changed while it was in use: {status.st_size} bytes, and not {self.n_bytes}")
        return np.frombuffer(data, self.dtype)

    def check_hash(self) -> None:
        """Raise UserError where the contents are not those that were written."""
        with self.path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != self.sha256:
                raise UserError(f"{self.path}: damaged: its contents are not those that {MANIFEST} was made of")


class ShardedTokens:
    """The tokens of one split, in as many files as they take, read as one array is."""

    def __init__(self, shards: list[Shard], dtype: np.dtype[Any], vocab_size: int) -> None:
        self.shards, self.dtype, self.vocab_size = shards, dtype, vocab_size
        self._ends = np.cumsum([shard.n_tokens for shard in shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.shards else 0

    def read(self, start: int, stop: int) -> Array:
        """Return tokens start to stop, (stop - start,), int64; UserError for one that no tokenizer made."""
        out = np.empty(stop - start, np.int64)
        at = start
        while at < stop:
            i = int(np.searchsorted(self._ends, at, side="right"))
            shard, first = self.shards[i], int(self._ends[i]) - self.shards[i].n_tokens
            end = min(stop, int(self._ends[i]))
            tokens = shard.read(at - first, end - first)
            if tokens.max() >= self.vocab_size:
                bad = f"token {tokens.max()}, where the vocabulary has {self.vocab_size}"
                raise UserError(f"{shard.path}: damaged: {bad}")
            out[at - start : end - start] = tokens
            at = end
        return out

    def rows(self, starts: Array, length: int) -> Array:
        """Return `length` tokens from every start on, (len(starts), length), int64."""
        rows = np.empty((len(starts), length), np.int64)
        for row, start in zip(rows, starts.tolist(), strict=True):
            row[:] = self.read(start, start + length)
        return rows

    @property
    def sha256(self) -> str:
        """What the split is known by: a hash of its shards' hashes, as the manifest has them."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    def check_hashes(self) -> None:
        """Raise UserError, naming the file, where a shard is not what was written."""
        for shard in self.shards:
            shard.check_hash()


@dataclass(frozen=True)
class Prepared:
    """A folder that `python -m gpt.data prepare` filled."""

    folder: Path
    tokenizer: Tokenizer
    train: ShardedTokens
    val: ShardedTokens
    manifest: dict[str, Any]


def is_prepared(name: str | os.PathLike[str]) -> bool:
    """Whether that is a folder of prepared data, perhaps one that is not finished."""
    folder = Path(name).expanduser()
    return any((folder / file).is_file() for file in (MANIFEST, PROGRESS))


def load_prepared(name: str | os.PathLike[str], *, hashes: bool = False) -> Prepared:
    """Open a folder of prepared data.

    What the manifest says is checked against itself, the tokenizer's hash and the size of every shard; with `hashes`
    every shard's contents as well, which takes a while. Raises UserError, naming the file, for whatever is wrong.
    """
    folder = Path(name).expanduser()
    if not (folder / MANIFEST).exists() and (folder / PROGRESS).exists():
        raise UserError(f"data '{folder}' is not prepared to the end: give the command that began it once more")
    manifest = read_manifest(folder)
    tokenizer = _load_tokenizer(folder, manifest)
    with _refusing(folder / MANIFEST):
        if tokenizer.vocab_size != manifest["vocab_size"]:
            raise ValueError(f"vocab_size {manifest['vocab_size']!r}, where the tokenizer has {tokenizer.vocab_size}")
        train, val = (_open_split(folder, manifest, split) for split in SPLITS)
    if hashes:
        train.check_hashes()
        val.check_hashes()
    return Prepared(folder, tokenizer, train, val, manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read manifest.json as far as its format; UserError where it is none of ours."""
    path = folder / MANIFEST
    with _refusing(path):
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ValueError(f"larger than {MAX_MANIFEST_BYTES} bytes, so it is none of ours")
        manifest = json.loads(path.read_bytes())
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise ValueError("is not the manifest of prepared data (python -m gpt.data prepare makes one)")
        if manifest["version"] != VERSION:
            raise ValueError(f"version {manifest['version']!r}, where this program reads {VERSION}")
    return manifest


def _load_tokenizer(folder: Path, manifest: dict[str, Any]) -> Tokenizer:
    path = folder / TOKENIZER
    with _refusing(folder / MANIFEST):
        expected = manifest["tokenizer"]["sha256"]
    with _refusing(path):
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise ValueError(f"damaged: its contents are not those that {MANIFEST} was made of")
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
            raise ValueError(f"{file!r} is no name of a shard")
        if not _SHA256.fullmatch(sha256):
            raise ValueError(f"{file}: {sha256!r} is no sha256")
        shards.append(Shard(folder / file, dtype, n_tokens, sha256))
    tokens = ShardedTokens(shards, dtype, vocab_size)
    if len({shard.path for shard in shards}) != len(shards):
        raise ValueError(f"a shard of {split} is there twice")
    if len(tokens) != entry["tokens"]:
        raise ValueError(f"{split} has {entry['tokens']!r} tokens, its shards {len(tokens)}")
    return tokens


def _count(value: Any) -> int:
    if type(value) is not int or not 0 < value < 2**48:
        raise ValueError(f"{value!r} is no count")
    return value


@contextmanager
def _refusing(file: Path) -> Iterator[None]:
    """Turn whatever a bad file makes fail into a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{file}: missing") from None
    except KeyError as error:
        raise UserError(f"{file}: damaged: no entry, or no value, {error}") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    except (TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise UserError(f"{file}: damaged: {' '.join(str(error).split())[:200]}") from error
