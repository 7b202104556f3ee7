"""Merges of published tokenizers: how their files write bytes, and the order in which tiktoken makes the same merges.

A published tokenizer has a list of merges, pairs of tokens, of which the first in the list is made first. tiktoken has
an order of tokens instead: it joins any two neighbors whose bytes together are a token, the first in that order first.
`order_of_merges` finds the order of tokens that gives the same ids for every text, or raises TokenizerError.

Files write each byte as one visible character: a printable Latin-1 character as itself, the others as U+0100, U+0101
and so on. Radford et al. 2019 (GPT-2).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Container, Iterable, Sequence
from itertools import groupby, pairwise

from gpt.tokenizer.errors import TokenizerError

Merge = tuple[str, str]  # two tokens, written visibly

_VISIBLE = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
_HIDDEN = [byte for byte in range(256) if byte not in _VISIBLE]
BYTE_OF = {chr(byte): byte for byte in _VISIBLE} | {chr(0x100 + i): byte for i, byte in enumerate(_HIDDEN)}
CHARACTER_OF = {byte: character for character, byte in BYTE_OF.items()}


def to_bytes(token: str) -> bytes:
    """Return the bytes of a token that is written visibly; KeyError for a character that stands for no byte."""
    return bytes([BYTE_OF[character] for character in token])


def to_visible(token: bytes) -> str:
    """Return a token as files write it."""
    return "".join([CHARACTER_OF[byte] for byte in token])


def order_of_merges(merges: Sequence[Merge], vocabulary: Collection[str], *, ignore_merges: bool = False) -> list[str]:
    """Return the tokens in the order in which tiktoken has to make them, single bytes first.

    Tokens that no text is encoded to are left out. ignore_merges: a word that is a token as a whole is that token,
    whatever the merges; tiktoken always does so. Raises TokenizerError for merges of unknown tokens, for one that
    occurs twice, and for merges that no order of tokens reproduces.
    """
    seen: set[Merge] = set()
    for i, (left, right) in enumerate(merges):
        unknown = next((token for token in (left, right, left + right) if token not in vocabulary), None)
        if unknown is not None:
            raise TokenizerError(f"merge {i} joins or makes {unknown[:20]!r}, which is not a token")
        if (left, right) in seen:
            raise TokenizerError(f"merge {i} occurs twice: {(left + ' ' + right)[:40]!r}")
        seen.add((left, right))
    single = [character for character in BYTE_OF if character in vocabulary]
    order = _MergeOrder(single)
    early = [merge for merge in merges if not order.add(*merge)]
    # Without a crossing merge, what these join is one token already, if that token comes before its two parts.
    numbers = ([order.number_of(token) for token in (left + right, left, right)] for left, right in early)
    wrong = next((merge for merge, (joined, *parts) in zip(early, numbers, strict=True) if joined > max(parts)), None)
    if ignore_merges and (wrong or len(order.number) < len(vocabulary)):
        return single + _complete_order(merges, seen, vocabulary)
    if wrong:
        raise TokenizerError(f"the merge {' '.join(wrong)[:40]!r} comes before those that make its two tokens")
    return list(order.number)


class _MergeOrder:
    """Tokens numbered in the order in which merges produce them, and the two halves of each.

    Bytes that become a token do so in one way only: whichever text they occur in, the merges within them are applied in
    the same order. So a merge either produces its token wherever that occurs, or never has an effect.
    """

    def __init__(self, single: Iterable[str]) -> None:
        self.number = {character: i for i, character in enumerate(single)}
        self.n_single = len(self.number)
        self.halves: list[tuple[int, int]] = [(i, i) for i in range(self.n_single)]
        self.product: dict[tuple[int, int], int] = {}

    def number_of(self, token: str) -> float:
        """Return the number of a token; infinity for one that no merge has produced."""
        return self.number.get(token, math.inf)

    def add(self, left: str, right: str) -> bool:
        """Apply the next merge, if it has an effect; return False if one of its tokens has not been produced yet."""
        a, b = self.number.get(left), self.number.get(right)
        if a is None or b is None:
            return False
        if left + right not in self.number and not self._crossed(a, b):
            self.product[a, b] = self.number[left + right] = len(self.halves)
            self.halves.append((a, b))
        return True

    def _crossed(self, a: int, b: int) -> bool:
        """Return whether an earlier merge joins the end of `a` with the beginning of `b`, before both are complete.

        The two are split in the reverse order of their merges. Of equal merges the left one is applied first.
        """
        limit: float = math.inf
        while self.product.get((a, b), math.inf) >= limit:
            if a > b and a >= self.n_single:
                limit, a = a, self.halves[a][1]
            elif b >= self.n_single:
                limit, b = b + 1, self.halves[b][0]
            else:
                return False
        return True


def _complete_order(merges: Sequence[Merge], pairs: Container[Merge], vocabulary: Collection[str]) -> list[str]:
    """Return the tokens in the order of their merges, which list every way to join two tokens to a third.

    Such a list was written from an order of tokens, as for Llama 3, and tiktoken does the same with that order. Tokens
    that cannot be joined from two are words as a whole only.
    """
    order = [token for token, _ in groupby(left + right for left, right in merges)]
    if len(set(order)) < len(order):
        raise TokenizerError("no order of tokens gives the same ids as the merges: those of one token are not together")
    joined = set(order)
    order += [token for token in vocabulary if len(token) > 1 and token not in joined]
    for token in order:
        for left, right in ((token[:i], token[i:]) for i in range(1, len(token))):
            if left in vocabulary and right in vocabulary and (left, right) not in pairs:
                raise TokenizerError(f"no order of tokens gives the same ids as the merges: see {token[:20]!r}")
    return order


def find_merges(tokens: Sequence[bytes]) -> tuple[list[Merge], bool]:
    """Return merges that give the same ids as this order of tokens, and whether they need ignore_merges."""
    rank = {token: i for i, token in enumerate(tokens)}
    merges = []
    for token in tokens:
        if len(token) > 1:
            parts = _split(token, rank)
            if len(parts) != 2:
                return _all_merges(tokens, rank), True
            merges.append((to_visible(parts[0]), to_visible(parts[1])))
    return merges, False


def _split(token: bytes, rank: dict[bytes, int]) -> list[bytes]:
    """Return what the bytes of a token are joined to by the tokens before it."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        ranks = [rank.get(a + b, rank[token]) for a, b in pairwise(parts)]
        i = ranks.index(min(ranks))
        if ranks[i] >= rank[token]:
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def _all_merges(tokens: Sequence[bytes], rank: dict[bytes, int]) -> list[Merge]:
    """Return every pair of tokens that together are a token, in the order of that token."""
    return [
        (to_visible(token[:i]), to_visible(token[i:]))
        for token in tokens
        for i in range(1, len(token))
        if token[:i] in rank and token[i:] in rank
    ]
