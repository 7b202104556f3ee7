"""The tests of the exercises of chapter 02."""

from collections.abc import Callable, Sequence
from functools import cache


def tokens_of(answer: Callable[[Sequence[tuple[int, int]]], Sequence[bytes]]) -> None:
    """Four merges that build on each other, and none."""
    got = list(answer([(104, 101), (116, 256), (32, 257), (258, 114)]))
    assert len(got) == 260, f"256 bytes and 4 merges make 260 tokens, not {len(got)}"
    assert got[:256] == [bytes([i]) for i in range(256)], "the first 256 tokens are the single bytes, in order"
    expected = [b"he", b"the", b" the", b" ther"]
    assert got[256:] == expected, f"the merges of 'h' + 'e' and so on make {expected}, not {got[256:]}"
    assert len(list(answer([]))) == 256, "without merges, the tokens are the 256 bytes"


def stream(answer: Callable[[Sequence[bytes]], Sequence[str]]) -> None:
    """Cut texts into pieces of several sizes; every complete character is shown at once, and only once."""
    for text in ["plain", "naïve café", "猫 and \U0001f431\U0001f95b!"]:
        data = text.encode()
        ends = [len(text[:i].encode()) for i in range(len(text) + 1)]
        for size in (1, 2, 3, 5):
            pieces = [data[i : i + size] for i in range(0, len(data), size)]
            got = list(answer(pieces))
            assert len(got) == len(pieces), f"one str for each of the {len(pieces)} pieces, not {len(got)}"
            for i in range(len(pieces)):
                n = sum(end <= (i + 1) * size for end in ends) - 1
                shown = "".join(got[: i + 1])
                assert shown == text[:n], f"after {pieces[: i + 1]}, {text[:n]!r} should have been shown, not {shown!r}"


def fewest(answer: Callable[[bytes, set[bytes]], int]) -> None:
    """Compare with a search that begins at the right end."""
    singles = {bytes([i]) for i in range(256)}

    def check(data: bytes, longer: set[bytes]) -> None:
        tokens = singles | longer

        @cache
        def search(start: int) -> int:
            ends = (end for end in range(start + 1, len(data) + 1) if data[start:end] in tokens)
            return min((1 + search(end) for end in ends), default=0)

        got = answer(data, tokens)
        assert got == search(0), f"{data!r} with the tokens {sorted(longer)} needs {search(0)} tokens, not {got}"

    check(b"", set())
    check(b"abc", set())
    check(b"shells", {b"she", b"ll", b"hells", b"sh", b"ells"})
    check(b"aaaaaaa", {b"aa", b"aaa", b"aaaaa"})
    check(b"abcdabcdab", {b"ab", b"abc", b"cdab", b"dab", b"bcda"})
