"""Files of prepared data as they are written: shards that can be cut back, JSON that is whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gpt.config import UserError

PART = ".part"  # behind the name of a shard that is not complete


def sha256_of(path: Path) -> str:
    """Return the hash of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON aside, sync it and move it to its place."""
    aside = path.with_name(f".{path.name}")
    with aside.open("w", encoding="utf-8") as file:
        json.dump(values, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class ShardWriter:
    """Writes the tokens of one split into shards of equal length, the last one shorter.

    state: what `state` returned in an earlier process, and was synced. Whatever was written since then is cut off.
    """

    def __init__(
        self, folder: Path, split: str, dtype: np.dtype[Any], shard_tokens: int, state: Mapping[str, Any] | None = None
    ) -> None:
        self.folder, self.split, self.itemsize, self.shard_tokens = folder, split, dtype.itemsize, shard_tokens
        state = state or {"shards": [], "open": 0, "tokens": 0, "documents": 0, "bytes": 0}
        self.shards: list[dict[str, Any]] = list(state["shards"])
        self.n_open: int = state["open"]  # tokens in the shard that is being written
        self.n_tokens: int = state["tokens"]
        self.n_documents: int = state["documents"]
        self.n_bytes: int = state["bytes"]
        self._file: BinaryIO | None = None
        self._cut_back()

    def sync(self) -> None:
        """Return once all that was appended is on the disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def state(self) -> dict[str, Any]:
        """Return how much has been appended: plain values for JSON."""
        return {
            "shards": list(self.shards), "open": self.n_open, "tokens": self.n_tokens,
            "documents": self.n_documents, "bytes": self.n_bytes,
        }  # fmt: skip

    def append(self, tokens: bytes) -> None:
        """Write tokens behind those that are there."""
        rest = memoryview(tokens)
        while rest:
            if self._file is None:
                self._file = self._part().open("ab")
            room = (self.shard_tokens - self.n_open) * self.itemsize
            written, rest = rest[:room], rest[room:]
            self._file.write(written)
            self.n_open += len(written) // self.itemsize
            self.n_tokens += len(written) // self.itemsize
            if self.n_open == self.shard_tokens:
                self.complete()

    def complete(self) -> None:
        """End the shard that is being written, if there is one."""
        if not self.n_open:
            return
        self.sync()
        self.close()
        part = self._part()
        described = {"file": self._name(), "tokens": self.n_open, "sha256": sha256_of(part)}
        os.replace(part, self.folder / self._name())
        self.shards.append(described)
        self.n_open = 0

    def close(self) -> None:
        """Let go of the file, whatever is in it."""
        if self._file is not None:
            with suppress(OSError):  # a full disk takes no more at the end either
                self._file.close()
            self._file = None

    def _name(self) -> str:
        return f"{self.split}-{len(self.shards):05d}.bin"

    def _part(self) -> Path:
        return self.folder / (self._name() + PART)

    def _cut_back(self) -> None:
        known = {shard["file"] for shard in self.shards}
        part, whole = self._part(), self.folder / self._name()
        if whole.exists():  # it was completed after the state was written
            os.replace(whole, part)
        for path in self.folder.glob(f"{self.split}-*.bin*"):
            if path.name not in known and path != part:
                path.unlink()
        for shard in self.shards:
            _require_size(self.folder / shard["file"], shard["tokens"] * self.itemsize, exactly=True)
        if self.n_open:
            _require_size(part, self.n_open * self.itemsize, exactly=False)
            os.truncate(part, self.n_open * self.itemsize)
        else:
            part.unlink(missing_ok=True)


def _require_size(path: Path, size: int, *, exactly: bool) -> None:
    found = path.stat().st_size if path.exists() else 0
    if found < size or (exactly and found != size):
        raise UserError(f"{path}: damaged: {found} bytes, and {size} were written; delete the folder and start again")
