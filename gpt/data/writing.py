"""Writing prepared data: shards that can be truncated to what an earlier attempt finished."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gpt.config import UserError
from gpt.files import sha256_of

PART = ".part"  # suffix of a shard that is not complete


class ShardWriter:
    """Writes the tokens of one split into shards of equal length; the last one may be shorter.

    state: the result of `state()` in an earlier process, once synced. Whatever was written after it is truncated.
    """

    def __init__(
        self, folder: Path, split: str, dtype: np.dtype[Any], shard_tokens: int, state: Mapping[str, Any] | None = None
    ) -> None:
        self.folder, self.split, self.itemsize, self.shard_tokens = folder, split, dtype.itemsize, shard_tokens
        state = state or {"shards": [], "open": 0, "tokens": 0, "documents": 0, "bytes": 0}
        self.shards: list[dict[str, Any]] = list(state["shards"])
        self.n_open: int = state["open"]  # tokens in the incomplete shard
        self.n_tokens: int = state["tokens"]
        self.n_documents: int = state["documents"]
        self.n_bytes: int = state["bytes"]
        self._file: BinaryIO | None = None
        self._truncate()

    def sync(self) -> None:
        """Wait until everything appended is on the disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def state(self) -> dict[str, Any]:
        """Return how much has been appended, as plain values for JSON."""
        return {
            "shards": list(self.shards), "open": self.n_open, "tokens": self.n_tokens,
            "documents": self.n_documents, "bytes": self.n_bytes,
        }  # fmt: skip

    def append(self, tokens: bytes) -> None:
        rest = memoryview(tokens)
        while rest:
            if self._file is None:
                self._file = self._part().open("ab")
            n_bytes = (self.shard_tokens - self.n_open) * self.itemsize  # that this shard has room for
            written, rest = rest[:n_bytes], rest[n_bytes:]
            self._file.write(written)
            self.n_open += len(written) // self.itemsize
            self.n_tokens += len(written) // self.itemsize
            if self.n_open == self.shard_tokens:
                self.complete()

    def complete(self) -> None:
        """Complete the shard that is being written, if there is one."""
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
        if self._file is not None:
            with suppress(OSError):  # a full disk cannot take what is still buffered either
                self._file.close()
            self._file = None

    def _name(self) -> str:
        return f"{self.split}-{len(self.shards):05d}.bin"

    def _part(self) -> Path:
        return self.folder / (self._name() + PART)

    def _truncate(self) -> None:
        known = {shard["file"] for shard in self.shards}
        part, complete = self._part(), self.folder / self._name()
        if complete.exists():  # it was completed after the state was saved
            os.replace(complete, part)
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
        raise UserError(f"{path}: damaged: {found} bytes instead of {size}; delete the folder and start again")
