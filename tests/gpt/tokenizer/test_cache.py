"""A trained tokenizer comes from the cache, if it was trained there on the same text, and is the same."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from gpt.tokenizer import BPETokenizer, TokenizerError, cache
from gpt.tokenizer.cache import train_bpe_cached

TEXT = "the quick brown fox jumps over the lazy dog\n" * 30


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of tokenizers in a cache, in which every text is long enough."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cache, "MIN_CHARACTERS", 0)
    return tmp_path / "tensorgrad" / "tokenizers"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The texts that were trained on."""
    texts = []
    train = BPETokenizer.train

    def record(text: str, vocab_size: int) -> BPETokenizer:
        texts.append(text)
        return train(text, vocab_size)

    monkeypatch.setattr(BPETokenizer, "train", record)
    return texts


def test_the_second_time_it_is_read(trained: list[Any], folder: Path) -> None:
    tokenizers = [train_bpe_cached(TEXT, 280) for _ in range(3)]
    assert trained == [TEXT]
    assert {str(tokenizer.to_dict()) for tokenizer in tokenizers} == {str(BPETokenizer.train(TEXT, 280).to_dict())}
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("what", ["text", "size", "code", "regex"])
def test_it_is_trained_again_where_anything_differs(
    what: str, trained: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train_bpe_cached(TEXT, 280)
    if what == "code":
        shutil.copytree(Path(cache.__file__).parent, tmp_path / "code", ignore=shutil.ignore_patterns("__pycache__"))
        with (tmp_path / "code" / "bpe.py").open("a") as file:
            file.write("\n")
        monkeypatch.setattr(cache, "__file__", str(tmp_path / "code" / "cache.py"))
    elif what == "regex":
        monkeypatch.setattr(cache.importlib.metadata, "version", lambda package: "9.9")
    tokenizer = train_bpe_cached(TEXT + "!" * (what == "text"), 281 if what == "size" else 280)
    assert len(trained) == 2
    assert tokenizer.vocab_size == (281 if what == "size" else 280)


def test_a_short_text_is_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MIN_CHARACTERS", len(TEXT) + 1)
    train_bpe_cached(TEXT, 280)
    assert not folder.exists()


@pytest.mark.parametrize(("text", "size"), [("", 280), (TEXT, 256), ("\ud800", 280)])
def test_what_cannot_be_trained_is_refused(text: str, size: int, folder: Path) -> None:
    with pytest.raises(TokenizerError):
        train_bpe_cached(text, size)
    assert not folder.exists()
