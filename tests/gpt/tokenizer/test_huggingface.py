"""tokenizer.json of Hugging Face: what is read, refused and written. The ids are compared in test_byte_level.py."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt.tokenizer import GPT2Tokenizer, TokenizerError
from gpt.tokenizer.byte_level import ByteLevelTokenizer
from gpt.tokenizer.huggingface import from_entries, read_tokenizer, to_files
from tests.gpt.tokenizer.reference import NAMES, SPECIAL, digest, own_tokenizers
from tests.gpt.tokenizer.test_byte_level import FOLDER, REFERENCE, trained


def entries_of(name: str) -> dict[str, Any]:
    entries: dict[str, Any] = json.loads((FOLDER / f"trained_{name}.json").read_text(encoding="utf-8"))
    return entries


def minimal(model: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """The entries of a tokenizer of two letters, some of them changed."""
    of_model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    token = {"id": 3, "content": "<|endoftext|>", "special": True}
    entries = {"model": of_model | (model or {}), "added_tokens": [token], "pre_tokenizer": {"type": "ByteLevel"}}
    entries["pre_tokenizer"] |= {"add_prefix_space": False}
    return entries | changes


def template(*before: str, after: str = "") -> dict[str, Any]:
    steps = [{"SpecialToken": {"id": token}} for token in before] + [{"Sequence": {"id": "A"}}]
    steps += [{"SpecialToken": {"id": after}}] if after else []
    return {"type": "TemplateProcessing", "single": steps, "special_tokens": {"<|endoftext|>": {"ids": [3]}}}


# --------------------------------------------------------------------------------------------------
# Reading


def test_a_folder_is_read_with_its_configuration_and_template(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(entries_of("qwen2")))
    assert read_tokenizer(tmp_path).eot == 0  # <|endoftext|>
    config = {"eos_token": {"content": "<|im_end|>"}, "bos_token": "<|im_start|>", "pad_token": None}
    config["chat_template"] = "a"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = read_tokenizer(tmp_path, vocab_size=2000)
    assert tokenizer.roles == {"bos": 3, "eos": 6}
    assert (tokenizer.eot, tokenizer.bos, tokenizer.chat_template, tokenizer.vocab_size) == (6, None, "a", 2000)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert read_tokenizer(tmp_path).chat_template == "{{ messages }}"


def test_bos_comes_from_the_post_processor_or_the_configuration() -> None:
    assert trained("llama-bpe").bos == 1
    assert from_entries(minimal(post_processor=template()), {}).bos is None
    assert from_entries(minimal(post_processor=template("<|endoftext|>")), {}).bos == 3
    sequence = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template("<|endoftext|>")]}
    assert from_entries(minimal(post_processor=sequence), {}).bos == 3
    config = {"add_bos_token": True, "bos_token": "<|endoftext|>"}
    assert from_entries(minimal(), config).bos == 3
    with pytest.raises(TokenizerError, match="there is no bos_token"):
        from_entries(minimal(), {"add_bos_token": True})


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "'model' is missing"),
        (minimal({"type": "Unigram"}), "model type 'Unigram' is not supported: only byte-level BPE is"),
        (minimal({"byte_fallback": True}), "model byte_fallback 'True' is not supported"),
        (minimal({"continuing_subword_prefix": "##"}), "model continuing_subword_prefix '##' is not supported"),
        (minimal({"dropout": 0.1}), "model dropout '0.1' is not supported"),
        (minimal({"vocab": []}), "'vocab' is list, not dict"),
        (minimal({"vocab": {"a": 0, "b": "1", "ab": 2}}), "the id of token 'b' is '1', not a number"),
        (minimal({"vocab": {"a": 0, "b": 0, "ab": 2}}), "two tokens have the same id"),
        (minimal({"vocab": {"a": 0, "b": 1, "ab": -2}}), "an id is outside the vocabulary"),
        (minimal({"vocab": {"a": 0, "b": 1, "ab": 10**15}}), "a vocabulary of 1000000000000001 is not supported"),
        (minimal({"vocab": {"a": 0, "b": 1, "ab": 2, "▁a": 4}}), "token '▁a' is not written in the characters that"),
        (minimal({"vocab": {"a": 0, "b": 1, "ab": 2, "": 4}}), "token '' has 0 bytes: 1 to 1024 are supported"),
        (minimal({"vocab": {"a": 0, "b": 1, "ab": 2, "a" * 9999: 4}}), "has 9999 bytes: 1 to 1024 are supported"),
        (minimal({"vocab": {"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 4}}), "has two ids, 4 and 3"),
        (minimal({"merges": [["a", "b"]] * 2}), "merge 1 occurs twice: 'a b'"),
        (minimal({"merges": ["a c"]}), "merge 0 joins or makes 'c', which is not a token"),
        (minimal({"merges": ["a b c"]}), "merge 0 is 'a b c', not two tokens"),
        (minimal({"merges": [["a", 1]]}), r"merge 0 is \"\['a', 1\]\", not two tokens"),
        (minimal({"merges": [7]}), "merge 0 is '7', not two tokens"),
        (minimal({"merges": "a b"}), "'merges' is str, not list"),
        (minimal(normalizer={"type": "NFC"}), r'normalizer \{"type": "NFC"\} is not supported: only null is'),
        (minimal(pre_tokenizer=None), "pre_tokenizer null is not supported: supported are those of gpt-2, smollm"),
        (minimal(pre_tokenizer={"type": "Metaspace"}), "pre_tokenizer .*Metaspace.* is not supported"),
        (minimal(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True}), "add_prefix_space.* is not supported"),
        (minimal(pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a*)*b"}}), r"\(a\*\)\*b.* is not supported"),
        (minimal(added_tokens=[{"content": "x"}]), "'id' is missing"),
        (minimal(added_tokens=["x"]), "'added_tokens' has 'x', not an object"),
        (minimal(added_tokens=[{"content": "x", "id": 5, "lstrip": True}]), "added token 'x' with lstrip is not"),
        (minimal(added_tokens=[{"content": "x", "id": 5}, {"content": "x", "id": 6}]), "added token 'x' occurs twice"),
        (minimal(post_processor=template(after="<|endoftext|>")), "post_processor .* is not supported: only one token"),
        (minimal(post_processor=template("<|endoftext|>", "<|endoftext|>")), "only one token before a text is"),
        (minimal(post_processor=template("x")), "only one token before a text is"),
        (minimal(post_processor={"type": "BertProcessing"}), "BertProcessing.* is not supported"),
    ],
)
def test_what_is_damaged_or_not_supported_is_refused_by_name(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message) as caught:
        from_entries(entries, {})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_errors_of_a_folder_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: No such file"):
        read_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    for content, message in [
        (b"{", r"tokenizer\.json: not JSON"), (b"[]", r"tokenizer\.json: holds a JSON list"),
        (b"[" * 100_000, r"tokenizer\.json: not JSON"), (b'{"model": 1}', r"tokenizer\.json: 'model' is int"),
    ]:  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(TokenizerError, match=message) as caught:
            read_tokenizer(tmp_path)
        assert str(caught.value).startswith(str(tmp_path))
    path.write_text(json.dumps(minimal()))
    (tmp_path / "tokenizer_config.json").write_text("?")
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json: not JSON"):
        read_tokenizer(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(["model", "added_tokens", "pre_tokenizer", "post_processor", "normalizer", "vocab", "merges"])


@given(key=keys, value=json_values)
def test_any_json_value_is_accepted_or_raises_tokenizer_error(key: str, value: Any) -> None:
    entries = minimal({key: value}) if key in ("vocab", "merges") else minimal() | {key: value}
    try:
        from_entries(entries, {"eos_token": value, "chat_template": value})
    except TokenizerError as error:
        assert "\n" not in str(error)


# --------------------------------------------------------------------------------------------------
# Writing


@pytest.mark.parametrize("name", ["own bpe", "own bpe, as GPT-2", "own char"])
def test_what_is_written_is_what_transformers_was_given(name: str) -> None:
    assert digest(to_files(own_tokenizers()[name])) == REFERENCE[name]["files"]


@pytest.mark.parametrize("name", NAMES)
def test_a_tokenizer_is_written_as_it_was_read(name: str) -> None:
    written, original = to_files(trained(name))["tokenizer.json"], entries_of(name)
    assert from_entries(written, {}).to_dict() == trained(name).to_dict()
    assert written["model"]["vocab"] == original["model"]["vocab"]
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in original["model"]["merges"]]
    assert written["model"]["merges"] == pairs
    assert written["model"]["ignore_merges"] is original["model"]["ignore_merges"]
    assert written["added_tokens"] == sorted(original["added_tokens"], key=lambda token: token["id"])


def test_smollm2_is_written_with_its_template(smollm2_tokenizer: ByteLevelTokenizer) -> None:
    files = to_files(smollm2_tokenizer)
    config = files["tokenizer_config.json"]
    assert [config[f"{role}_token"] for role in ("unk", "bos", "eos")] == SPECIAL
    assert from_entries(files["tokenizer.json"], config).to_dict() == smollm2_tokenizer.to_dict()


def test_gpt2_is_written_with_its_ids(gpt2: GPT2Tokenizer) -> None:
    tokenizer = from_entries(*to_files(gpt2).values())
    text = "Hello world, don't 12345 \n\n\té<|endoftext|>"
    assert tokenizer.encode(text) == gpt2.encode(text)
    assert tokenizer.encode(text, allow_special=True) == gpt2.encode(text, allow_special=True)
    assert (tokenizer.eot, tokenizer.vocab_size) == (50256, 50257)
