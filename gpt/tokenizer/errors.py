"""Errors in what a tokenizer is given, each of one line, and the checks that raise them."""

from collections.abc import Iterable, Mapping
from operator import index
from typing import Any, SupportsIndex, TypeVar, cast

T = TypeVar("T")

MAX_NAMED = 5  # unknown characters in one message


class TokenizerError(ValueError):
    """A text, an id or a file that a tokenizer cannot process; the message is one line."""


class UnknownCharacterError(TokenizerError):
    """Characters outside the vocabulary of a character tokenizer, with the first position of each in the text."""

    def __init__(self, text: str, known: str) -> None:
        vocabulary = set(known)
        self.positions: dict[str, int] = {}
        for i, character in enumerate(text):
            if character not in vocabulary:
                self.positions.setdefault(character, i)
        named = [f"{_name(c)} at position {i}" for c, i in self.positions.items()]
        more = f" and {len(named) - MAX_NAMED} more" if len(named) > MAX_NAMED else ""
        lacks = f"the vocabulary, of {len(known)} characters, does not have {', '.join(named[:MAX_NAMED])}{more}"
        advice = "train on a text that has them, or with --tokenizer bpe, which encodes any text"
        super().__init__(f"{lacks}: remove these, or {advice}")


def _name(character: str) -> str:
    return f"{character!r} (U+{ord(character):04X})"


def require_text(text: str) -> None:
    """Raise TypeError for anything but a str, and TokenizerError for an unpaired surrogate in it."""
    if not isinstance(text, str):
        raise TypeError(f"a tokenizer encodes str, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        what = f"{_name(text[error.start])} at position {error.start} is an unpaired UTF-16 surrogate, not a character"
        raise TokenizerError(f"{what}: remove it, or read the file with errors='replace'") from None


def require_ids(ids: Iterable[SupportsIndex], vocab_size: int) -> list[int]:
    """Return the ids as a list of int, or raise TokenizerError for one outside the vocabulary."""
    numbers = [index(i) for i in ids]
    if numbers and not 0 <= min(numbers) <= max(numbers) < vocab_size:
        at, i = next((at, i) for at, i in enumerate(numbers) if not 0 <= i < vocab_size)
        raise TokenizerError(f"token id {i} at position {at} is outside the vocabulary: ids are 0 to {vocab_size - 1}")
    return numbers


def require_entry(entries: Mapping[str, Any], key: str, kind: type[T]) -> T:
    """Return entries[key], or raise TokenizerError if it is missing or of another type."""
    if key not in entries:
        raise TokenizerError(f"{key!r} is missing")
    if type(entries[key]) is not kind:  # isinstance would take True for an int
        raise TokenizerError(f"{key!r} is {type(entries[key]).__name__}, not {kind.__name__}")
    return cast(T, entries[key])
