"""tokenizer.json: saved atomically, loaded unchanged, and refused if it is damaged."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt.tokenizer import (
    BPETokenizer,
    CharTokenizer,
    Tokenizer,
    TokenizerError,
    base,
    load_tokenizer,
    tokenizer_from_dict,
)
from gpt.tokenizer.patterns import GPT2_PATTERN, GPT4_PATTERN

VERSE = "Shall I compare thee to a summer's day?\nThou art more lovely and more temperate:\n"


def test_a_saved_tokenizer_loads_unchanged(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tokenizer.save(tmp_path / "run")
    assert path == tmp_path / "run" / "tokenizer.json"
    for place in (path, path.parent, str(path.parent)):
        loaded = load_tokenizer(place)
        assert type(loaded) is type(tokenizer)
        assert loaded.to_dict() == tokenizer.to_dict()
        assert loaded.encode(VERSE) == tokenizer.encode(VERSE)
    assert [file.name for file in path.parent.iterdir()] == ["tokenizer.json"]


@pytest.mark.parametrize("pattern", [GPT2_PATTERN, GPT4_PATTERN], ids=["gpt2", "gpt4"])
def test_the_pattern_is_saved(pattern: str, tmp_path: Path) -> None:
    tokenizer = BPETokenizer.train(VERSE * 3, 300, pattern)
    path = tokenizer.save(tmp_path)
    assert json.loads(path.read_text())["pattern"] == pattern
    assert load_tokenizer(path).encode("day?\n1234567") == tokenizer.encode("day?\n1234567")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, bpe: BPETokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    old = CharTokenizer.train(VERSE)
    path = old.save(tmp_path)

    def no_space(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        bpe.save(tmp_path)
    assert load_tokenizer(path).to_dict() == old.to_dict()
    assert list(tmp_path.iterdir()) == [path]


def test_a_save_never_writes_into_the_old_file(tmp_path: Path, bpe: BPETokenizer) -> None:
    path = CharTokenizer.train(VERSE).save(tmp_path)
    old = path.read_bytes()
    with path.open("rb") as reader:
        bpe.save(tmp_path)
        assert reader.read() == old
    assert load_tokenizer(path).to_dict() == bpe.to_dict()


def test_a_file_too_large_to_load_is_not_saved(
    tmp_path: Path, bpe: BPETokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bpe.save(tmp_path)
    monkeypatch.setattr(base, "MAX_FILE_BYTES", path.stat().st_size)
    assert load_tokenizer(path).to_dict() == bpe.to_dict()
    monkeypatch.setattr(base, "MAX_FILE_BYTES", path.stat().st_size - 1)
    with pytest.raises(TokenizerError, match="more than .* bytes"):
        load_tokenizer(path)
    path.unlink()
    with pytest.raises(TokenizerError, match="would take more than"):
        bpe.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def bpe_entries(**changes: Any) -> dict[str, Any]:
    learned = [base64.b64encode(token).decode() for token in (b"ab", b"abc")]
    entries = {"version": 1, "type": "bpe", "pattern": GPT4_PATTERN, "tokens": learned} | changes
    return {key: value for key, value in entries.items() if value is not None}


def char_entries(**changes: Any) -> dict[str, Any]:
    return {"version": 1, "type": "char", "characters": "abc"} | changes


def test_valid_entries_load() -> None:
    assert tokenizer_from_dict(char_entries()).encode("cab") == [2, 0, 1]
    assert tokenizer_from_dict(bpe_entries()).encode("abc ab") == [257, 32, 256]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "holds a JSON list, not an object"),
        (None, "holds a JSON NoneType, not an object"),
        ({}, "'version' is missing"),
        (bpe_entries(version=2), "'version' is not 1"),
        (bpe_entries(version=True), "'version' is bool, not int"),
        (bpe_entries(type=None), "'type' is missing"),
        (bpe_entries(type="x" * 9999), "'type' is 'xxxxxxxxxxxxxxxxxxxx', not char, bpe, gpt2 or byte-level"),
        (bpe_entries(type=["bpe"]), "'type' is list, not str"),
        (bpe_entries(tokens=None), "'tokens' is missing"),
        (bpe_entries(tokens="YWI="), "'tokens' is str, not list"),
        (bpe_entries(tokens=["YWI=", "?"]), "token 257 in 'tokens' is not base64"),
        (bpe_entries(tokens=["YWI"]), "token 256 in 'tokens' is not base64"),
        (bpe_entries(tokens=["é"]), "token 256 in 'tokens' is not base64"),
        (bpe_entries(tokens=[7]), "token 256 in 'tokens' is not base64"),
        (bpe_entries(tokens=["YWI=", "YWI="]), "an empty token, or one token twice"),
        (bpe_entries(tokens=["YQ=="]), "an empty token, or one token twice"),
        (bpe_entries(tokens=[""]), "an empty token, or one token twice"),
        (bpe_entries(pattern=None), "'pattern' is missing"),
        (bpe_entries(pattern="(a*)*b"), "'pattern' is neither GPT-2's nor GPT-4's"),
        (char_entries(characters=""), "there are no characters"),
        (char_entries(characters="aab"), "not sorted and distinct"),
        (char_entries(characters="ba"), "not sorted and distinct"),
        (char_entries(characters="a\ud800"), "an unpaired UTF-16 surrogate"),
        (char_entries(characters=["a"]), "'characters' is list, not str"),
    ],
)
def test_the_error_for_a_damaged_file_names_the_file_and_the_problem(
    entries: Any, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 150


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"version": 1' + b"0" * 5000 + b"}", b"\x80\x04K\x01."],
    ids=["empty", "truncated", "not UTF-8", "nested", "long number", "pickle"],
)
def test_the_error_for_invalid_json_names_the_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match="tokenizer.json: not JSON "):
        load_tokenizer(path)


def test_a_file_truncated_anywhere_is_refused(tmp_path: Path) -> None:
    path = BPETokenizer.train("abcabc", 260).save(tmp_path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(TokenizerError, match="not JSON"):
            load_tokenizer(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(
    entries=st.sampled_from([bpe_entries(), char_entries()]),
    key=st.sampled_from(["version", "type", "pattern", "tokens", "characters", "more"]),
    value=json_values,
)
def test_any_json_value_is_accepted_or_raises_tokenizer_error(entries: dict[str, Any], key: str, value: Any) -> None:
    """No JSON value raises anything but TokenizerError."""
    try:
        tokenizer = tokenizer_from_dict(entries | {key: value})
    except TokenizerError:
        return
    assert tokenizer_from_dict(tokenizer.to_dict()).to_dict() == tokenizer.to_dict()


def test_the_error_for_a_missing_file_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: No such file"):
        load_tokenizer(tmp_path)
