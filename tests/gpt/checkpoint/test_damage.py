"""Damaged and hostile files: refused with an error that names the file, or skipped; never wrong numbers or a hang."""

import json
import os
import shutil
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damaged_checkpoints import (
    STEPS,
    Damaged,
    changed,
    header_of,
    load_or_user_error,
    make_run,
    paths,
    write_with_manifest,
)  # fmt: skip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from gpt.checkpoint import MODEL, OPTIMIZER, STATE, TOKENIZER
from gpt.checkpoint.files import MANIFEST, METRICS
from gpt.checkpoint.run_folder import rewind_metrics
from gpt.tokenizer import BPETokenizer, TokenizerError, load_tokenizer
from gpt.weights import build_model
from gpt.weights.huggingface import read_weights

pytestmark = pytest.mark.usefixtures("numpy_backend")

FUZZ = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("damage"))


@pytest.mark.skipif(os.name != "posix", reason="needs pipes and links")
def test_damaged_checkpoints_are_refused_or_skipped(tmp_path: Path) -> None:
    cases = Damaged(tmp_path)
    for seed in range(200):
        cases.check(seed)
    assert cases.outcomes["refused"] > 150  # most runs really are damaged
    assert cases.outcomes["skipped"] > 30
    assert cases.outcomes["none whole"] > 10


# --------------------------------------------------------------------------------------------------
# Invalid contents with a matching manifest


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(
        [2**31, 2**63, 2**64, 10**400, -1, 0, 1e308, 1e-320, "F32", "F64", "BF16", "I64", "C64", [0, 4], [1, 2], "\x00"]
    )
)  # fmt: skip
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3))


@st.composite
def variants(draw: st.DrawFn, value: Any) -> bytes:
    """The JSON of a value in which a few parts are replaced, missing, duplicated or nested very deeply."""
    for _ in range(draw(st.integers(1, 2))):
        way = draw(st.sampled_from(paths(value)[1:] or [()]))
        value = changed(value, way, draw(values | st.just(...)) if way else draw(values))
    text = json.dumps(value)
    if draw(st.integers(0, 9)) == 0:
        text = text.replace('"', "[" * 20_000 + '"', 1)
    if draw(st.integers(0, 9)) == 0 and text.startswith("{"):
        text = text[:-1] + ", " + text[1:]
    return text.encode(errors="surrogatepass")


@pytest.fixture
def one(run_dir: Path, tmp_path: Path) -> Path:
    folder = tmp_path / STEPS[0]
    shutil.copytree(run_dir / STEPS[0], folder)
    return folder


@pytest.mark.parametrize("name", [STATE, TOKENIZER])
@FUZZ
@given(data=st.data())
def test_hostile_json_loads_or_raises_a_user_error(name: str, run_dir: Path, one: Path, data: st.DataObject) -> None:
    value = json.loads((run_dir / STEPS[0] / name).read_text())
    write_with_manifest(one, name, data.draw(variants(value)))
    load_or_user_error(one)


@FUZZ
@given(data=st.data())
def test_a_hostile_manifest_loads_or_raises_a_user_error(run_dir: Path, one: Path, data: st.DataObject) -> None:
    value = json.loads((run_dir / STEPS[0] / MANIFEST).read_text())
    (one / MANIFEST).write_bytes(data.draw(variants(value)))
    load_or_user_error(one)


@st.composite
def safetensors(draw: st.DrawFn, file: Path) -> bytes:
    """A file with a changed header, whose stated length may be wrong, before the same data."""
    header, numbers = header_of(file)
    text = draw(variants(header))
    size = draw(st.sampled_from([len(text)] * 6 + [0, len(text) - 1, len(text) + 1, 2**63, 2**64 - 1]))
    return struct.pack("<Q", size) + text + draw(st.sampled_from([numbers, numbers[:-4], numbers + b"\0" * 4, b""]))


@pytest.mark.parametrize("name", [MODEL, OPTIMIZER])
@FUZZ
@given(data=st.data())
def test_hostile_safetensors_load_or_raise_a_user_error(
    name: str, run_dir: Path, one: Path, data: st.DataObject
) -> None:
    write_with_manifest(one, name, data.draw(safetensors(run_dir / STEPS[0] / name)))
    load_or_user_error(one)


@FUZZ
@given(data=st.data())
def test_hostile_gpt2_weights_load_or_raise_a_value_error(run_dir: Path, tmp_path: Path, data: st.DataObject) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(data.draw(safetensors(run_dir / STEPS[0] / MODEL)))
    with suppress(ValueError):
        config, weights = read_weights(file, n_head=2)
        build_model(config, weights=weights)


def test_a_small_file_that_describes_a_huge_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    wide = {"wte.weight": np.zeros((1, 10**6), np.float32), "wpe.weight": np.zeros((1, 10**6), np.float32)}
    deep = {"wte.weight": np.zeros((1, 640), np.float32), "wpe.weight": np.zeros((1, 640), np.float32)}
    deep |= {f"h.{i}.ln_1.weight": np.zeros(1, np.float32) for i in range(3000)}
    for arrays in (wide, deep):
        save_file(arrays, file)
        with pytest.raises(ValueError, match=r"not the weights of this model: missing [\w., ]+ and \d+ more$"):
            read_weights(file)


@FUZZ
@given(data=st.data())
def test_hostile_tokenizers_load_or_raise_a_tokenizer_error(
    tmp_path: Path, bpe: BPETokenizer, data: st.DataObject
) -> None:
    file = tmp_path / TOKENIZER
    file.write_bytes(data.draw(variants(bpe.to_dict())))
    try:
        tokenizer = load_tokenizer(file)
        assert tokenizer.decode(tokenizer.encode("to be")) == "to be"
    except TokenizerError as error:
        assert "\n" not in str(error)


@FUZZ
@given(lines=st.lists(st.binary(max_size=30) | st.sampled_from([b"[" * 99_999, b'{"step": 1e999}', b'{"step": NaN}'])))
def test_hostile_metrics_lines_are_dropped(tmp_path: Path, lines: list[bytes]) -> None:
    ours = b'{"step": 1}\n'
    (tmp_path / METRICS).write_bytes(ours + b"\n".join(lines))
    rewind_metrics(tmp_path, tmp_path, 1)
    assert (tmp_path / METRICS).read_bytes().startswith(ours)
