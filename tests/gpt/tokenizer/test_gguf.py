"""The tokenizer in a GGUF file's metadata: read, refused and written. The ids are compared in test_byte_level.py."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt.tokenizer import BPETokenizer, CharTokenizer, GPT2Tokenizer, TokenizerError
from gpt.tokenizer.byte_level import ByteLevelTokenizer
from gpt.tokenizer.gguf import from_metadata, to_metadata
from tests.gpt.tokenizer.reference import NAMES, digest, own_tokenizers
from tests.gpt.tokenizer.test_byte_level import REFERENCE, small, trained


def minimal(**changes: Any) -> dict[str, Any]:
    """The metadata of a tokenizer of two letters, some of them changed, or left out where the value is None."""
    entries = {
        "model": "gpt2", "pre": "gpt-2", "tokens": ["a", "b", "ab", "<s>", "<t>", "[PAD5]"],
        "token_type": [1, 1, 1, 3, 4, 5], "merges": ["a b"], "eos_token_id": 3, "bos_token_id": 3,
    } | changes  # fmt: skip
    return {f"tokenizer.ggml.{key}": value for key, value in entries.items() if value is not None}


def test_types_of_tokens_say_which_are_special() -> None:
    tokenizer = from_metadata(minimal())
    assert tokenizer.encode("ab<s><t>") == [2, 4]
    assert tokenizer.encode("ab<s><t>", allow_special=True) == [2, 3, 4]
    assert tokenizer.encode("[PAD5]") == []  # whose bytes are missing, too
    assert tokenizer.decode([2, 3, 4, 5]) == "ab<s><t>"
    assert (tokenizer.vocab_size, tokenizer.eot, tokenizer.bos) == (6, 3, None)
    assert from_metadata(minimal(), vocab_size=8).vocab_size == 8


def test_bos_is_added_where_the_file_says_or_where_the_pre_tokenizer_does() -> None:
    assert from_metadata(minimal(add_bos_token=True)).bos == 3
    assert from_metadata(minimal(pre="llama-bpe")).bos == 3
    assert from_metadata(minimal(pre="llama-bpe", add_bos_token=False)).bos is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "'model' is missing"),
        ({"model": "llama"}, "'model' is 'llama', not gpt2: only byte-level BPE is supported"),
        ({"pre": None}, "'pre' is missing"),
        ({"pre": "default"}, "pre-tokenizer 'default' is not supported: supported are gpt-2, phi-2, smollm"),
        ({"pre": "x" * 9999}, "pre-tokenizer 'x{40}' is not supported"),
        ({"add_eos_token": True}, "'add_eos_token' is true: a token after every text is not supported"),
        ({"tokens": None}, "'tokens' is missing"),
        ({"tokens": ["a"]}, "there are 1 tokens and 6 types of tokens"),
        ({"tokens": ["a", "b", 3, "c", "d", "e"]}, "token 2 is int, not str"),
        ({"tokens": ["a", "b", "ab", "a", "d", "e"]}, "token 3 occurs twice: 'a'"),
        ({"tokens": ["a", "b", "a b", "<s>", "d", "e"]}, "token 'a b' is not written in the characters that stand for"),
        ({"token_type": [1, 1, 1, 3, 4, 6]}, "token 5 is of type 6: supported are 1 to 5"),
        ({"token_type": [1, 1, 1, 3, 4, "1"]}, "token 5 is of type 1: supported are 1 to 5"),
        ({"merges": None}, "'merges' is missing"),
        ({"merges": ["a x"]}, "merge 0 joins or makes 'x', which is not a token"),
        ({"merges": ["ab"]}, "merge 0 is 'ab', not two tokens"),
        ({"eos_token_id": 2**32 - 1}, "an id is outside the vocabulary, whose ids are 0 to 5"),
        ({"eos_token_id": "3"}, "'eos_token_id' is str, not int"),
    ],
)
def test_what_is_damaged_or_not_supported_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=f"tokenizer.ggml.*: {message}") as caught:
        from_metadata(minimal(**changes))
    assert "\n" not in str(caught.value)


values = st.none() | st.integers() | st.text(max_size=3) | st.lists(st.integers(0, 9) | st.text(max_size=3), max_size=7)


@given(key=st.sampled_from(sorted(minimal())), value=values)
def test_any_value_is_accepted_or_raises_tokenizer_error(key: str, value: Any) -> None:
    try:
        from_metadata(minimal() | {key: value})
    except TokenizerError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["own bpe", "own bpe, as GPT-2"])
def test_what_is_written_is_what_llama_cpp_was_given(name: str) -> None:
    assert digest(to_metadata(own_tokenizers()[name])) == REFERENCE[name]["metadata"]


@pytest.mark.parametrize("name", NAMES)
def test_a_tokenizer_that_is_written_is_read_unchanged(name: str) -> None:
    assert from_metadata(to_metadata(trained(name))).to_dict() == trained(name).to_dict()


def test_smollm2_is_written_as_it_was_read(
    smollm2_tokenizer: ByteLevelTokenizer, smollm2_metadata: dict[str, Any]
) -> None:
    written = to_metadata(smollm2_tokenizer)
    assert written == {key: smollm2_metadata[key] for key in written}
    others = {key for key in smollm2_metadata if key.startswith("tokenizer.")} - written.keys()
    assert others == {"tokenizer.ggml.add_space_prefix"}


def test_gpt2_is_written_with_its_ids(gpt2: GPT2Tokenizer) -> None:
    metadata = to_metadata(gpt2)
    assert metadata["tokenizer.ggml.tokens"][15496] == "Hello"
    assert metadata["tokenizer.ggml.merges"][:3] == ["Ġ t", "Ġ a", "h e"]
    assert (metadata["tokenizer.ggml.pre"], metadata["tokenizer.ggml.eos_token_id"]) == ("gpt-2", 50256)
    assert from_metadata(metadata).encode("Hello world") == [15496, 995]


def test_tokenizers_that_llama_cpp_does_not_know_are_refused(bpe: BPETokenizer) -> None:
    with pytest.raises(TokenizerError, match="of type 'char' cannot be written to GGUF, .* --tokenizer bpe, or .* hf"):
        to_metadata(CharTokenizer.train("abc"))
    with pytest.raises(TokenizerError, match="without eos cannot be written to GGUF"):
        to_metadata(small(roles={}))
