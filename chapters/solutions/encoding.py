"""Answers to the exercises of chapter 02."""

import codecs
from collections.abc import Sequence


def tokens_of(merges: Sequence[tuple[int, int]]) -> list[bytes]:
    """A merge refers to tokens that are already in the list."""
    tokens = [bytes([i]) for i in range(256)]
    for first, second in merges:
        tokens.append(tokens[first] + tokens[second])
    return tokens


def stream(pieces: Sequence[bytes]) -> list[str]:
    """Python's incremental decoder keeps back what is incomplete."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    return [decoder.decode(piece) for piece in pieces]


def fewest(data: bytes, tokens: set[bytes]) -> int:
    """least[end] is the answer for data[:end]: one more than for the beginning that its last token leaves."""
    least = [0]
    for end in range(1, len(data) + 1):
        least.append(1 + min(least[start] for start in range(end) if data[start:end] in tokens))
    return least[-1]
