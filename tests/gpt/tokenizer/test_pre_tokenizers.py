"""The ways to split a text: no text is lost, and they are found by the names and steps of files."""

from typing import Any

import pytest
import regex
from hypothesis import example, given
from hypothesis import strategies as st

from gpt.tokenizer import TokenizerError
from gpt.tokenizer.pre_tokenizers import PRE_TOKENIZERS, find_by_name, find_by_steps
from tests.gpt.tokenizer.reference import LLAMA3
from tests.gpt.tokenizer.varied_lines import SPACES, varied_lines

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def published(name: str, text: str) -> list[str]:
    """Split a text by the published patterns, one step after the other."""
    if name == "smollm":
        return [word for part in regex.findall(r"\p{N}|\P{N}+", text) for word in regex.findall(GPT2, part)]
    patterns = {"gpt-2": GPT2, "llama-bpe": LLAMA3, "qwen2": LLAMA3.replace("{1,3}", "")}
    return regex.findall(patterns[name], text)


texts = st.text() | st.lists(st.sampled_from([*SPACES, "a", "1", "'ll", "'ſ", "!"])).map("".join)


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
@given(text=texts)
@example(text="  1   \n\n a  ")
def test_every_text_is_split_as_by_the_published_patterns(name: str, text: str) -> None:
    words = regex.findall(PRE_TOKENIZERS[name].pattern, text)
    assert "".join(words) == text
    assert words == published(name, text)


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_varied_lines_are_split_as_by_the_published_patterns(name: str) -> None:
    for line in varied_lines(5, 500, ["<|endoftext|>"]):
        assert regex.findall(PRE_TOKENIZERS[name].pattern, line) == published(name, line)


def test_each_name_stands_for_one_way() -> None:
    names = [name for pre in PRE_TOKENIZERS.values() for name in pre.names]
    assert len(set(names)) == len(names)
    assert [find_by_name(pre.names[0]) for pre in PRE_TOKENIZERS.values()] == list(PRE_TOKENIZERS)
    assert find_by_name("llama3") == "llama-bpe"
    with pytest.raises(TokenizerError, match="pre-tokenizer 'gemma4' is not supported"):
        find_by_name("gemma4")


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_steps_are_found_however_they_are_nested(name: str) -> None:
    steps = list(PRE_TOKENIZERS[name].steps)
    nested: dict[str, Any] = {"type": "Sequence", "pretokenizers": steps}
    assert find_by_steps(nested) == name
    assert find_by_steps({"type": "Sequence", "pretokenizers": [nested]}) == name
    steps[-1] = steps[-1] | {"add_prefix_space": True}
    with pytest.raises(TokenizerError, match="pre_tokenizer .* is not supported"):
        find_by_steps({"type": "Sequence", "pretokenizers": steps})


def test_steps_that_are_nested_too_deeply_are_refused() -> None:
    nested: dict[str, Any] = PRE_TOKENIZERS["gpt-2"].steps[0]
    for _ in range(100):
        nested = {"type": "Sequence", "pretokenizers": [nested]}
    with pytest.raises(TokenizerError, match="is not supported"):
        find_by_steps(nested)
