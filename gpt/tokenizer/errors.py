"""What can be wrong with a tokenizer's input, each in one line, and the checks that say so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import index
from typing import Any, SupportsIndex, TypeVar, cast

T = TypeVar("T")

NAMED_AT_MOST = 5  # unknown characters in one message


class TokenizerError(ValueError):
    """A text, an id or a file that a tokenizer cannot take; the message is one line."""


class UnknownCharacterError(TokenizerError):
    """Characters that a character tokenizer has never seen.

    `positions` says where in the text each of them comes first.
    """

    def __init__(self, text: str, known: str) -> None:
        known_ones = set(known)
        self.positions: dict[str, int] = {}
        for i, character in enumerate(text):
            if character not in known_ones:
                self.positions.setdefault(character, i)
        named = [f"{_name(c)} at position {i}" for c, i in self.positions.items()]
        more = f" and {len(named) - NAMED_AT_MOST} more" if len(named) > NAMED_AT_MOST else ""
        super().__init__(
            f"this tokenizer has never seen {', '.join(named[:NAMED_AT_MOST])}{more}: it knows "
            f"{len(known)} characters; remove these, or train on a text that has them, or with "
            "--tokenizer bpe, which takes any text"
        )


def _name(character: str) -> str:
    return f"{character!r} (U+{ord(character):04X})"


def require_text(text: str) -> None:
    """Raise TypeError for anything but a str, and TokenizerError for half a UTF-16 pair in it."""
    if not isinstance(text, str):
        raise TypeError(f"a tokenizer takes str, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"{_name(text[error.start])} at position {error.start} is half of a UTF-16 pair and no "
            "character: remove it, or read the file with errors='replace'"
        ) from None


def require_ids(ids: Iterable[SupportsIndex], vocab_size: int) -> list[int]:
    """Return the ids as a list of int, or raise TokenizerError for one outside the vocabulary."""
    numbers = [index(i) for i in ids]
    if numbers and not 0 <= min(numbers) <= max(numbers) < vocab_size:
        position = next(p for p, i in enumerate(numbers) if not 0 <= i < vocab_size)
        raise TokenizerError(
            f"token id {numbers[position]} at position {position} is outside the vocabulary: "
            f"ids are 0 to {vocab_size - 1}"
        )
    return numbers


def require_entry(entries: Mapping[str, Any], key: str, kind: type[T]) -> T:
    """Return entries[key], or raise TokenizerError if it is missing or of another type."""
    if key not in entries:
        raise TokenizerError(f"{key!r} is missing")
    if type(entries[key]) is not kind:  # isinstance would take True for an int
        raise TokenizerError(f"{key!r} is {type(entries[key]).__name__}, not {kind.__name__}")
    return cast(T, entries[key])
