"""The three tokenizers: published counts, exact round trips, and errors."""

import codecs
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpt.tokenizer import (
    BPETokenizer,
    CharTokenizer,
    GPT2Tokenizer,
    Tokenizer,
    TokenizerError,
    UnknownCharacterError,
)
from gpt.tokenizer.patterns import END_OF_TEXT

VERSE = "Shall I compare thee to a summer's day?\nThou art more lovely and more temperate:\n"

pieces = st.text() | st.sampled_from([END_OF_TEXT, "<|", "|>", "\r\n", "  ", "'LL", "é", "👩‍👩‍👧"])
texts = st.lists(pieces).map("".join)


# --------------------------------------------------------------------------------------------------
# Counts


def test_tiny_shakespeare_has_65_characters(tinyshakespeare_path: Path) -> None:
    text = tinyshakespeare_path.read_text(encoding="utf-8")
    tokenizer = CharTokenizer.train(text)
    assert tokenizer.vocab_size == 65
    assert tokenizer.characters.startswith("\n !$&',-.3:;?ABC")
    ids = tokenizer.encode(text)
    assert len(ids) == 1_115_394
    assert tokenizer.decode(ids) == text


def test_gpt2_token_counts_of_tiny_shakespeare_are_those_published(
    gpt2: GPT2Tokenizer, tinyshakespeare_path: Path
) -> None:
    text = tinyshakespeare_path.read_text(encoding="utf-8")
    assert len(gpt2.encode(text)) == 338_025
    split = int(0.9 * len(text))
    counts = [len(gpt2.encode(part)) for part in (text[:split], text[split:])]
    assert counts == [301_966, 36_059]
    assert gpt2.decode(gpt2.encode(text)) == text


def test_the_gpt2_tokenizer_has_the_published_ids(gpt2: GPT2Tokenizer) -> None:
    assert gpt2.encode("Hello world") == [15496, 995]
    assert (gpt2.vocab_size, gpt2.eot) == (50257, 50256)


def test_the_bpe_vocabulary_size_includes_end_of_text(bpe: BPETokenizer) -> None:
    assert bpe.vocab_size == 300
    assert bpe.eot == 299
    assert len(bpe.tokens) == 299
    assert max(bpe.encode(VERSE)) == 298
    assert len(bpe.encode(VERSE)) < len(VERSE) / 2


# --------------------------------------------------------------------------------------------------
# Round trips


@given(text=texts)
@example(text="")
@example(text=f"{END_OF_TEXT}a{END_OF_TEXT}")
def test_any_text_round_trips(text: str, bpe: BPETokenizer, gpt2: GPT2Tokenizer) -> None:
    for tokenizer in (bpe, gpt2, CharTokenizer.train(text + "x")):
        for allow_special in (False, True):
            ids = tokenizer.encode(text, allow_special=allow_special)
            assert all(type(i) is int and 0 <= i < tokenizer.vocab_size for i in ids)
            assert tokenizer.decode(ids) == text
            assert tokenizer.decode_bytes(ids) == text.encode()


@pytest.mark.parametrize("text", [" " * 1_000_100 + "x", "\n" * 1_000_100 + "x"], ids=["spaces", "lines"])
def test_a_million_spaces_round_trip(text: str, bpe: BPETokenizer, gpt2: GPT2Tokenizer) -> None:
    for tokenizer in (bpe, gpt2):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_end_of_text_is_special_only_if_allowed(bpe: BPETokenizer, gpt2: GPT2Tokenizer) -> None:
    text = f"To be{END_OF_TEXT}or not"
    for tokenizer in (bpe, gpt2):
        assert tokenizer.eot not in tokenizer.encode(text)
        ids = tokenizer.encode(text, allow_special=True)
        assert ids == [*tokenizer.encode("To be"), tokenizer.eot, *tokenizer.encode("or not")]


def test_a_character_tokenizer_has_no_special_token() -> None:
    tokenizer = CharTokenizer.train(END_OF_TEXT)
    assert tokenizer.eot is None
    assert len(tokenizer.encode(END_OF_TEXT, allow_special=True)) == len(END_OF_TEXT)


def test_the_bytes_of_single_tokens_decode_incrementally(bpe: BPETokenizer, gpt2: GPT2Tokenizer) -> None:
    text = "naïve 👩‍👩‍👧 東京"
    for tokenizer in (bpe, gpt2, CharTokenizer.train(text)):
        utf8 = codecs.getincrementaldecoder("utf-8")()
        assert "".join(utf8.decode(tokenizer.decode_bytes([i])) for i in tokenizer.encode(text)) == text


def test_a_partial_character_decodes_to_the_replacement_character(bpe: BPETokenizer) -> None:
    ids = bpe.encode("é")
    assert len(ids) == 2
    assert bpe.decode(ids[:1]) == "\N{REPLACEMENT CHARACTER}"


def test_ids_may_be_numpy_integers(tokenizer: Tokenizer) -> None:
    ids = np.array(tokenizer.encode("a summer's day"), dtype=np.uint16)
    assert tokenizer.decode(ids) == "a summer's day"


# --------------------------------------------------------------------------------------------------
# Errors


def test_the_error_lists_the_unknown_characters() -> None:
    tokenizer = CharTokenizer.train("abc")
    with pytest.raises(UnknownCharacterError) as caught:
        tokenizer.encode("cab é\té")
    assert caught.value.positions == {" ": 3, "é": 4, "\t": 5}
    message = str(caught.value)
    named = "does not have ' ' (U+0020) at position 3, 'é' (U+00E9) at position 4, '\\t' (U+0009)"
    assert named in message
    assert "vocabulary, of 3 characters" in message
    assert "--tokenizer bpe" in message
    assert "\n" not in message


def test_the_error_lists_only_the_first_unknown_characters() -> None:
    with pytest.raises(UnknownCharacterError, match=r"'e' \(U\+0065\) at position 4 and 21 more: "):
        CharTokenizer.train("A").encode("abcdefghijklmnopqrstuvwxyz")


@pytest.mark.parametrize("text", ["a\ud800", "a\udfff!", "a\udc00\ud800"])
def test_an_unpaired_surrogate_is_refused(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(TokenizerError, match="position 1 is an unpaired UTF-16 surrogate"):
        tokenizer.encode(text)
    with pytest.raises(TokenizerError, match="position 1 is an unpaired UTF-16 surrogate"):
        CharTokenizer.train(text)
    with pytest.raises(TokenizerError, match="position 1 is an unpaired UTF-16 surrogate"):
        BPETokenizer.train(text, 300)


def test_only_text_can_be_encoded(tokenizer: Tokenizer) -> None:
    with pytest.raises(TypeError, match="encodes str, not bytes"):
        tokenizer.encode(b"abc")  # type: ignore[arg-type]


@pytest.mark.parametrize("outside", [-1, "vocab_size", 2**40])
def test_the_error_names_an_id_outside_the_vocabulary(tokenizer: Tokenizer, outside: int | str) -> None:
    wrong = tokenizer.vocab_size if isinstance(outside, str) else outside
    for decode in (tokenizer.decode, tokenizer.decode_bytes):
        with pytest.raises(TokenizerError) as caught:
            decode([0, 1, wrong, -5])
        assert f"token id {wrong} at position 2" in str(caught.value)
        assert f"ids are 0 to {tokenizer.vocab_size - 1}" in str(caught.value)


@pytest.mark.parametrize("size", [-1, 0, 256])
def test_a_vocabulary_size_below_257_is_refused(size: int) -> None:
    with pytest.raises(TokenizerError, match=rf"vocab_size {size} is too small: .* take 257"):
        BPETokenizer.train(VERSE * 3, size)


def test_a_token_list_must_begin_with_the_256_bytes(bpe: BPETokenizer) -> None:
    for wrong in ([], bpe.tokens[:255], bpe.tokens[1:], bpe.tokens[::-1]):
        with pytest.raises(TokenizerError, match="first 256 tokens are not the 256 bytes"):
            BPETokenizer(wrong)


def test_the_smallest_vocabulary_contains_only_bytes() -> None:
    tokenizer = BPETokenizer.train(VERSE * 3, 257)
    assert tokenizer.vocab_size == 257
    assert tokenizer.encode("aé") == [97, 0xC3, 0xA9]


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(TokenizerError, match="text is empty"):
        CharTokenizer.train("")
    with pytest.raises(TokenizerError, match="text is empty"):
        BPETokenizer.train("", 300)


def test_a_warning_is_logged_if_the_text_is_too_short(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tokenizer = BPETokenizer.train("abc", 4096)
    assert tokenizer.vocab_size == 256 + 2 + 1
    assert caplog.messages == ["the text is too short for a vocabulary of 4096: no pair is left to merge after 259"]


def test_no_warning_is_logged_if_the_text_is_long_enough(caplog: pytest.LogCaptureFixture) -> None:
    BPETokenizer.train("abc", 259)
    assert caplog.messages == []
