"""The tests of the exercises of chapter 01."""

import math
from collections.abc import Callable

TEXTS = ["plain", "", "naïve café", "Кошка пьёт молоко.", "猫はミルクを飲む。", "\U0001f431 or \U0001f95b", "a\u0301\n"]


def count_characters(answer: Callable[[bytes], int]) -> None:
    """Compare with Python's decoder."""
    for text in TEXTS:
        got = answer(text.encode())
        assert got == len(text), f"{text!r} has {len(text)} characters, in {len(text.encode())} bytes, not {got}"


def split_complete(answer: Callable[[bytes], tuple[bytes, bytes]]) -> None:
    """Cut texts at every byte, and compare with the characters that are complete by then."""
    for text in TEXTS:
        data = text.encode()
        ends = [len(text[:i].encode()) for i in range(len(text) + 1)]
        for cut in range(len(data) + 1):
            complete, rest = answer(data[:cut])
            n = max(end for end in ends if end <= cut)
            assert complete + rest == data[:cut], f"of {data[:cut]!r}, {complete!r} + {rest!r} is not the whole"
            assert len(complete) == n, f"of {data[:cut]!r}, the first {n} bytes are complete, not {complete!r}"


def bits_per_byte(answer: Callable[[float, int, str], float]) -> None:
    """A model that knows nothing needs 8 bits for a byte; a known case with tokens of several bytes."""
    got = answer(math.log(256), 10, "0123456789")
    assert abs(got - 8) < 1e-9, f"256 equally likely bytes need 8 bits each, not {got}"
    got = answer(2 * math.log(2), 3, "éé漢")  # 3 tokens of 2 bits for 7 bytes
    assert abs(got - 6 / 7) < 1e-9, f"3 tokens of 2 bits in 7 bytes of text are 6/7 = 0.857 bits per byte, not {got}"
