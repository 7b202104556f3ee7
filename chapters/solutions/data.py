"""Answers to the exercises of chapter 03."""

import hashlib
from collections.abc import Sequence


def count_windows(n_tokens: int, T: int, step: int) -> int:
    """The last possible start is n_tokens - T - 1; the starts up to it are 0, step, 2 step, ..."""
    return max(0, (n_tokens - T - 1) // step + 1)


def longest_shared(train: str, val: str) -> str:
    """Halve the interval of lengths; for each length, look up all passages of val in a set."""

    def passage_of(n: int) -> str | None:
        passages = {train[i : i + n] for i in range(len(train) - n + 1)}
        return next((val[i : i + n] for i in range(len(val) - n + 1) if val[i : i + n] in passages), None)

    found, low, high = "", 0, min(len(train), len(val))  # there is one of length low, and none above high
    while low < high:
        middle = (low + high + 1) // 2
        passage = passage_of(middle)
        if passage is None:
            high = middle - 1
        else:
            found, low = passage, middle
    return found


def split_documents(documents: Sequence[str], share: float) -> tuple[list[str], list[str]]:
    """A hash of the normalized text is as good as a random number, and the same for every copy."""
    parts: tuple[list[str], list[str]] = ([], [])
    for document in documents:
        normal = " ".join(document.lower().split())
        number = int.from_bytes(hashlib.sha256(normal.encode()).digest()[:8], "big") / 2**64
        parts[number < share].append(document)
    return parts
