"""The interface of every tokenizer, and the file that keeps one."""

from __future__ import annotations

import base64
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, SupportsIndex

from gpt.tokenizer.errors import TokenizerError

FILE_NAME = "tokenizer.json"
FORMAT_VERSION = 1
MAX_FILE_BYTES = 2**24  # a vocabulary of 100,000 takes less than 3 MB


class Tokenizer(ABC):
    """The interface of every tokenizer. Ids are 0 to vocab_size - 1.

    `eot` is the id that ends a text and separates documents, <|endoftext|> or a model's own; None where the vocabulary
    has none. `bos` is the id that a model expects before a text; None where a text begins without. encode adds neither.
    """

    type_name: str
    eot: int | None
    bos: int | None = None

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Return the number of ids."""

    @abstractmethod
    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Return the ids of a text; with allow_special, a special token in it, as <|endoftext|>, becomes its id.

        Raises TokenizerError for an unpaired UTF-16 surrogate, and UnknownCharacterError for a character outside the
        vocabulary of a tokenizer that has only some characters.
        """

    @property
    def special_ids(self) -> frozenset[int]:
        """Return the ids of the special tokens, which decode_bytes leaves out with skip_special."""
        return self.stop_ids

    @property
    def stop_ids(self) -> frozenset[int]:
        """Return the ids that end what a model generates: eot, and those that end an answer in a conversation."""
        return frozenset(() if self.eot is None else (self.eot,))

    @abstractmethod
    def decode_bytes(self, ids: Iterable[SupportsIndex], *, skip_special: bool = False) -> bytes:
        """Return the UTF-8 bytes of these ids, perhaps a part of a character; TokenizerError for an unknown id.

        skip_special leaves out special tokens, for text that people read.
        """

    def decode(self, ids: Iterable[SupportsIndex], *, skip_special: bool = False) -> str:
        """Return the text of these ids, with U+FFFD in place of bytes that are not UTF-8."""
        return self.decode_bytes(ids, skip_special=skip_special).decode("utf-8", errors="replace")

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of tokenizer.json, which tokenizer_from_dict reads."""
        return {"version": FORMAT_VERSION, "type": self.type_name}

    @classmethod
    @abstractmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> Self:
        """Build a tokenizer from its to_dict; TokenizerError says what is wrong in it."""

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write tokenizer.json into a folder, completely or not at all, and return its path."""
        from gpt.files import atomic_write  # encoding a text does without it

        written = json.dumps(self.to_dict()).encode()
        if len(written) > MAX_FILE_BYTES:
            raise TokenizerError(f"{FILE_NAME} would take more than {MAX_FILE_BYTES} bytes")
        path = Path(folder, FILE_NAME)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(written)
        return path


def to_base64(tokens: Iterable[bytes]) -> list[str]:
    """Return tokens as they are kept in tokenizer.json."""
    return [base64.b64encode(token).decode() for token in tokens]


def from_base64(written: Sequence[Any], first: int = 0) -> list[bytes]:
    """Return the tokens; TokenizerError names the one that is not base64, counting from `first`."""
    tokens = []
    for i, one in enumerate(written, start=first):
        try:
            tokens.append(base64.b64decode(one, validate=True))
        except (TypeError, ValueError):
            raise TokenizerError(f"token {i} in 'tokens' is not base64") from None
    return tokens
