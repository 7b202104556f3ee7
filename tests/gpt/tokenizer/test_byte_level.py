"""Tokenizers of published models: the ids are those of transformers, and anything inconsistent is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt.tokenizer import Tokenizer, TokenizerError, load_tokenizer, tokenizer_from_dict
from gpt.tokenizer.byte_level import ByteLevelTokenizer
from gpt.tokenizer.huggingface import from_entries
from tests.gpt.tokenizer.reference import (
    EXAMPLES,
    N_LINES,
    N_TRAINED,
    NAMES,
    SEED,
    SPECIAL,
    THINK,
    hashes,
    own_tokenizers,
)
from tests.gpt.tokenizer.varied_lines import varied_lines

FOLDER = Path(__file__).parent
REFERENCE = json.loads((FOLDER / "reference.json").read_text(encoding="utf-8"))


def trained(name: str) -> ByteLevelTokenizer:
    return from_entries(json.loads((FOLDER / f"trained_{name}.json").read_text(encoding="utf-8")), {})


def compare(tokenizer: Tokenizer, lines: list[str], reference: dict[str, Any]) -> None:
    as_text = [tokenizer.encode(line) for line in lines]
    as_tokens = [tokenizer.encode(line, allow_special=True) for line in lines]
    for i, (text_ids, token_ids, decoded) in zip(EXAMPLES, reference["examples"], strict=True):
        assert as_text[i] == text_ids, repr(lines[i])
        assert as_tokens[i] == token_ids, repr(lines[i])
        assert tokenizer.decode(token_ids, skip_special=True) == decoded
    assert hashes(as_text) == reference["text"]
    assert hashes(as_tokens) == reference["tokens"]


# --------------------------------------------------------------------------------------------------
# The same ids as transformers


def test_ids_of_smollm2_are_those_of_transformers_on_10_000_lines(smollm2_tokenizer: ByteLevelTokenizer) -> None:
    compare(smollm2_tokenizer, varied_lines(SEED, N_LINES, SPECIAL), REFERENCE["SmolLM2"])


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_transformers_for_every_way_to_split_a_text(name: str) -> None:
    compare(trained(name), varied_lines(SEED, N_TRAINED, [*SPECIAL, THINK]), REFERENCE[name])


@pytest.mark.parametrize("name", ["own bpe", "own bpe, as GPT-2", "own char"])
def test_ids_of_own_tokenizers_are_those_of_transformers_after_export(name: str) -> None:
    compare(own_tokenizers()[name], varied_lines(SEED, N_TRAINED, SPECIAL), REFERENCE[name])


# --------------------------------------------------------------------------------------------------
# Encoding and decoding


def small(**changes: Any) -> ByteLevelTokenizer:
    """A tokenizer of the letters a, b and c, in which the bytes of other characters are missing."""
    arguments: dict[str, Any] = {
        "tokens": [b"a", b"b", b"c", b" ", b"ab", b"abc"], "ids": [5, 4, 3, 2, 8, 6], "pre": "gpt-2",
        "special": {"<|end|>": 0, "<|end|>!": 9}, "added": {"<tool>": 1}, "roles": {"bos": 0, "eos": 0},
        "unreachable": {7: b"xyz"}, "vocab_size": 12,
    }  # fmt: skip
    return ByteLevelTokenizer(**arguments | changes)


def test_special_tokens_are_text_unless_they_are_allowed() -> None:
    tokenizer = small()
    assert tokenizer.encode("abc<|end|>ab<tool>") == [6, 8, 1]  # the bytes of <|end|> are missing
    assert tokenizer.encode("abc<|end|>ab<tool>", allow_special=True) == [6, 0, 8, 1]
    assert tokenizer.encode("a<|end|>!", allow_special=True) == [5, 9]  # the longest


def test_a_missing_byte_is_left_out_and_its_neighbors_are_merged_within_a_word() -> None:
    assert small().encode("axb") == [8]
    assert small().encode("a!b") == [5, 4]
    assert small().encode("éa") == [5]


def test_decoding_shows_special_tokens_or_skips_them() -> None:
    ids = [6, 0, 1, 7, 9]
    assert small().decode(ids) == "abc<|end|><tool>xyz<|end|>!"
    assert small().decode(ids, skip_special=True) == "abc<tool>xyz"


def test_ids_without_a_token_decode_to_nothing_and_others_are_refused() -> None:
    assert small().vocab_size == 12
    assert small().decode([6, 10, 11, 6]) == "abcabc"
    with pytest.raises(TokenizerError, match="token id 12 at position 1 is outside the vocabulary: ids are 0 to 11"):
        small().decode([6, 12])


def test_bos_is_the_id_before_a_text_only_where_the_model_expects_one() -> None:
    assert (small().bos, small(add_bos=True).bos, small().eot) == (None, 0, 0)
    assert small(add_bos=True).encode("ab") == [8]


def test_stop_ids_are_those_of_every_known_token_that_ends_an_answer(smollm2_tokenizer: ByteLevelTokenizer) -> None:
    assert smollm2_tokenizer.eot == smollm2_tokenizer.special["<|im_end|>"] == 2
    assert smollm2_tokenizer.stop_ids == {0, 2}
    assert smollm2_tokenizer.special_ids == set(range(17))


@given(text=st.text() | st.sampled_from(["<|im_end|>", "\t \n", "don't 12345", "👩‍👩‍👧"]))
def test_any_text_round_trips(text: str) -> None:
    tokenizer = trained("gpt-2")  # it has every byte
    for allow_special in (False, True):
        assert tokenizer.decode(tokenizer.encode(text, allow_special=allow_special)) == text


def test_a_streamed_answer_shows_no_special_token(smollm2_tokenizer: ByteLevelTokenizer) -> None:
    ids = smollm2_tokenizer.encode("naïve 👩‍👩‍👧<|im_end|>", allow_special=True)
    pieces = [smollm2_tokenizer.decode_bytes([i], skip_special=True) for i in ids]
    assert b"".join(pieces).decode() == "naïve 👩‍👩‍👧"
    assert pieces[-1] == b""


def test_many_spaces_are_encoded() -> None:
    spaces = " " * 1_000_000 + "a"
    assert small().decode(small().encode(spaces)) == spaces


# --------------------------------------------------------------------------------------------------
# Files


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_tokenizer_loads_unchanged(name: str, tmp_path: Path) -> None:
    tokenizer = trained(name)
    loaded = load_tokenizer(tokenizer.save(tmp_path))
    assert isinstance(loaded, ByteLevelTokenizer)
    assert loaded.to_dict() == tokenizer.to_dict()
    lines = varied_lines(1, 50, [*SPECIAL, THINK])
    for allow_special in (False, True):
        for line in lines:
            ids = tokenizer.encode(line, allow_special=allow_special)
            assert loaded.encode(line, allow_special=allow_special) == ids
    assert (loaded.eot, loaded.bos, loaded.stop_ids) == (tokenizer.eot, tokenizer.bos, tokenizer.stop_ids)


def test_smollm2_survives_a_checkpoint(smollm2_tokenizer: ByteLevelTokenizer, tmp_path: Path) -> None:
    loaded = load_tokenizer(smollm2_tokenizer.save(tmp_path))
    assert loaded.to_dict() == smollm2_tokenizer.to_dict()
    text = "I was born in 1985.<|im_end|>"
    assert loaded.encode(text, allow_special=True) == smollm2_tokenizer.encode(text, allow_special=True)


def test_what_is_inconsistent_is_refused() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"pre": "(a*)*b"}, r"'pre' is '\(a\*\)\*b', not gpt-2, smollm, llama-bpe, qwen2"),
        ({"ids": [5, 4]}, "there are 6 tokens and 2 ids"),
        ({"tokens": [], "ids": []}, "there are 0 tokens"),
        ({"tokens": [b"a", b"b", b"c", b" ", b"ab", b"ab"]}, "one token twice"),
        ({"tokens": [b"a", b"b", b"c", b" ", b"ab", b""]}, "an empty token"),
        ({"ids": [5, 4, 3, 2, 8, 8]}, "two tokens have the same id"),
        ({"ids": [5, 4, 3, 2, 8, 0]}, "two tokens have the same id"),
        ({"ids": [5, 4, 3, 2, 8, "6"]}, "an id is outside the vocabulary, whose ids are 0 to 11"),
        ({"ids": [5, 4, 3, 2, 8, 12]}, "an id is outside"),
        ({"roles": {"eos": -1}}, "an id is outside"),
        ({"roles": {"end": 1}}, "'roles' has 'end': the roles are bos, eos, unk, pad"),
        ({"added": {"<|end|>": 1}}, "one special token has two"),
        ({"added": {"": 1}}, "a special token is empty"),
        ({"added": {"\ud800": 1}}, "unpaired UTF-16 surrogate"),
        ({"added": {f"<{i}>": i + 20 for i in range(10_001)}, "vocab_size": 20_000}, "more than 10000 special tokens"),
        ({"vocab_size": 10**12}, "a vocabulary of 1000000000000 is not supported: 1 to 1048576 are"),
        ({"vocab_size": None, "special": {"<|end|>": 10**12}, "roles": {}}, "a vocabulary of 1000000000001"),
    ]  # fmt: skip
    for changes, message in wrong:
        with pytest.raises(TokenizerError, match=message) as caught:
            small(**changes)
        assert "\n" not in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=6,
)


@given(key=st.sampled_from(sorted(small().to_dict())), value=json_values)
def test_any_json_value_is_accepted_or_raises_tokenizer_error(key: str, value: Any) -> None:
    try:
        tokenizer = tokenizer_from_dict(small().to_dict() | {key: value})
    except TokenizerError:
        return
    assert tokenizer_from_dict(tokenizer.to_dict()).to_dict() == tokenizer.to_dict()
