"""Training of byte-pair encoding, compared with rustbpe and with a straightforward implementation."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex  # type: ignore[import-untyped]
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt.tokenizer import BPETokenizer, patterns
from gpt.tokenizer.bpe import make_encoding, train_bpe
from gpt.tokenizer.patterns import END_OF_TEXT, GPT2_PATTERN, GPT4_PATTERN, split_into_pieces, split_long_spaces

PATTERNS = pytest.mark.parametrize("pattern", [GPT2_PATTERN, GPT4_PATTERN], ids=["gpt2", "gpt4"])

# Without unassigned code points (Cn): which of those are letters depends on the version of Unicode, which differs
# between Python's regex engine and Rust's.
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


def train_directly(text: str, size: int, pattern: str) -> list[bytes]:
    """Count all pairs, merge the most frequent, and repeat."""
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


def train_rustbpe(text: str, size: int, pattern: str | None) -> Any:
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
def test_tokens_of_shakespeare_equal_those_of_rustbpe(pattern: str, tinyshakespeare_path: Path) -> None:
    text = tinyshakespeare_path.read_text(encoding="utf-8")
    tokens = train_bpe(text, 4095, pattern)
    theirs = train_rustbpe(text, 4095, pattern)
    assert len(tokens) == 4095
    assert tokens == tokens_of(theirs)
    beginning = text[:100_000]
    assert encoding(tokens, pattern).encode_ordinary(beginning) == theirs.encode(beginning)


@PATTERNS
@given(text=texts, more=st.integers(0, 60))
@example(text="aaaaa aaaa aaa", more=9)
@example(text="abababab", more=9)
def test_tokens_of_any_text_equal_those_of_rustbpe(pattern: str, text: str, more: int) -> None:
    tokens = train_bpe(text, 256 + more, pattern)
    theirs = train_rustbpe(text, 256 + more, pattern)
    assert tokens == tokens_of(theirs)
    assert encoding(tokens, pattern).encode_ordinary(text) == theirs.encode(text)


@PATTERNS
@given(text=texts, more=st.integers(0, 30))
@example(text="aaaaa aaaa aaa", more=9)
@example(text="abababab", more=9)
def test_tokens_equal_a_straightforward_implementation(pattern: str, text: str, more: int) -> None:
    assert train_bpe(text, 256 + more, pattern) == train_directly(text, 256 + more, pattern)


def test_the_most_frequent_pair_is_merged_first_and_ties_go_to_the_smallest_ids() -> None:
    # "az" and "by" occur three times each, "zq" and "qy" twice
    text = "by by by az az az qy qy zq zq"
    learned = train_bpe(text, 300, r"\w+|\s")[256:]
    assert learned == [b"az", b"by", b"qy", b"zq"]  # a < b, and q < z


def test_overlapping_pairs_merge_from_the_left() -> None:
    assert train_bpe("aaaaa", 300)[256:] == [b"aa", b"aaa", b"aaaaa"]


def test_no_token_crosses_chunks() -> None:
    assert train_bpe("ab " * 50, 300, r"\w|\s") == train_bpe("", 256)


def test_training_on_one_long_chunk_equals_rustbpe() -> None:
    """A merge visits only the positions of its pair, so 2,000 merges in one long chunk are fast."""
    text = "".join("acgt"[i * i * 7 % 31 % 4] + "acgt"[i % 97 % 4] for i in range(30_000))
    assert train_bpe(text, 2256) == tokens_of(train_rustbpe(text, 2256, GPT4_PATTERN))


@PATTERNS
@given(text=texts)
def test_no_token_occurs_twice(pattern: str, text: str) -> None:
    tokens = train_bpe(text, 400, pattern)
    assert len(set(tokens)) == len(tokens)


# --------------------------------------------------------------------------------------------------
# Splitting


@PATTERNS
@given(text=st.text() | few_characters)
def test_the_chunks_concatenate_to_the_text(pattern: str, text: str) -> None:
    assert "".join(regex.findall(pattern, text)) == text


@given(text=texts)
@example(text="I'll 12345,\n\n  don't \u3000 ")
def test_the_gpt2_pattern_splits_text_like_the_published_pattern(text: str) -> None:
    published = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    assert regex.findall(GPT2_PATTERN, text) == regex.findall(published, text)


@given(text=texts)
@example(text="I'LL 12345,\n\n  don't \u3000 ")
def test_the_gpt4_pattern_splits_text_like_the_pattern_of_rustbpe(text: str) -> None:
    published = train_rustbpe("", 256, None).get_pattern()
    assert regex.findall(GPT4_PATTERN, text) == regex.findall(published, text)


@pytest.mark.parametrize("character", [r"\s", r"\p{L}", r"\p{N}", r"[\r\n]", "(?i:[sdmt])"])
def test_both_regex_engines_match_the_same_characters(character: str) -> None:
    """The trainer splits with Python's `regex`, the encoder with Rust's."""
    everything = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i <= 0xDFFF)
    single = encoding([bytes([byte]) for byte in range(256)], character)
    rust = set(single.decode(single.encode_ordinary(everything)))
    python = set(regex.findall(character, everything))
    # Only letters and digits may differ: the engine with the older Unicode tables does not know the newest ones.
    different = "".join(rust ^ python)
    assert regex.sub(r"[\p{L}\p{N}]", "", different) == ""
    assert rust <= python or python <= rust


@PATTERNS
@pytest.mark.parametrize("run", [" ", "\t", " \n "])
def test_splitting_a_long_run_of_spaces_changes_no_token(pattern: str, run: str) -> None:
    text = "some" + run * (600_000 // len(run)) + "words"
    assert split_long_spaces(text) == [text[:-6], text[-6:]]
    encoder = encoding(train_bpe("some words " * 9, 300, pattern), pattern)
    pieces = map(encoder.encode_ordinary, split_long_spaces(text))
    assert [i for piece in pieces for i in piece] == encoder.encode_ordinary(text)


def test_ordinary_text_is_not_split() -> None:
    text = "some words" + " " * 10_000 + "more" + " " * 600_000
    assert split_long_spaces(text) == [text]


LINES = st.text(st.sampled_from("aZé1 '_-.!\n\r\t\u00a0\u2028<|endoftext|>"), max_size=12)


@settings(max_examples=300)
@given(lines=st.lists(LINES, max_size=12), pattern=st.sampled_from([GPT2_PATTERN, GPT4_PATTERN]), special=st.booleans())
def test_pieces_have_the_tokens_of_the_whole(lines: list[str], pattern: str, special: bool) -> None:
    text = "\n".join([*lines, END_OF_TEXT, "ab", "ab  ", "it", "'s", "12", "34", "", "c", "\r", "d"])
    tokenizer = BPETokenizer.train("ab it's 12345 \n\n \n ab\n'S ...\n\n" * 3, 300, pattern)
    whole = tokenizer.encode(text, allow_special=special)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patterns, "PIECE_CHARACTERS", 3)
        pieces = split_into_pieces(text)
        assert len(pieces) > 1 and "".join(pieces) == text
        assert tokenizer.encode(text, allow_special=special) == whole


def test_a_text_without_a_place_to_split_it_stays_whole() -> None:
    text = "a" * (3 * patterns.PIECE_CHARACTERS) + "\n1\n\nb\n c"
    assert split_into_pieces(text) == [text]
    assert [len(piece) for piece in split_into_pieces("word\n" * patterns.PIECE_CHARACTERS)][:2] == [524290, 524290]
