"""Weights from Hugging Face's files: the parameter names, and the files that are refused.

test_against_torch.py and test_transformers.py check that the loaded models compute the right numbers.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from gpt.config import GPTConfig, LlamaConfig
from gpt.model import GPT
from gpt.tokenizer import BPETokenizer, GPT2Tokenizer
from gpt.weights import build_model
from gpt.weights.huggingface import INDEX, config_from_entries, is_safetensors, read_weights, write_folder
from gpt.weights.initial import load_initial

CONFIG = {"block_size": 8, "vocab_size": 11, "n_layer": 2, "n_head": 2, "n_embd": 128}
SHARDED = Path(__file__).parent / "transformers" / "llama-sharded"
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


def test_a_file_is_known_by_its_contents(model: GPT, tmp_path: Path) -> None:
    """As in Hugging Face's cache, where a file is named after its hash."""
    save_file(hugging_face_weights(model), tmp_path / "abc")
    (tmp_path / "model.safetensors").write_text("some text, and {")
    assert is_safetensors(tmp_path / "abc") and not is_safetensors(tmp_path / "model.safetensors")


def test_a_damaged_file_is_refused(model: GPT, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(hugging_face_weights(model), path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        read_weights(path)
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path / "none.safetensors")


# --------------------------------------------------------------------------------------------------
# config.json

LLAMA_ENTRIES: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 37, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 16, "rope_theta": 500000.0,
}  # fmt: skip


def test_config_json_is_obeyed() -> None:
    config = config_from_entries(LLAMA_ENTRIES)
    assert config == LlamaConfig(
        block_size=16, vocab_size=37, n_layer=2, n_head=4, n_embd=32, n_kv_head=4, n_hidden=40, rope_base=500000.0,
        norm_eps=1e-6, tied=False,
    )  # fmt: skip
    newer = {**LLAMA_ENTRIES, "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}, "rope_theta": 8.0}
    assert config_from_entries(newer).rope_base == 7.0
    gpt2 = {"model_type": "gpt2", "n_head": 4, "activation_function": "gelu", "layer_norm_epsilon": 1e-6}
    assert config_from_entries(gpt2) == GPTConfig(n_head=4, gelu="none", norm_eps=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mistral"}, "model_type 'mistral' is not supported: gpt2 and llama are"),
        ({"model_type": None}, "model_type 'None' is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported: only silu or swish is"),
        ({"attention_bias": True}, "attention_bias 'True' is not supported: only False is"),
        ({"mlp_bias": True}, "mlp_bias 'True' is not supported"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling .*llama3.* is not supported"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters .*yarn.* is not supported: only rope"),
        ({"rope_parameters": {"factor": 2.0}}, "rope_parameters .*factor.* is not supported"),
        ({"rope_parameters": 3}, "rope_parameters is int, not an object"),
        ({"head_dim": 16}, "head_dim 16 is not supported: only 8 is"),
        ({"quantization_config": {"bits": 4}}, "quantization_config .* is not supported"),
        ({"num_key_value_heads": 3}, "n_head 4 is not divisible by n_kv_head 3"),
        ({"rms_norm_eps": 0}, "norm_eps must be above 0 and below 1, not 0"),
        ({"hidden_size": "32"}, "n_embd must be int, not '32'"),
    ],
)
def test_what_a_llama_does_not_support_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_entries({**LLAMA_ENTRIES, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx 'True' is not supported"),
        ({"scale_attn_weights": False}, "scale_attn_weights 'False' is not supported: only True is"),
        ({"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn 'True' is not supported"),
        ({"add_cross_attention": True}, "add_cross_attention 'True' is not supported"),
        ({"activation_function": "relu"}, "activation_function 'relu' is not supported: only gelu_new or "),
        ({"tie_word_embeddings": False}, "tie_word_embeddings 'False' is not supported"),
        ({"n_inner": 100}, "n_inner 100 is not supported: only 3072 is"),
    ],
)
def test_what_a_gpt2_does_not_support_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_entries({"model_type": "gpt2", **changes})


def test_config_json_beside_the_weights_comes_before_a_guess(
    model: GPT, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_file(hugging_face_weights(model), tmp_path / "model.safetensors")
    assert read_weights(tmp_path)[0].n_head == 2
    assert "no config.json: taken for a GPT-2 with 2 heads, gelu tanh and eps 1e-5" in caplog.text
    caplog.clear()
    entries = {"n_positions": 8, "n_embd": 128, "n_layer": 2, "vocab_size": 11, "n_head": 4, "model_type": "gpt2"}
    (tmp_path / "config.json").write_text(json.dumps(entries))
    for place in (tmp_path, tmp_path / "model.safetensors"):
        assert read_weights(place)[0].n_head == 4
    assert caplog.text == ""
    with pytest.raises(ValueError, match="n_head 8: config.json has 4"):
        read_weights(tmp_path, n_head=8)


# --------------------------------------------------------------------------------------------------
# Several files, padded vocabularies, and folders that are written


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("../outside.safetensors", "'../outside.safetensors' is not the name of a safetensors file in this folder"),
        ("/etc/passwd", "'/etc/passwd' is not the name of a safetensors file"),
        ("missing.safetensors", "missing.safetensors"),
        (7, "weight_map is not an object of file names"),
    ],
)
def test_an_index_leads_to_files_of_its_folder_alone(file: Any, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(SHARDED, folder)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = file
    (folder / INDEX).write_text(json.dumps(index))
    save_file({"model.norm.weight": np.ones(32, np.float32)}, tmp_path / "outside.safetensors")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_weights(folder)


def test_an_index_and_its_files_have_to_agree(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(SHARDED, folder)
    index = json.loads((folder / INDEX).read_text())
    more = {**index["weight_map"], "more": "model-00001-of-00004.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": more}))
    with pytest.raises(ValueError, match="model-00001-of-00004.safetensors: no tensor 'more', which .* has there"):
        read_weights(folder)
    del index["weight_map"]["model.norm.weight"]
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="tensor 'model.norm.weight' is not in model.safetensors.index.json"):
        read_weights(folder)


def test_a_padded_vocabulary_is_kept_and_its_padding_is_no_text(tmp_path: Path, gpt2: GPT2Tokenizer) -> None:
    """The logits are those of all rows, as in transformers."""
    padded = GPT({"block_size": 8, "vocab_size": 50304, "n_layer": 1, "n_head": 1, "n_embd": 64})
    save_file(hugging_face_weights(padded), tmp_path / "model.safetensors")
    loaded = load_initial(str(tmp_path))
    assert loaded.config.vocab_size == loaded.tokenizer.vocab_size == 50304
    assert loaded.tokenizer.encode("Hello world") == gpt2.encode("Hello world") == [15496, 995]
    assert loaded.tokenizer.eot == gpt2.eot
    assert loaded.tokenizer.decode([15496, 50303]) == "Hello"


@pytest.mark.parametrize("type", ["f32", "f16"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_folder_that_is_written_is_read_again(
    kind: str, bias: bool, type: str, tmp_path: Path, bpe: BPETokenizer
) -> None:
    shape: dict[str, Any] = {"block_size": 8, "vocab_size": bpe.vocab_size, "n_layer": 2, "n_head": 2, "n_embd": 16}
    config: Any = GPTConfig(**shape, gelu="none", norm_eps=1e-6, bias=bias)
    if kind == "llama":
        config = LlamaConfig(**shape, n_kv_head=1, n_hidden=24, tied=bias, rope_base=77.0, norm_eps=1e-6)
    model = build_model(config)
    write_folder(tmp_path / "new", config, model.state_dict(), bpe, type)
    loaded = load_initial(str(tmp_path / "new"))
    assert loaded.config == (replace(config, bias=True) if kind == "gpt2" else config)
    assert loaded.tokenizer.encode("lovely day") == bpe.encode("lovely day")
    idx = np.arange(8)[None]
    tolerance = 1e-6 if type == "f32" else 1e-3
    np.testing.assert_allclose(loaded.build_model()(idx, idx)[0].numpy(), model(idx, idx)[0].numpy(), atol=tolerance)


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
