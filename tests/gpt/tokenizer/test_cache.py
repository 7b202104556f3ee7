"""A trained tokenizer comes from the cache, if it was trained there on the same text, and is the same."""

from pathlib import Path
from typing import Any

import pytest

from gpt.tokenizer import BPETokenizer, TokenizerError, bpe, cache
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
        path = tmp_path / "bpe.py"
        path.write_text(Path(bpe.__file__).read_text() + "\n")
        monkeypatch.setattr(bpe, "__file__", str(path))
    elif what == "regex":
        monkeypatch.setattr(cache.importlib.metadata, "version", lambda package: "9.9")
    tokenizer = train_bpe_cached(TEXT + "!" * (what == "text"), 281 if what == "size" else 280)
    assert len(trained) == 2
    assert tokenizer.vocab_size == (281 if what == "size" else 280)


@pytest.mark.parametrize("damage", ["empty", "cut short", "one bit", "another file", "folder"])
def test_a_damaged_file_is_not_used(damage: str, trained: list[Any], folder: Path) -> None:
    expected = train_bpe_cached(TEXT, 280).to_dict()
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        flipped = whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]
        path.write_bytes({"empty": b"", "cut short": whole[:-1], "one bit": flipped, "another file": b"{}"}[damage])
    assert train_bpe_cached(TEXT, 280).to_dict() == expected
    assert len(trained) == 2
    if damage != "folder":
        assert path.read_bytes() == whole


def test_without_a_folder_that_can_be_written(folder: Path, trained: list[Any]) -> None:
    folder.parent.mkdir()
    folder.write_text("a file in its place")
    for _ in range(2):
        assert train_bpe_cached(TEXT, 280).vocab_size == 280
    assert len(trained) == 2


def test_a_short_text_is_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MIN_CHARACTERS", len(TEXT) + 1)
    train_bpe_cached(TEXT, 280)
    assert not folder.exists()


@pytest.mark.parametrize(("text", "size"), [("", 280), (TEXT, 256), ("\ud800", 280)])
def test_what_cannot_be_trained_is_refused(text: str, size: int, folder: Path) -> None:
    with pytest.raises(TokenizerError):
        train_bpe_cached(text, size)
    assert not folder.exists()
