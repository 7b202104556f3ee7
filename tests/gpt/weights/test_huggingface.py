"""Weights from Hugging Face's files: the parameter names, and the files that are refused.

test_against_torch.py and test_transformers.py check that the loaded models compute the right numbers.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from gpt.model import GPT
from gpt.weights import build_model
from gpt.weights.huggingface import read_weights

CONFIG = {"block_size": 8, "vocab_size": 11, "n_layer": 2, "n_head": 2, "n_embd": 128}
MATRICES = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


@pytest.fixture
def model() -> GPT:
    return GPT(CONFIG)


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., GPT]:
    def load(arrays: dict[str, np.ndarray], **options: int) -> GPT:
        path = tmp_path / "model.safetensors"
        save_file(arrays, path, metadata={"format": "pt"})
        config, weights = read_weights(path, **options)
        return build_model(config, weights=weights)

    return load


def hugging_face_weights(model: GPT) -> dict[str, np.ndarray]:
    """The model's weights in Hugging Face's layout."""
    return {
        name: np.ascontiguousarray(array.T if name.endswith(MATRICES) else array)
        for name, array in model.state_dict().items()
    }


def assert_same_model(model: GPT, loaded: GPT) -> None:
    assert loaded.config.to_dict() == model.config.to_dict()
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(loaded.state_dict()[name], array, err_msg=name)
        assert loaded.state_dict()[name].dtype == np.float32


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_parameter_names_with_and_without_prefix_are_loaded(prefix: str, model: GPT, load: Callable) -> None:
    assert_same_model(model, load({prefix + name: array for name, array in hugging_face_weights(model).items()}))


def test_attention_masks_and_the_tied_head_are_ignored(model: GPT, load: Callable) -> None:
    arrays = hugging_face_weights(model)
    for layer in range(2):
        arrays[f"h.{layer}.attn.bias"] = np.tril(np.ones((1, 1, 8, 8), np.float32))
        arrays[f"h.{layer}.attn.masked_bias"] = np.array(-1e4, np.float32)
    arrays["lm_head.weight"] = arrays["wte.weight"].copy()
    assert_same_model(model, load(arrays))


def test_half_precision_weights_are_converted_to_float32(model: GPT, load: Callable) -> None:
    arrays = {name: array.astype(np.float16) for name, array in hugging_face_weights(model).items()}
    loaded = load(arrays)
    assert all(array.dtype == np.float32 for array in loaded.state_dict().values())
    expected = model.wte.weight.numpy().astype(np.float16)
    np.testing.assert_array_equal(loaded.wte.weight.numpy(), expected)


def test_the_number_of_heads_is_deduced_or_given(model: GPT, load: Callable) -> None:
    assert load(hugging_face_weights(model), n_head=8).config.n_head == 8
    narrow = GPT({**CONFIG, "n_embd": 32})
    with pytest.raises(ValueError, match="n_embd 32 is not a multiple of 64: give n_head"):
        load(hugging_face_weights(narrow))
    assert_same_model(narrow, load(hugging_face_weights(narrow), n_head=2))


def test_an_untied_head_is_refused(model: GPT, load: Callable) -> None:
    head = model.wte.weight.numpy() + 1
    with pytest.raises(ValueError, match="lm_head.weight differs"):
        load({**hugging_face_weights(model), "lm_head.weight": head})


def test_weights_of_other_models_are_refused(model: GPT, load: Callable) -> None:
    arrays = hugging_face_weights(model)
    with pytest.raises(ValueError, match="no matrix wte.weight"):
        load({"embed.weight": arrays["wte.weight"]})
    with pytest.raises(ValueError, match=r"unexpected transformer\.h\.0\.attn\.rotary"):
        load({**arrays, "h.0.attn.rotary": np.ones(2, np.float32)})
    del arrays["h.1.ln_2.weight"]
    with pytest.raises(ValueError, match=r"missing transformer\.h\.1\.ln_2\.weight$"):
        load(arrays)


def test_a_damaged_file_is_refused(model: GPT, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(hugging_face_weights(model), path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        read_weights(path)
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path / "none.safetensors")


BFLOAT16 = """
import json, struct, sys
from pathlib import Path
if BLOCKED:
    sys.modules["ml_dtypes"] = None
from gpt.checkpoint.files import read_arrays
header = json.dumps({"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
path = Path(sys.argv[1])
path.write_bytes(struct.pack("<Q", len(header)) + header + b"\\x80\\x3f\\x00\\x40")
try:
    print(read_arrays(path)["w"].astype("float32").tolist())
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("blocked", "expected"),
    [(False, "[1.0, 2.0]"), (True, "data type 'bfloat16' not understood: pip install ml_dtypes")],
)
def test_bfloat16_is_read_if_ml_dtypes_is_installed(blocked: bool, expected: str, tmp_path: Path) -> None:
    pytest.importorskip("ml_dtypes")
    program = BFLOAT16.replace("BLOCKED", str(blocked))
    command = [sys.executable, "-c", program, str(tmp_path / "w.safetensors")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == expected
