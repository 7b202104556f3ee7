"""Damaged and hostile files: refused with an error that names the file, or skipped; never wrong numbers or a hang."""

import hashlib
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import tensorgrad as tg
from gpt.checkpoint import MODEL, OPTIMIZER, STATE, TOKENIZER, Checkpoint, load_checkpoint, load_newest, save_checkpoint
from gpt.checkpoint.files import MANIFEST, METRICS
from gpt.checkpoint.run_folder import rewind_metrics
from gpt.config import TrainConfig, UserError
from gpt.tokenizer import BPETokenizer, TokenizerError, load_tokenizer
from gpt.train.build import make_optimizer
from gpt.train.run import new_run
from gpt.train.saver import state_of
from gpt.weights.gpt2 import load_gpt2_weights

pytestmark = pytest.mark.usefixtures("numpy_backend")

FILES = [MODEL, OPTIMIZER, STATE, TOKENIZER, MANIFEST]
STEPS = ("step-000010", "step-000020")
CONFIG: dict[str, Any] = {
    "data": "text.txt", "backend": "numpy", "n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 4, "batch_size": 2,
    "max_iters": 100,
}  # fmt: skip
FUZZ = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints whose arrays differ."""
    folder = tmp_path_factory.mktemp("damage")
    (folder / "text.txt").write_text("to be, or not to be\n" * 30)
    with tg.use_backend("numpy"):
        run = new_run(TrainConfig(**{**CONFIG, "data": str(folder / "text.txt"), "out": str(folder / "run")}))
        for run.step in (10, 20):
            for p in run.model.parameters():
                p.data[...] += 0.5
            for moments in run.optimizer.state:
                for array in moments.values():
                    array[...] = run.step
            save_checkpoint(run.folder, state_of(run), run.model, run.optimizer, run.tokenizer, keep=2)
    return run.folder


@pytest.fixture(scope="module")
def whole(run_dir: Path) -> dict[str, dict[str, bytes]]:
    """The contents of both undamaged checkpoints, by folder name."""
    return {name: contents(load_checkpoint(run_dir / name)) for name in STEPS}


def contents(checkpoint: Checkpoint) -> dict[str, bytes]:
    assert checkpoint.optimizer is not None
    arrays = {**checkpoint.weights, **checkpoint.optimizer["state"]}
    return {"state": repr(checkpoint.state).encode(), **{name: array.tobytes() for name, array in arrays.items()}}


# --------------------------------------------------------------------------------------------------
# Damage


def flip(rng: random.Random, run: Path) -> None:
    file = some_file(rng, run)
    content = bytearray(file.read_bytes())
    for _ in range(rng.choice([1, 1, 2, 50])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def truncate(rng: random.Random, run: Path) -> None:
    file = some_file(rng, run)
    os.truncate(file, rng.randrange(file.stat().st_size))


def extend(rng: random.Random, run: Path) -> None:
    with some_file(rng, run).open("ab") as file:
        file.write(rng.randbytes(rng.randrange(1, 100)))


def overwrite(rng: random.Random, run: Path) -> None:
    file = some_file(rng, run)
    size = rng.choice([file.stat().st_size, rng.randrange(1000)])
    file.write_bytes(rng.choice([bytes(size), rng.randbytes(size)]))


def remove(rng: random.Random, run: Path) -> None:
    some_file(rng, run).unlink()


def swap_within(rng: random.Random, run: Path) -> None:
    """Swap two files of one checkpoint."""
    folder = run / rng.choice(STEPS)
    a, b = rng.sample(FILES, 2)
    swap(folder / a, folder / b)


def swap_between(rng: random.Random, run: Path) -> None:
    """Swap one file, or all but one, between the two checkpoints."""
    for name in rng.sample(FILES, rng.choice([1, len(FILES) - 1])):
        swap(run / STEPS[0] / name, run / STEPS[1] / name)


def swap_folders(rng: random.Random, run: Path) -> None:
    swap(run / STEPS[0], run / STEPS[1])


def replace_by_something_else(rng: random.Random, run: Path) -> None:
    file = some_file(rng, run)
    file.unlink()
    kind = rng.choice(["folder", "loop", "device", "pipe"])
    if kind == "folder":
        file.mkdir()
    elif kind == "loop":
        file.symlink_to(file.name)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    else:
        os.mkfifo(file)


def some_file(rng: random.Random, run: Path) -> Path:
    return run / rng.choice(STEPS) / rng.choice(FILES)


def swap(a: Path, b: Path) -> None:
    aside = a.with_name("aside")
    a.rename(aside)
    b.rename(a)
    aside.rename(b)


DAMAGES: list[Callable[[random.Random, Path], None]] = [
    flip, truncate, extend, overwrite, remove, swap_within, swap_between, swap_folders, replace_by_something_else,
]  # fmt: skip


@pytest.mark.skipif(os.name != "posix", reason="needs pipes and links")
def test_damaged_checkpoints_are_refused_or_skipped(
    run_dir: Path, whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    outcomes = {"refused": 0, "skipped": 0, "none whole": 0, "whole": 0}
    for seed in range(200):
        rng, run = random.Random(seed), tmp_path / str(seed)
        shutil.copytree(run_dir, run)
        for damage in rng.sample(DAMAGES, rng.choice([1, 1, 1, 2])):
            try:
                damage(rng, run)
            except (OSError, ValueError):
                continue  # the first damage left nothing for the second
        for name in STEPS:  # loaded by name: refused, or exactly what was saved
            try:
                assert contents(load_checkpoint(run / name)) == whole[name], seed
                outcomes["whole"] += 1
            except UserError as error:
                assert any(str(error).startswith(f"{run / name / file}: ") for file in FILES), (seed, str(error))
                assert "\n" not in str(error)
                outcomes["refused"] += 1
        try:  # the newest undamaged checkpoint
            checkpoint, damaged = load_newest(run)
            assert contents(checkpoint) == whole[checkpoint.path.name], seed
            assert len(damaged) == (checkpoint.path.name == STEPS[0]), seed
            outcomes["skipped"] += len(damaged)
        except UserError:
            outcomes["none whole"] += 1
    assert outcomes["refused"] > 200  # most runs really are damaged
    assert outcomes["skipped"] > 40
    assert outcomes["none whole"] > 10


# --------------------------------------------------------------------------------------------------
# Invalid contents with a matching manifest


def write_with_manifest(folder: Path, name: str, content: bytes) -> None:
    """Write a file and update its entry in the manifest."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def load_or_user_error(folder: Path) -> None:
    """Load a checkpoint and restore from it: this works, or raises a one-line UserError that names the file."""
    try:
        checkpoint = load_checkpoint(folder)
        model = checkpoint.build_model()
        checkpoint.restore(make_optimizer(model, checkpoint.state.train_config))
    except UserError as error:
        assert str(error).startswith(str(folder))
        assert "\n" not in str(error)


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(
        [2**31, 2**63, 2**64, 10**400, -1, 0, 1e308, 1e-320, "F32", "F64", "BF16", "I64", "C64", [0, 4], [1, 2], "\x00"]
    )
)  # fmt: skip
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3))


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to every part of a JSON value."""
    inside: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inside = list(value.items())
    elif isinstance(value, list):
        inside = list(enumerate(value))
    return [path, *(way for key, part in inside for way in paths(part, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of the value in which the part at that path is replaced by `new`, or removed if `new` is `...`."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(path) == 1 and new is ...:
        del copy[path[0]]
    else:
        copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


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


def header_of(file: Path) -> tuple[dict[str, Any], bytes]:
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


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
    try:
        load_gpt2_weights(file, n_head=2)
    except ValueError as error:
        assert str(error).startswith(str(file))


def test_a_small_file_that_describes_a_huge_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    wide = {"wte.weight": np.zeros((1, 10**6), np.float32), "wpe.weight": np.zeros((1, 10**6), np.float32)}
    deep = {"wte.weight": np.zeros((1, 640), np.float32), "wpe.weight": np.zeros((1, 640), np.float32)}
    deep |= {f"h.{i}.ln_1.weight": np.zeros(1, np.float32) for i in range(3000)}
    for arrays in (wide, deep):
        save_file(arrays, file)
        with pytest.raises(ValueError, match=r"numbers, but the matrices of a model of that shape have [\d,]+$"):
            load_gpt2_weights(file)


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
