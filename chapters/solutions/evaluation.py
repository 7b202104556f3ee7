"""Answers to the exercises of chapter 08."""

import math
from collections.abc import Sequence


def bits_per_byte(losses: Sequence[float], token_texts: Sequence[str]) -> float:
    """Divide the sum of the losses by ln 2 and by the bytes of all texts."""
    n_bytes = sum(len(text.encode()) for text in token_texts)
    return sum(losses) / math.log(2) / n_bytes


def windows_needed(sigma: float, error: float) -> int:
    """sigma / sqrt(n) <= error is n >= (sigma / error)²; the rounding guards against 4.000000001."""
    return math.ceil(round((sigma / error) ** 2, 9))


def longest_shared(exam: str, source: str) -> str:
    """Try lengths from 1 on, as long as a piece of that length is shared."""
    longest = ""
    for n in range(1, len(exam) + 1):
        known = {source[i : i + n] for i in range(len(source) - n + 1)}
        piece = next((exam[i : i + n] for i in range(len(exam) - n + 1) if exam[i : i + n] in known), None)
        if piece is None:
            break
        longest = piece
    return longest
