"""The trainer of byte-pair encoding, against rustbpe and against merging written out plainly."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex  # type: ignore[import-untyped]
import tiktoken
from hypothesis import example, given
from hypothesis import strategies as st

from gpt.tokenizer.bpe import GPT2_PATTERN, GPT4_PATTERN, learn_tokens, make_encoding, split_long_spaces

PATTERNS = pytest.mark.parametrize("pattern", [GPT2_PATTERN, GPT4_PATTERN], ids=["gpt2", "gpt4"])

# Without code points that are not assigned (Cn): which of those are letters depends on the version
# of Unicode, in which Python's regex engine and Rust's differ.
unicode_text = st.text(st.characters(exclude_categories=["Cs", "Cn"]))
few_characters = st.text(st.sampled_from("aabé's1 \n\r\t.\u3000😀"), max_size=200)
repetitive = st.lists(st.sampled_from(["aaa", "ab", "aba ", "a", "\n", "ßß"]), max_size=60).map("".join)
texts = unicode_text | few_characters | repetitive


def merge(tokens: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    merged: list[bytes] = []
    i = 0
    while i < len(tokens):
        if tuple(tokens[i : i + 2]) == pair:
            merged.append(pair[0] + pair[1])
            i += 2
        else:
            merged.append(tokens[i])
            i += 1
    return merged


def learn_plainly(text: str, size: int, pattern: str) -> list[bytes]:
    """Count every pair anew, merge the first of the most frequent, and so on."""
    vocabulary = [bytes([byte]) for byte in range(256)]
    chunks = [[bytes([byte]) for byte in chunk.encode()] for chunk in regex.findall(pattern, text)]
    while len(vocabulary) < size:
        counts = Counter(pair for chunk in chunks for pair in pairwise(chunk))
        if not counts:
            break
        ids = {token: i for i, token in enumerate(vocabulary)}
        best = min(counts, key=lambda pair: (-counts[pair], ids[pair[0]], ids[pair[1]]))
        vocabulary.append(best[0] + best[1])
        chunks = [merge(chunk, best) for chunk in chunks]
    return vocabulary


def trained_by_rustbpe(text: str, size: int, pattern: str | None) -> Any:
    tokenizer = pytest.importorskip("rustbpe").Tokenizer()
    tokenizer.train_from_iterator([text], size, pattern=pattern)
    return tokenizer


def tokens_of(rustbpe_tokenizer: Any) -> list[bytes]:
    ranks = rustbpe_tokenizer.get_mergeable_ranks()
    assert [rank for _, rank in ranks] == list(range(len(ranks)))
    return [bytes(token) for token, _ in ranks]


def encoding(tokens: Iterable[bytes], pattern: str) -> tiktoken.Encoding:
    return make_encoding("test", {token: i for i, token in enumerate(tokens)}, pattern)


# --------------------------------------------------------------------------------------------------
# Training


@PATTERNS
def test_tokens_of_shakespeare_are_rustbpes(pattern: str, tinyshakespeare_path: Path) -> None:
    text = tinyshakespeare_path.read_text(encoding="utf-8")
    tokens = learn_tokens(text, 4095, pattern)
    theirs = trained_by_rustbpe(text, 4095, pattern)
    assert len(tokens) == 4095
    assert tokens == tokens_of(theirs)
    beginning = text[:100_000]
    assert encoding(tokens, pattern).encode_ordinary(beginning) == theirs.encode(beginning)


@PATTERNS
@given(text=texts, more=st.integers(0, 60))
@example(text="aaaaa aaaa aaa", more=9)
@example(text="abababab", more=9)
def test_tokens_of_any_text_are_rustbpes(pattern: str, text: str, more: int) -> None:
    tokens = learn_tokens(text, 256 + more, pattern)
    theirs = trained_by_rustbpe(text, 256 + more, pattern)
    assert tokens == tokens_of(theirs)
    assert encoding(tokens, pattern).encode_ordinary(text) == theirs.encode(text)


@PATTERNS
@given(text=texts, more=st.integers(0, 30))
@example(text="aaaaa aaaa aaa", more=9)
@example(text="abababab", more=9)
def test_tokens_are_those_of_plain_merging(pattern: str, text: str, more: int) -> None:
    assert learn_tokens(text, 256 + more, pattern) == learn_plainly(text, 256 + more, pattern)


def test_the_most_frequent_pair_first_and_among_equals_the_smallest_ids() -> None:
    # "az" and "by" are there three times each, "zq" and "qy" twice
    text = "by by by az az az qy qy zq zq"
    learnt = learn_tokens(text, 300, r"\w+|\s")[256:]
    assert learnt == [b"az", b"by", b"qy", b"zq"]  # a < b, and q < z


def test_overlapping_pairs_merge_from_the_left() -> None:
    assert learn_tokens("aaaaa", 300)[256:] == [b"aa", b"aaa", b"aaaaa"]


def test_no_token_reaches_across_chunks() -> None:
    assert learn_tokens("ab " * 50, 300, r"\w|\s") == learn_tokens("", 256)


def test_a_chunk_may_be_the_whole_text() -> None:
    """A merge visits only its own places: 2,000 of them in one long chunk take no time."""
    text = "".join("acgt"[i * i * 7 % 31 % 4] + "acgt"[i % 97 % 4] for i in range(30_000))
    assert learn_tokens(text, 2256) == tokens_of(trained_by_rustbpe(text, 2256, GPT4_PATTERN))


@PATTERNS
@given(text=texts)
def test_no_token_is_learnt_twice(pattern: str, text: str) -> None:
    tokens = learn_tokens(text, 400, pattern)
    assert len(set(tokens)) == len(tokens)


# --------------------------------------------------------------------------------------------------
# Splitting


@PATTERNS
@given(text=st.text() | few_characters)
def test_the_chunks_are_the_text(pattern: str, text: str) -> None:
    assert "".join(regex.findall(pattern, text)) == text


@given(text=texts)
@example(text="I'll 12345,\n\n  don't \u3000 ")
def test_gpt2_pattern_splits_as_the_published_one(text: str) -> None:
    published = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    assert regex.findall(GPT2_PATTERN, text) == regex.findall(published, text)


@given(text=texts)
@example(text="I'LL 12345,\n\n  don't \u3000 ")
def test_gpt4_pattern_splits_as_rustbpes_own(text: str) -> None:
    published = trained_by_rustbpe("", 256, None).get_pattern()
    assert regex.findall(GPT4_PATTERN, text) == regex.findall(published, text)


@pytest.mark.parametrize("character", [r"\s", r"\p{L}", r"\p{N}", r"[\r\n]", "(?i:[sdmt])"])
def test_both_regex_engines_mean_the_same_characters(character: str) -> None:
    """The trainer splits with Python's `regex`, the encoder with Rust's."""
    everything = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i <= 0xDFFF)
    single = encoding([bytes([byte]) for byte in range(256)], character)
    rust = set(single.decode(single.encode_ordinary(everything)))
    python = set(regex.findall(character, everything))
    # Only letters and digits may differ, those that the older of the two does not know yet.
    different = "".join(rust ^ python)
    assert regex.sub(r"[\p{L}\p{N}]", "", different) == ""
    assert rust <= python or python <= rust


@PATTERNS
@pytest.mark.parametrize("run", [" ", "\t", " \n "])
def test_a_cut_in_a_long_run_of_spaces_changes_no_token(pattern: str, run: str) -> None:
    text = "some" + run * (600_000 // len(run)) + "words"
    assert split_long_spaces(text) == [text[:-6], text[-6:]]
    encoder = encoding(learn_tokens("some words " * 9, 300, pattern), pattern)
    pieces = map(encoder.encode_ordinary, split_long_spaces(text))
    assert [i for piece in pieces for i in piece] == encoder.encode_ordinary(text)


def test_ordinary_text_is_not_cut() -> None:
    text = "some words" + " " * 10_000 + "more" + " " * 600_000
    assert split_long_spaces(text) == [text]
