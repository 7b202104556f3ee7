"""GGUF files: read as the package gguf reads them, and written so that it reads the same."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt.config import GPTConfig, LlamaConfig, UserError
from gpt.tokenizer import BPETokenizer, CharTokenizer, TokenizerError
from gpt.weights import build_model
from gpt.weights.gguf import TYPES, dequantize, read_model, rotated_in_halves, write_model
from gpt.weights.gguf_file import TYPES as STORED_TYPES
from gpt.weights.gguf_file import read_gguf
from gpt.weights.initial import load_initial
from tensorgrad import QuantizedArray, quantize

gguf = pytest.importorskip("gguf")
pytestmark = pytest.mark.usefixtures("numpy_backend")

SHAPE: dict[str, Any] = {"block_size": 8, "n_layer": 2, "n_head": 4, "n_embd": 32}
LLAMA: dict[str, Any] = {**SHAPE, "n_kv_head": 2, "n_hidden": 64}
CONFIGS = {
    "llama": LlamaConfig(vocab_size=280, **LLAMA, rope_base=500.0, norm_eps=1e-6),
    "untied": LlamaConfig(vocab_size=280, **LLAMA, tied=False),
    "gpt2": GPTConfig(vocab_size=280, **SHAPE, norm_eps=1e-6),
}


@pytest.fixture(scope="module")
def tokenizer() -> BPETokenizer:
    return BPETokenizer.train("Shall I compare thee to a summer's day?\n" * 4, 280)


@pytest.fixture
def write(tmp_path: Path, tokenizer: BPETokenizer) -> Callable[..., Path]:
    def write(config: GPTConfig | LlamaConfig, weights: dict, type: str = "f32") -> Path:
        path = tmp_path / f"{type}.gguf"
        write_model(path, config, weights, tokenizer, type)
        return path

    return write


def weights_of(config: GPTConfig | LlamaConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=a.shape).astype(np.float32) for name, a in build_model(config).state_dict().items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_written_is_read_again(name: str, write: Callable, tokenizer: BPETokenizer) -> None:
    weights = weights_of(CONFIGS[name])
    config, found, read = read_model(write(CONFIGS[name], weights))
    assert config == CONFIGS[name]
    assert found.keys() == weights.keys()
    for key, array in weights.items():
        np.testing.assert_array_equal(found[key], array, err_msg=key)
    text = "a summer's day"
    assert (read.vocab_size, read.eot, read.encode(text)) == (280, 279, tokenizer.encode(text))


@pytest.mark.parametrize("type", TYPES)
def test_the_package_gguf_reads_the_same(type: str, write: Callable) -> None:
    """Names, shapes, types and values, with the rows of queries and keys in llama.cpp's order, written out here."""
    config, path = CONFIGS["llama"], write(CONFIGS["llama"], weights := weights_of(CONFIGS["llama"]), type)
    reader = gguf.GGUFReader(path)
    assert reader.get_field("llama.attention.head_count_kv").contents() == 2
    assert reader.get_field("general.architecture").contents() == "llama"
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 2 + 9 * config.n_layer
    assert tensors["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    for theirs, ours in (("blk.1.ffn_down", "h.1.mlp.down_proj"), ("blk.0.attn_q", "h.0.attn.q_proj")):
        tensor, expected = tensors[f"{theirs}.weight"], weights[f"{ours}.weight"]
        if theirs.endswith("attn_q"):  # of a head of 8 rows: 0, 4, 1, 5, 2, 6, 3, 7
            heads = [expected[first : first + 8] for first in (0, 8, 16, 24)]
            expected = np.concatenate([head[i::4] for head in heads for i in range(4)])
        assert tensor.tensor_type.name == type.upper()
        kind = gguf.GGMLQuantizationType[type.upper()]
        read = gguf.quants.dequantize(tensor.data, kind)
        theirs = gguf.quants.dequantize(gguf.quants.quantize(expected, kind), kind)
        if type == "q8_0":  # with a better choice of scales
            assert np.square(read - expected).sum() < np.square(theirs - expected).sum()
            np.testing.assert_array_equal(quantize(read, type).dequantize(), read)
        else:
            np.testing.assert_array_equal(read, theirs)


@pytest.mark.parametrize("type", [kind.name for kind in STORED_TYPES.values()])
def test_every_type_is_dequantised_as_gguf_does(type: str) -> None:
    kind = gguf.GGMLQuantizationType[type]
    if type.endswith("_K"):  # which gguf cannot make; scales of ordinary size
        blocks = np.random.default_rng(1).integers(256, size=(3, 2 * gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
        scale = np.frombuffer(np.array([0.01, 0.02], np.float16).tobytes(), np.uint8)
        size = gguf.GGML_QUANT_SIZES[kind][1]
        for first in (0, size):
            at = first if type == "Q4_K" else first + size - 4
            blocks[:, at : at + 4] = scale
    else:
        numbers = np.random.default_rng(1).normal(size=(3, 512)).astype(np.float32)
        blocks = gguf.quants.quantize(numbers, kind).view(np.uint8)
    expected = gguf.quants.dequantize(blocks.view(np.float32 if type == "F32" else np.uint8), kind)
    np.testing.assert_array_equal(dequantize(type, blocks), expected)


def test_matrices_stay_quantised_unless_asked_otherwise(write: Callable) -> None:
    path = write(CONFIGS["llama"], weights_of(CONFIGS["llama"]), "q4_1")
    as_stored = load_initial(str(path)).weights
    name = "h.0.attn.k_proj.weight"
    assert isinstance(as_stored[name], QuantizedArray) and as_stored[name].type == "q4_1"
    assert not isinstance(as_stored["norm_f.weight"], QuantizedArray)
    np.testing.assert_array_equal(load_initial(str(path), quantize="none").weights[name], as_stored[name].dequantize())
    assert load_initial(str(path), quantize="q8_0").weights[name].type == "q8_0"
    with pytest.raises(UserError, match="quantize 'q5' is unknown: choose none, file, q8_0"):
        load_initial(str(path), quantize="q5")


def test_biases_that_gpt2_lacks_are_written_as_zeros(write: Callable) -> None:
    config = GPTConfig(vocab_size=280, **SHAPE, bias=False)
    found, weights, _ = read_model(write(config, weights_of(config)))
    assert found.bias and not weights["h.0.attn.c_attn.bias"].any()


def test_a_rotation_of_halves_is_the_same_attention_as_one_of_pairs() -> None:
    rows = np.arange(16, dtype=np.uint8)[:, None]
    assert rotated_in_halves(rows, 8)[:, 0].tolist() == [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]


def test_what_gguf_cannot_express_is_refused(tmp_path: Path, write: Callable) -> None:
    exact = GPTConfig(vocab_size=280, **SHAPE, gelu="none")
    with pytest.raises(ValueError, match="gelu none cannot be written to GGUF"):
        write(exact, weights_of(exact))
    narrow = LlamaConfig(vocab_size=280, **{**LLAMA, "n_embd": 24})
    with pytest.raises(ValueError, match=r"wte.weight \(280, 24\) cannot be quantised"):
        write(narrow, weights_of(narrow), "q8_0")
    with pytest.raises(TokenizerError, match="'char' cannot be written to GGUF"):
        write_model(tmp_path / "x", CONFIGS["llama"], weights_of(CONFIGS["llama"]), CharTokenizer("ab"))
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------
# Files that are refused


def entry(key: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value


def header(*entries: bytes, n_tensors: int = 0, tensors: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, len(entries)) + b"".join(entries) + tensors


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return struct.pack("<Q", len(name)) + name.encode() + sizes + struct.pack("<IQ", kind, offset)


ONE = entry("a", 4, struct.pack("<I", 1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a GGUF file: it is empty"),
        (b"GGML" + bytes(40), "not a GGUF file: it does not begin with GGUF"),
        (header(version=1), "GGUF version 1 is not supported: 2 and 3 are"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(16), "GGUF version 50331648 is not supported"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), "9223372036854775808 entries at 24 would go beyond the end"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "9223372036854775808 entries at 24 would go beyond the end"),
        (header(struct.pack("<Q", 2**62) + bytes(20)), "4611686018427387904 bytes at 32 would go beyond the end"),
        (header(entry("a", 9, struct.pack("<IQ", 4, 2**60))), "an array of 1152921504606846976 entries"),
        (header(entry("a", 9, struct.pack("<IQ", 4, 2**20))), "1048576 entries at 49 would go beyond the end"),
        (header(entry("a", 9, struct.pack("<IQ", 9, 1) + bytes(20))), "an array of type 9 in the metadata"),
        (header(entry("a", 77, bytes(20))), "type 77 of an entry of the metadata is unknown"),
        (header(ONE, ONE), "entry 'a' of the metadata occurs twice"),
        (header(n_tensors=1, tensors=tensor("t", (2**62,))), r"'t', F32 \(4611686018427387904,\), is not inside"),
        (header(n_tensors=1, tensors=tensor("t", (33, 2), 8)), r"tensor 't' of type Q8_0 has shape \(2, 33\)"),
        (header(n_tensors=1, tensors=tensor("t", (1,) * 5)), "tensor 't' has 5 dimensions"),
        (header(n_tensors=1, tensors=tensor("t", (32,), 13)), "tensor 't' is of type Q5_K: supported are F32, F16, "),
        (header(n_tensors=1, tensors=tensor("t", (1,), offset=8) + bytes(99)), r"'t', F32 \(1,\), is not inside"),
        (header(entry("general.alignment", 4, struct.pack("<I", 48))), "general.alignment 48 is not a power of two"),
    ],
)  # fmt: skip
def test_damaged_headers_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_gguf(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("general.architecture", "mamba", "general.architecture 'mamba' is not supported: llama and gpt2 are"),
        ("llama.rope.scaling.type", "yarn", "llama.rope.scaling.type 'yarn' is not supported: only 'none' is"),
        ("llama.expert_count", 8, "llama.expert_count '8' is not supported: only 0 is"),
        ("llama.rope.dimension_count", 4, "llama.rope.dimension_count 4 is not supported"),
        ("llama.block_count", 3, "missing blk.2.attn_norm.weight, "),
        ("llama.block_count", 10**9, "1000000000 layers cannot be in 20 tensors"),
        ("llama.embedding_length", "wide", "llama.embedding_length is 'wide': a int is needed"),
        ("llama.feed_forward_length", 32, "has shape"),
        ("llama.feed_forward_length", 2**31, "numbers, but the matrices of a model of that shape have"),
        ("tokenizer.ggml.pre", "jais", "pre-tokenizer 'jais' is not supported"),
    ],
)
def test_models_that_are_not_supported_are_refused_by_name(
    key: str, value: Any, message: str, write: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpt.weights import gguf as module

    path = write(CONFIGS["llama"], weights_of(CONFIGS["llama"]))
    read = module.read_gguf

    def changed(path: Path) -> Any:
        file = read(path)
        file.metadata[key] = value
        return file

    monkeypatch.setattr(module, "read_gguf", changed)
    with pytest.raises(UserError, match=message) as error:
        load_initial(str(path)).build_model()
    assert str(path) in str(error.value) and "\n" not in str(error.value)
