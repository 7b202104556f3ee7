"""Training of byte-pair encoding: the most frequent pair of adjacent tokens becomes a token, again and again.

The text is first split into chunks (words, numbers, punctuation) that no token crosses. Each distinct chunk is kept
once, as UTF-8, with its number of occurrences. A merge then visits only the positions of its pair, so that training
takes about one step per byte of the distinct chunks, however large the vocabulary and however long a chunk.

Sennrich, Haddow and Birch 2016 (arXiv:1508.07909); on bytes, Radford et al. 2019 (GPT-2).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import TYPE_CHECKING

from gpt.tokenizer.patterns import END_OF_TEXT, GPT2_PATTERN, GPT4_PATTERN, SINGLE_BYTES

if TYPE_CHECKING:
    import tiktoken

__all__ = ["GPT2_PATTERN", "GPT4_PATTERN", "make_encoding", "train_bpe"]

Pair = tuple[int, int]

_GAP = -1  # separates two chunks: no pair includes it
_MERGED = -2  # the position of a token that is now part of the one before it


def train_bpe(text: str, size: int, pattern: str = GPT4_PATTERN) -> list[bytes]:
    """Return up to `size` tokens, indexed by id: the 256 bytes, then one for each merge.

    The most frequent pair is merged first and, among equally frequent ones, the pair with the smallest ids: so does
    rustbpe. There are fewer than `size` tokens where every chunk has become a single token.
    """
    import regex

    chunks = _Chunks(Counter(regex.findall(pattern, text)))
    heap = [(-count, pair) for pair, count in chunks.count.items()]
    heapify(heap)
    tokens = list(SINGLE_BYTES)
    while heap and len(tokens) < size:
        key, pair = heappop(heap)
        count = chunks.count[pair]
        if count < -key:  # later merges have reduced the count: reinsert the pair with its present count
            if count > 0:
                heappush(heap, (-count, pair))
            continue
        for new_pair in chunks.merge(pair, len(tokens)):
            heappush(heap, (-chunks.count[new_pair], new_pair))
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
    return tokens


class _Chunks:
    """The distinct chunks of a text, concatenated, as a linked list in which tokens can be merged.

    All lists have one entry per byte and one per gap between chunks: token[i] is the token that begins there, before[i]
    and after[i] are the indices of its neighbors, and times[i] is how often its chunk occurs in the text.
    """

    def __init__(self, occurrences: Mapping[str, int]) -> None:
        self.token: list[int] = []
        self.times: list[int] = []
        for chunk, times in occurrences.items():
            encoded = chunk.encode()
            self.token += [*encoded, _GAP]
            self.times += [times] * (len(encoded) + 1)
        self.before = list(range(-1, len(self.token) - 1))  # before the first: -1, the index of the last gap
        self.after = list(range(1, len(self.token) + 1))

        self.count: Counter[Pair] = Counter()  # occurrences of every pair in the whole text
        self.positions: defaultdict[Pair, list[int]] = defaultdict(list)  # some may be outdated
        for i, pair in enumerate(pairwise(self.token)):
            if _GAP not in pair:
                self._add(pair, i)

    def _add(self, pair: Pair, i: int) -> None:
        self.count[pair] += self.times[i]
        self.positions[pair].append(i)

    def merge(self, pair: Pair, new: int) -> set[Pair]:
        """Replace every `pair` by the token `new`, from left to right, and return the pairs that contain it."""
        first, second = pair
        token, before, after, count = self.token, self.before, self.after, self.count
        created = set()
        for i in self.positions.pop(pair):
            j = after[i]
            if token[i] != first or token[j] != second:
                continue  # an earlier merge used one of the two; in "aaa" it was this merge
            left, right = before[i], after[j]
            token[i], token[j] = new, _MERGED
            after[i], before[right] = right, i
            if token[left] != _GAP:
                count[token[left], first] -= self.times[i]
                self._add((token[left], new), left)
                created.add((token[left], new))
            if token[right] != _GAP:
                count[second, token[right]] -= self.times[i]
                self._add((new, token[right]), i)
                created.add((new, token[right]))
        del count[pair]
        return {made for made in created if count[made] > 0}  # in "abab" some have already been merged


def make_encoding(name: str, ranks: dict[bytes, int], pattern: str) -> tiktoken.Encoding:
    """Return tiktoken's fast encoder for these tokens and ids, with <|endoftext|> as the last id.

    tiktoken joins neighbors whose concatenated bytes are a token, whichever pair that is. The result is the same: after
    the merges that precede a token's own, its bytes can only form one pair.
    """
    import tiktoken

    return tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)})
