"""The order of tokens that gives the same ids as a list of merges; lists for which there is none are refused."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.tokenizer import TokenizerError
from gpt.tokenizer.merges import BYTE_OF, Merge, find_merges, order_of_merges, to_bytes, to_visible


def merge_by_list(word: str, merges: list[Merge]) -> list[str]:
    """Byte-pair encoding as transformers does it: the first of the merges in the list, and of equal ones the left."""
    rank = {pair: i for i, pair in enumerate(merges)}
    parts = list(word)
    while found := [(rank[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in rank]:
        _, i = min(found)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def merge_by_order(word: str, tokens: list[str]) -> list[str]:
    """Byte-pair encoding as tiktoken does it: neighbors that together are a token, the first in the order."""
    rank = {token: i for i, token in enumerate(tokens)}
    if word in rank:
        return [word]
    parts = list(word)
    while found := [(rank[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in rank]:
        _, i = min(found)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def vocabulary_of(merges: list[Merge]) -> set[str]:
    return {"a", "b", "c"} | {part for left, right in merges for part in (left, right, left + right)}


def random_merges(seed: int) -> list[Merge]:
    """Merges of any two earlier tokens, most of which have an effect; in some lists two are exchanged."""
    draw = random.Random(seed)
    tokens, merges = ["a", "b", "c"], []
    for _ in range(draw.randint(1, 8)):
        pair = draw.choice(tokens), draw.choice(tokens)
        if pair not in merges:
            merges.append(pair)
            tokens.append(pair[0] + pair[1])
    if draw.random() < 0.3:
        i, j = draw.randrange(len(merges)), draw.randrange(len(merges))
        merges[i], merges[j] = merges[j], merges[i]
    return merges


def test_random_merges_give_the_same_ids_or_are_refused() -> None:
    """Also those of which one has no effect, or is repeated in another way."""
    refused = 0
    for seed in range(1500):
        merges = random_merges(seed)
        try:
            order = order_of_merges(merges, vocabulary_of(merges))
        except TokenizerError:
            refused += 1
            continue
        draw = random.Random(seed)
        for word in [*vocabulary_of(merges), *("".join(draw.choices("abc", k=12)) for _ in range(6))]:
            assert merge_by_order(word, order) == merge_by_list(word, merges), (merges, word)
    assert 20 < refused < 500


def test_a_merge_that_an_earlier_one_prevents_makes_no_token() -> None:
    assert order_of_merges([("a", "a"), ("a", "aa")], {"a", "aa", "aaa"}) == ["a", "aa"]
    assert order_of_merges([("a", "a"), ("aa", "a")], {"a", "aa", "aaa"}) == ["a", "aa", "aaa"]
    assert order_of_merges([("b", "c"), ("a", "b"), ("ab", "c")], {*"abc", "ab", "bc", "abc"}) == [*"abc", "bc", "ab"]


@settings(deadline=None)
@given(st.permutations(range(12)), st.integers(0, 2**32))
def test_all_merges_of_an_order_give_back_the_order(removed: list[int], seed: int) -> None:
    """As for Llama 3: an order in which some tokens are joined from no two others, or only from later ones."""
    merges = random_merges(seed) + [("a", "b"), ("ab", "c"), ("abc", "abc")]
    tokens = list(dict.fromkeys(left + right for left, right in merges))
    kept = [*"abc", *(token for i, token in enumerate(tokens) if i not in removed[:3])]
    written, ignore_merges = find_merges([to_bytes(token) for token in kept])
    order = order_of_merges(written, dict.fromkeys(kept), ignore_merges=ignore_merges)
    draw = random.Random(seed)
    for word in [*kept, *("".join(draw.choices("abc", k=12)) for _ in range(6))]:
        assert merge_by_order(word, order) == merge_by_order(word, kept)


def test_every_byte_has_one_visible_character() -> None:
    assert sorted(BYTE_OF.values()) == list(range(256))
    assert to_bytes("ĠĊé") == b" \n\xe9"
    assert to_visible(bytes(range(256))).isprintable()
    assert to_bytes(to_visible(bytes(range(256)))) == bytes(range(256))


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        ([("a", "x")], "merge 0 joins or makes 'x', which is not a token"),
        ([("a", "b"), ("c", "a")], "merge 1 joins or makes 'ca', which is not a token"),
        ([("a", "b"), ("a", "b")], "merge 1 occurs twice: 'a b'"),
        ([("a", "bc"), ("b", "c")], "the merge 'a bc' comes before those that make its two tokens"),
    ],
)
def test_other_merges_are_refused(merges: list[Merge], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        order_of_merges(merges, {"a", "b", "c", "ab", "bc", "abc"})


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        ([("b", "c"), ("a", "b"), ("ab", "c")], "no order of tokens gives the same ids as the merges: see 'abc'"),
        ([("b", "c"), ("a", "bc"), ("a", "b"), ("ab", "c")], "those of one token are not together"),
    ],
)
def test_incomplete_merges_with_words_that_ignore_them_are_refused(merges: list[Merge], message: str) -> None:
    vocabulary = {"a", "b", "c", "ab", "bc", "abc", "abcabca"}
    with pytest.raises(TokenizerError, match=message):
        order_of_merges(merges, vocabulary, ignore_merges=True)
