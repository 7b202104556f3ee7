"""Damaged and hostile files: each refused by name or skipped, and never wrong numbers, a crash or a wait."""

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
    """A run of two checkpoints, with different numbers in them."""
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
    """Every number of both, by the name of the folder."""
    return {name: numbers(load_checkpoint(run_dir / name)) for name in STEPS}


def numbers(checkpoint: Checkpoint) -> dict[str, bytes]:
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
    """Two files of one checkpoint change places."""
    folder = run / rng.choice(STEPS)
    a, b = rng.sample(FILES, 2)
    swap(folder / a, folder / b)


def swap_between(rng: random.Random, run: Path) -> None:
    """One file, or all but one, of one checkpoint in the place of the other's."""
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
def test_200_damaged_checkpoints(run_dir: Path, whole: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    outcomes = {"refused": 0, "skipped": 0, "none whole": 0, "whole": 0}
    for seed in range(200):
        rng, run = random.Random(seed), tmp_path / str(seed)
        shutil.copytree(run_dir, run)
        for damage in rng.sample(DAMAGES, rng.choice([1, 1, 1, 2])):
            try:
                damage(rng, run)
            except (OSError, ValueError):
                continue  # the second one found nothing left to damage
        for name in STEPS:  # by its name: refused, or exactly what was saved
            try:
                assert numbers(load_checkpoint(run / name)) == whole[name], seed
                outcomes["whole"] += 1
            except UserError as error:
                assert any(str(error).startswith(f"{run / name / file}: ") for file in FILES), (seed, str(error))
                assert "\n" not in str(error)
                outcomes["refused"] += 1
        try:  # the newest that is whole
            checkpoint, damaged = load_newest(run)
            assert numbers(checkpoint) == whole[checkpoint.path.name], seed
            assert len(damaged) == (checkpoint.path.name == STEPS[0]), seed
            outcomes["skipped"] += len(damaged)
        except UserError:
            outcomes["none whole"] += 1
    assert outcomes["refused"] > 200  # the damage is real
    assert outcomes["skipped"] > 40
    assert outcomes["none whole"] > 10


# --------------------------------------------------------------------------------------------------
# Contents that the manifest agrees with, and that make no sense


def agree(folder: Path, name: str, content: bytes) -> None:
    """Write a file and make the manifest agree with it."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def use(folder: Path) -> None:
    """Whatever a program does with a checkpoint: it works, or it is a UserError of one line that names a file."""
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
    """The way to every part of a JSON value."""
    inside: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inside = list(value.items())
    elif isinstance(value, list):
        inside = list(enumerate(value))
    return [path, *(way for key, part in inside for way in paths(part, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The value with another one in that place; `...` leaves it out."""
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
    """The JSON of a value in which a few parts are others, missing, there twice, or nested without end."""
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
def test_hostile_json(name: str, run_dir: Path, one: Path, data: st.DataObject) -> None:
    value = json.loads((run_dir / STEPS[0] / name).read_text())
    agree(one, name, data.draw(variants(value)))
    use(one)


@FUZZ
@given(data=st.data())
def test_a_hostile_manifest(run_dir: Path, one: Path, data: st.DataObject) -> None:
    value = json.loads((run_dir / STEPS[0] / MANIFEST).read_text())
    (one / MANIFEST).write_bytes(data.draw(variants(value)))
    use(one)


def header_of(file: Path) -> tuple[dict[str, Any], bytes]:
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


@st.composite
def safetensors(draw: st.DrawFn, file: Path) -> bytes:
    """A file with another header, of a length that may be a lie, before the same numbers."""
    header, numbers = header_of(file)
    text = draw(variants(header))
    size = draw(st.sampled_from([len(text)] * 6 + [0, len(text) - 1, len(text) + 1, 2**63, 2**64 - 1]))
    return struct.pack("<Q", size) + text + draw(st.sampled_from([numbers, numbers[:-4], numbers + b"\0" * 4, b""]))


@pytest.mark.parametrize("name", [MODEL, OPTIMIZER])
@FUZZ
@given(data=st.data())
def test_hostile_safetensors(name: str, run_dir: Path, one: Path, data: st.DataObject) -> None:
    agree(one, name, data.draw(safetensors(run_dir / STEPS[0] / name)))
    use(one)


@FUZZ
@given(data=st.data())
def test_hostile_weights_of_gpt2(run_dir: Path, tmp_path: Path, data: st.DataObject) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(data.draw(safetensors(run_dir / STEPS[0] / MODEL)))
    try:
        load_gpt2_weights(file, n_head=2)
    except ValueError as error:
        assert str(error).startswith(str(file))


def test_few_numbers_that_claim_a_huge_model(tmp_path: Path) -> None:
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
def test_hostile_tokenizers(tmp_path: Path, bpe: BPETokenizer, data: st.DataObject) -> None:
    file = tmp_path / TOKENIZER
    file.write_bytes(data.draw(variants(bpe.to_dict())))
    try:
        tokenizer = load_tokenizer(file)
        assert tokenizer.decode(tokenizer.encode("to be")) == "to be"
    except TokenizerError as error:
        assert "\n" not in str(error)


@FUZZ
@given(lines=st.lists(st.binary(max_size=30) | st.sampled_from([b"[" * 99_999, b'{"step": 1e999}', b'{"step": NaN}'])))
def test_hostile_metrics(tmp_path: Path, lines: list[bytes]) -> None:
    ours = b'{"step": 1}\n'
    (tmp_path / METRICS).write_bytes(ours + b"\n".join(lines))
    rewind_metrics(tmp_path, tmp_path, 1)
    assert (tmp_path / METRICS).read_bytes().startswith(ours)
