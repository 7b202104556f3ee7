"""Answers to the exercises of chapter 01."""

import math


def count_characters(data: bytes) -> int:
    """Every character has one byte that is not 10xxxxxx."""
    return sum(byte // 64 != 2 for byte in data)


def split_complete(data: bytes) -> tuple[bytes, bytes]:
    """Step back to the last byte that begins a character, and see how many bytes it announces."""
    start = len(data) - 1
    while start >= 0 and data[start] // 64 == 2:
        start -= 1
    if start < 0:
        return data, b""
    first = data[start]
    length = 1 if first < 128 else 2 if first < 224 else 3 if first < 240 else 4
    end = len(data) if len(data) - start == length else start
    return data[:end], data[end:]


def bits_per_byte(loss: float, n_tokens: int, text: str) -> float:
    """The loss of the whole text, in bits, divided by its bytes."""
    return loss * n_tokens / math.log(2) / len(text.encode())
