"""Damaged checkpoints: refused with an error that names the file, or skipped; never wrong numbers, never a hang."""

import hashlib
import json
import os
import random
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cases import failing

import tensorgrad as tg
from gpt.checkpoint import MODEL, OPTIMIZER, STATE, TOKENIZER, Checkpoint, load_checkpoint, load_newest, save_checkpoint
from gpt.checkpoint.files import MANIFEST
from gpt.config import UserError
from gpt.train.build import make_optimizer
from gpt.train.config import TrainConfig
from gpt.train.run import new_run
from gpt.train.saver import state_of

FILES = [MODEL, OPTIMIZER, STATE, TOKENIZER, MANIFEST]
STEPS = ("step-000010", "step-000020")
CONFIG: dict[str, Any] = {
    "data": "text.txt", "backend": "numpy", "n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 4, "batch_size": 2,
    "max_iters": 100, "tokenizer": "char",
}  # fmt: skip


def make_run(folder: Path) -> Path:
    """A run with two checkpoints whose arrays differ."""
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


def contents(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Everything that was saved."""
    assert checkpoint.optimizer is not None
    arrays = {**checkpoint.weights, **checkpoint.optimizer["state"]}
    return {"state": repr(checkpoint.state).encode(), **{name: array.tobytes() for name, array in arrays.items()}}


# --- damage that the manifest shows ---------------------------------------------------------------


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

# --- invalid contents with a matching manifest ----------------------------------------------------

HOSTILE: list[Any] = [
    None, True, 0, -1, 1.5, 2**31, 2**63, 2**64, 10**400, 1e308, 1e-320, "", "F32", "F64", "BF16", "I64", "\x00", "é",
    [], [0, 4], [1, 2], {}, {"": None}, [[]],
]  # fmt: skip


def write_with_manifest(folder: Path, name: str, content: bytes) -> None:
    """Write a file and update its entry in the manifest."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(manifest))


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


def header_of(file: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a file of safetensors, and the numbers after it."""
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def hostile(rng: random.Random, value: Any) -> bytes:
    """The JSON of a value of which one or two parts are of another type or size, or missing."""
    for _ in range(rng.choice([1, 2])):
        places = paths(value)
        value = changed(value, places[rng.randrange(len(places))], rng.choice([*HOSTILE, ...]) if places[1:] else {})
        value = None if value is ... else value
    return json.dumps(value).encode()


def rewrite(rng: random.Random, run: Path) -> None:
    """Change a file, and its hash in the manifest."""
    folder, name = run / rng.choice(STEPS), rng.choice(FILES)
    if name in (MODEL, OPTIMIZER):
        header, numbers = header_of(folder / name)
        text = hostile(rng, header)
        size = rng.choice([len(text)] * 4 + [0, len(text) - 1, len(text) + 1, 2**63, 2**64 - 1])
        kept = rng.choice([numbers, numbers, numbers[:-4], numbers + bytes(4), b""])
        content = struct.pack("<Q", size) + text + kept
    else:
        content = hostile(rng, json.loads((folder / name).read_text()))
    if name == MANIFEST:
        (folder / name).write_bytes(content)
    else:
        write_with_manifest(folder, name, content)


def load_or_user_error(folder: Path) -> bool:
    """Load a checkpoint and restore from it: True if this works, False for a one-line UserError that names the file."""
    try:
        checkpoint = load_checkpoint(folder)
        model = checkpoint.build_model()
        checkpoint.restore(make_optimizer(model, checkpoint.state.train_config))
    except UserError as error:
        assert str(error).startswith(str(folder)), str(error)
        assert "\n" not in str(error)
        return False
    return True


# --- the cases --------------------------------------------------------------------------------------


class Damaged:
    """Copies of a run, each damaged in the way of its seed; `outcomes` counts what became of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, make_run(folder)
        self.whole = {name: contents(load_checkpoint(self.run / name)) for name in STEPS}
        self.outcomes = {"refused": 0, "skipped": 0, "none whole": 0, "whole": 0}

    def check(self, seed: int) -> None:
        """Raises AssertionError, or what a program would have ended with, where a damaged checkpoint is not refused."""
        rng, run = random.Random(seed), self.folder / str(seed)
        shutil.copytree(self.run, run)
        try:
            if rng.random() < 0.3:
                rewrite(rng, run)
                for name in STEPS:
                    self.outcomes["whole" if load_or_user_error(run / name) else "refused"] += 1
                return
            for damage in rng.sample(DAMAGES, rng.choice([1, 1, 1, 2])):
                try:
                    damage(rng, run)
                except (OSError, ValueError):
                    continue  # the first damage left nothing for the second
            self._check_each(run)
            self._check_newest(run)
        finally:
            shutil.rmtree(run)

    def _check_each(self, run: Path) -> None:
        """Loaded by name: refused, or exactly what was saved."""
        for name in STEPS:
            try:
                assert contents(load_checkpoint(run / name)) == self.whole[name], f"{name} has changed"
                self.outcomes["whole"] += 1
            except UserError as error:
                assert any(str(error).startswith(f"{run / name / file}: ") for file in FILES), str(error)
                assert "\n" not in str(error)
                self.outcomes["refused"] += 1

    def _check_newest(self, run: Path) -> None:
        try:
            checkpoint, damaged = load_newest(run)
            assert contents(checkpoint) == self.whole[checkpoint.path.name], f"{checkpoint.path.name} has changed"
            assert len(damaged) == (checkpoint.path.name == STEPS[0]), f"{len(damaged)} are called damaged"
            self.outcomes["skipped"] += len(damaged)
        except UserError:
            self.outcomes["none whole"] += 1


def failures(seeds: range) -> Iterator[tuple[int, str]]:
    """The seed of every case that fails, and how."""
    with tempfile.TemporaryDirectory() as folder, tg.use_backend("numpy"):
        cases = Damaged(Path(folder))
        yield from failing(cases.check, seeds)
        print(", ".join(f"{n:,} {what}" for what, n in cases.outcomes.items()))
