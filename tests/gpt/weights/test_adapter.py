"""Adapters in PEFT's format: read, written, and refused in one line beside another base."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gpt.config import UserError
from gpt.weights import build_model
from gpt.weights.adapter import ADAPTER, ADAPTER_CONFIG, read_adapter
from tests.gpt.test_lora import CONFIGS, MODELS, base_weights
from tests.gpt.weights import make_peft_figures as peft

pytestmark = pytest.mark.usefixtures("numpy_backend")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the Llama's adapter, to be changed."""
    return Path(shutil.copytree(peft.FOLDER / "llama", tmp_path / "adapter"))


def logits_with(folder: Path, name: str) -> np.ndarray:
    """The logits of a small model with an adapter."""
    weights = read_adapter(folder, CONFIGS[name]).merge_into(base_weights(CONFIGS[name]))
    x, y = peft.batch(0, CONFIGS[name].vocab_size)
    return build_model(CONFIGS[name], weights=weights)(x, y)[0].numpy()


@MODELS
def test_an_adapter_of_peft_computes_here_what_it_computes_there(name: str) -> None:
    figures = np.load(peft.FOLDER / f"{name}.npz")
    np.testing.assert_allclose(logits_with(peft.FOLDER / name, name), figures["logits"], rtol=0, atol=2e-5)


@MODELS
def test_an_adapter_of_ours_computes_in_peft_what_it_computes_here(name: str, tmp_path: Path) -> None:
    """The very files that PEFT has loaded, byte for byte."""
    figures = np.load(peft.FOLDER / f"{name}.npz")
    assert peft.adapter_of_ours(tmp_path / "ours", name) == figures["sha256_ours"].tolist()
    np.testing.assert_allclose(logits_with(tmp_path / "ours", name), figures["logits_ours"], rtol=0, atol=2e-5)


@MODELS
def test_the_weights_of_the_base_are_not_changed(name: str) -> None:
    weights = base_weights(CONFIGS[name])
    before = {key: array.copy() for key, array in weights.items()}
    read_adapter(peft.FOLDER / name, CONFIGS[name]).merge_into(weights)
    assert all(np.array_equal(array, before[key]) for key, array in weights.items())


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("peft_type", "IA3", "peft_type 'IA3' is not supported: only LORA is"),
        ("use_dora", True, "use_dora 'True' is not supported"),
        ("use_rslora", True, "use_rslora 'True' is not supported"),
        ("bias", "all", "bias 'all' is not supported: only none is"),
        ("modules_to_save", ["lm_head"], r"modules_to_save .* is not supported"),
        ("alpha_pattern", {"q_proj": 3}, "alpha_pattern .* is not supported"),
        ("an_invention", 1, "an_invention '1' is not supported"),
        ("init_lora_weights", "pissa", "init_lora_weights 'pissa' is not supported: it changes the base's weights"),
        ("r", 0, "r 0 is not a whole number of at least 1"),
        ("r", 8, "is not of rank 8"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(folder: Path, entry: str, value: Any, message: str) -> None:
    entries = json.loads((folder / ADAPTER_CONFIG).read_text())
    (folder / ADAPTER_CONFIG).write_text(json.dumps({**entries, entry: value}))
    with pytest.raises(UserError, match=message) as caught:
        read_adapter(folder, CONFIGS["llama"])
    assert "\n" not in str(caught.value)


def without_one(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: array for name, array in arrays.items() if "layers.0.mlp.down_proj.lora_B" not in name}


def renamed(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("layers.1", "layers.2"): array for name, array in arrays.items()}


def narrower(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: np.ascontiguousarray(a[:, :16]) if "lora_A" in name else a for name, a in arrays.items()}


def integers(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: array.astype(np.int32) for name, array in arrays.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_one, "damaged: h.0.mlp.down_proj has only one of lora_A and lora_B"),
        (renamed, "an adapter of another model: .*layers.2.* is for a layer that the base has not"),
        (narrower, r"an adapter of another model: h.0.mlp.down_proj, with A \(4, 16\) .* has the shape \(32, 40\)"),
        (integers, "is int32: floating numbers are needed"),
        (lambda arrays: {}, "holds no adapter"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(folder: Path, change: Callable[..., Any], message: str) -> None:
    save_file(change(load_file(folder / ADAPTER)), folder / ADAPTER)
    with pytest.raises((UserError, ValueError), match=message) as caught:
        read_adapter(folder, CONFIGS["llama"]).merge_into(base_weights(CONFIGS["llama"]))
    assert "\n" not in str(caught.value)


def test_an_adapter_of_another_kind_of_model_is_refused() -> None:
    with pytest.raises(UserError, match="adapter_model.safetensors: an adapter of another model: base_model.model"):
        read_adapter(peft.FOLDER / "llama", CONFIGS["gpt2"])


@pytest.mark.parametrize("file", [ADAPTER, ADAPTER_CONFIG])
def test_damaged_files_are_refused(folder: Path, file: str) -> None:
    (folder / file).write_bytes((folder / file).read_bytes()[:50])
    with pytest.raises(UserError, match=f"{file}: "):
        read_adapter(folder, CONFIGS["llama"])
    (folder / file).unlink()
    with pytest.raises(UserError, match=f"{file}: (missing|not a complete|cannot be read|No such)"):
        read_adapter(folder, CONFIGS["llama"])
