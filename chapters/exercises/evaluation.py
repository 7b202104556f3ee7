"""The tests of the exercises of chapter 08."""

import math
from collections.abc import Callable


def bits_per_byte(answer: Callable[[list[float], list[str]], float]) -> None:
    """Texts of which the probability, and so the number of bits, is known."""
    cases = [
        ([math.log(2)] * 3, ["a", "b", "c"], 1.0, "three characters of probability 1/2"),
        ([math.log(8), math.log(2)], ["the", " "], 1.0, "a word of probability 1/8 and a space of probability 1/2"),
        ([math.log(16)], ["é"], 2.0, "one é of probability 1/16, which has two bytes"),
        ([math.log(256)] * 2, ["€", "!"], 4.0, "€ has three bytes in UTF-8"),
    ]
    for losses, texts, expected, what in cases:
        got = answer(losses, texts)
        assert got is not None, "nothing was returned"
        assert math.isclose(got, expected, rel_tol=1e-9), f"{what}: {expected} bits per byte, not {got}"


def windows_needed(answer: Callable[[float, float], int]) -> None:
    """The number must be enough, and one fewer must not."""
    for sigma, error in [(1.0, 0.5), (0.2, 0.03), (0.17, 0.01), (3.0, 10.0)]:
        n = answer(sigma, error)
        assert isinstance(n, int) and n >= 1, f"for sigma {sigma} and error {error}: a whole number, not {n}"
        reached = sigma / math.sqrt(n)
        assert reached <= error * (1 + 1e-9), f"with {n} windows the error is {reached:.4f}, more than {error}"
        fewer = n == 1 or sigma / math.sqrt(n - 1) > error * (1 - 1e-9)
        assert fewer, f"for sigma {sigma} and error {error}, {n - 1} windows are enough, too"


def longest_shared(answer: Callable[[str, str], str]) -> None:
    """Compare with a search through all pieces."""
    cases = [
        ("to be or not to be", "whether to be nobler"),
        ("abcabc", "xxabcyabca"),
        ("abc", "xyz"),
        ("", "text"),
        ("same", "same"),
        ("one two", "two one"),
    ]
    for exam, source in cases:
        pieces = [exam[i:j] for i in range(len(exam)) for j in range(i + 1, len(exam) + 1)]
        expected = max((piece for piece in pieces if piece in source), key=len, default="")
        got = answer(exam, source)
        assert got == expected, f"{exam!r} and {source!r} share {expected!r}, not {got!r}"
