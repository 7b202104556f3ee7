"""Checkpoints: they load as they were saved, damaged ones are refused, and saving never harms earlier ones."""

import errno
import hashlib
import json
import math
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from gpt import checkpoint as module
from gpt.checkpoint import (
    MODEL,
    OPTIMIZER,
    STATE,
    TOKENIZER,
    RunState,
    load_checkpoint,
    load_newest,
    save_checkpoint,
)
from gpt.checkpoint.files import MANIFEST
from gpt.checkpoint.steps import newest_checkpoint, steps_after
from gpt.config import UserError
from gpt.model import GPT
from gpt.tokenizer import CharTokenizer
from gpt.train.config import TrainConfig

pytestmark = pytest.mark.usefixtures("numpy_backend")

CONFIG = TrainConfig(n_layer=1, n_head=2, n_embd=8, block_size=4, backend="numpy")
TEXT = "to be, or not to be"
FILES = [MODEL, OPTIMIZER, STATE, TOKENIZER, MANIFEST]


@dataclass
class Trained:
    """A model and an optimizer after a few training steps, so that none of their arrays is zero."""

    model: GPT
    optimizer: tg.optim.AdamW
    tokenizer: CharTokenizer
    state: RunState

    def save(self, run: Path, step: int = 7, best_step: int | None = None, keep: int = 1) -> Path:
        state = replace(self.state, step=step, best_step=best_step)
        return save_checkpoint(run, state, self.model, self.optimizer, self.tokenizer, keep)


@pytest.fixture
def trained() -> Trained:
    tg.manual_seed(5)
    tokenizer = CharTokenizer.train(TEXT)
    model_config = CONFIG.model_config(tokenizer.vocab_size)
    model = GPT(model_config)
    optimizer = tg.optim.AdamW(model.parameters(), lr=1e-2)
    ids = np.array([tokenizer.encode(TEXT)[:5]])
    for _ in range(3):
        model(ids[:, :-1], ids[:, 1:])[1].backward()
        optimizer.step()
        optimizer.zero_grad()
    rng = tg.random.default_generator.state_dict()
    state = RunState(7, model_config, CONFIG, "0" * 64, rng, best_val_loss=1.25, best_step=7)
    return Trained(model, optimizer, tokenizer, state)


def flat(state: dict[str, Any]) -> dict[str, bytes]:
    return {name: np.asarray(array).tobytes() for name, array in state.items()}


# --------------------------------------------------------------------------------------------------
# Saving and loading


def test_a_checkpoint_loads_as_it_was_saved(trained: Trained, tmp_path: Path) -> None:
    path = trained.save(tmp_path / "run", best_step=7)
    assert path == tmp_path / "run" / "step-000007"
    loaded = load_checkpoint(path)
    assert loaded.path == path
    assert loaded.state == trained.state
    assert loaded.tokenizer.encode(TEXT) == trained.tokenizer.encode(TEXT)

    before = trained.optimizer.state_dict()
    tg.manual_seed(99)
    model = loaded.build_model()
    optimizer = tg.optim.AdamW(model.parameters(), lr=1e-2)
    loaded.restore(optimizer)
    assert flat(model.state_dict()) == flat(trained.model.state_dict())
    assert flat(optimizer.state_dict()["state"]) == flat(before["state"])
    assert optimizer.state_dict()["step"] == before["step"] == 3
    assert tg.random.default_generator.state_dict() == trained.state.rng


def test_the_restored_optimizer_keeps_its_own_options(trained: Trained, tmp_path: Path) -> None:
    loaded = load_checkpoint(trained.save(tmp_path))
    optimizer = tg.optim.AdamW(loaded.build_model().parameters(), lr=0.5, weight_decay=0.25)
    loaded.restore(optimizer)
    assert optimizer.param_groups[0]["weight_decay"] == 0.25


def test_optimizer_moments_of_another_model_are_refused(trained: Trained, tmp_path: Path) -> None:
    loaded = load_checkpoint(trained.save(tmp_path))
    other = GPT(replace(trained.state.model_config, n_embd=16))
    with pytest.raises(UserError, match=OPTIMIZER):
        loaded.restore(tg.optim.AdamW(other.parameters()))


def test_weights_load_without_the_optimizer_file(trained: Trained, tmp_path: Path) -> None:
    path = trained.save(tmp_path)
    (path / OPTIMIZER).unlink()
    assert load_checkpoint(path, optimizer=False).optimizer is None
    with pytest.raises(UserError, match=OPTIMIZER):
        load_checkpoint(path)


def test_a_checkpoint_contains_exactly_these_files(trained: Trained, tmp_path: Path) -> None:
    path = trained.save(tmp_path)
    assert sorted(file.name for file in path.iterdir()) == sorted(FILES)
    assert [folder.name for folder in tmp_path.iterdir()] == [path.name]
    manifest = json.loads((path / MANIFEST).read_text())
    for name in FILES[:-1]:
        content = (path / name).read_bytes()
        expected = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        assert manifest[name] == expected
    modes = {stat.S_IMODE((path / name).stat().st_mode) for name in FILES}
    assert len(modes) == 1


def test_a_run_without_validation_has_no_best_step(trained: Trained, tmp_path: Path) -> None:
    trained.state = replace(trained.state, best_val_loss=None)
    state = load_checkpoint(trained.save(tmp_path)).state
    assert state.best_val_loss is None
    assert state.best_step is None


# --------------------------------------------------------------------------------------------------
# Which checkpoints are kept and found


def test_the_newest_checkpoints_and_the_best_are_kept(trained: Trained, tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 50):
        trained.save(tmp_path, step, best_step=20, keep=3)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == [f"step-0000{step}" for step in (20, 30, 40, 50)]


def test_the_newest_checkpoint_and_the_best_are_kept(trained: Trained, tmp_path: Path) -> None:
    for step, best in [(10, 10), (20, 20), (30, 20), (40, 20)]:
        trained.save(tmp_path, step, best)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["step-000020", "step-000040"]


def test_saving_a_step_again_replaces_its_checkpoint(trained: Trained, tmp_path: Path) -> None:
    trained.save(tmp_path)
    trained.model.wte.weight.data[...] = 0.5
    path = trained.save(tmp_path)
    assert (load_checkpoint(path).weights["wte.weight"] == 0.5).all()
    assert [folder.name for folder in tmp_path.iterdir()] == [path.name]


def test_a_run_folder_loads_its_newest_step(trained: Trained, tmp_path: Path) -> None:
    trained.save(tmp_path, 999_999, best_step=999_999)
    trained.save(tmp_path, 1_000_000, best_step=999_999)  # one digit more, so its name sorts before the other
    assert load_checkpoint(tmp_path).state.step == 1_000_000
    assert newest_checkpoint(tmp_path).name == "step-1000000"
    assert [folder.name for folder in steps_after(tmp_path, 999_999)] == ["step-1000000"]


def test_newest_checkpoint_finds_the_run_written_last(trained: Trained, tmp_path: Path) -> None:
    for run, time in [("a", 300), ("b", 100), ("c", 200)]:
        os.utime(trained.save(tmp_path / run), (time, time))
    (tmp_path / "README.md").write_text("not a run")
    (tmp_path / "empty").mkdir()
    assert newest_checkpoint(tmp_path).parent.name == "a"


def test_the_error_says_why_no_checkpoint_was_found(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    file = tmp_path / "file"
    file.write_text("")
    for find, path, message in [
        (newest_checkpoint, tmp_path, f"{tmp_path}: no checkpoint in it; train.py makes them"),
        (newest_checkpoint, tmp_path / "x", f"{tmp_path}/x: no such folder"),
        (load_checkpoint, tmp_path / "x", f"{tmp_path}/x: no such checkpoint"),
        (load_checkpoint, tmp_path / "run", f"{tmp_path}/run: no checkpoint in it"),
        (load_checkpoint, file, f"{file}: a checkpoint is a folder, and this is a file"),
    ]:
        with pytest.raises(UserError) as error:
            find(path)
        assert str(error.value).startswith(message)


def test_load_newest_skips_damaged_checkpoints(trained: Trained, tmp_path: Path) -> None:
    for step in (10, 20, 30):
        trained.save(tmp_path, step, keep=3)
    truncate(tmp_path / "step-000030" / MODEL)
    (tmp_path / "step-000020" / STATE).unlink()
    checkpoint, damaged = load_newest(tmp_path)
    assert checkpoint.state.step == 10
    assert [folder.name for folder, _ in damaged] == ["step-000030", "step-000020"]
    assert "step-000030/model.safetensors: damaged: " in str(damaged[0][1])
    assert "step-000020/state.json: missing" in str(damaged[1][1])
    with pytest.raises(UserError, match="step-000030/model.safetensors: damaged"):
        load_newest(tmp_path / "step-000030")  # a checkpoint given by name is never replaced by another
    empty(tmp_path / "step-000010" / MANIFEST)
    with pytest.raises(UserError, match="step-000030/model.safetensors: damaged"):
        load_newest(tmp_path)


def test_a_checkpoint_under_the_name_of_another_step_is_refused(trained: Trained, tmp_path: Path) -> None:
    trained.save(tmp_path, 10).rename(tmp_path / "step-000020")
    with pytest.raises(UserError, match="step-000020/state.json: holds step 10, but the name of its folder"):
        load_checkpoint(tmp_path)
    (tmp_path / "step-000020").rename(tmp_path / "mine")  # this name does not state a step
    assert load_checkpoint(tmp_path / "mine").state.step == 10


# --------------------------------------------------------------------------------------------------
# Damage


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def replace_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, empty, Path.unlink, replace_by_folder])
@pytest.mark.parametrize("name", [MODEL, OPTIMIZER, STATE, TOKENIZER])
def test_the_error_for_a_damaged_file_names_the_file(
    name: str, damage: Callable[[Path], None], trained: Trained, tmp_path: Path
) -> None:
    path = trained.save(tmp_path)
    damage(path / name)
    with pytest.raises(UserError) as error:
        load_checkpoint(path)
    assert str(error.value).startswith(f"{path / name}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", [empty, Path.unlink, replace_by_folder])
def test_a_checkpoint_without_its_manifest_is_refused(
    damage: Callable[[Path], None], trained: Trained, tmp_path: Path
) -> None:
    path = trained.save(tmp_path)
    damage(path / MANIFEST)
    with pytest.raises(UserError, match=MANIFEST):
        load_checkpoint(path)


def rewrite(path: Path, name: str, content: str | bytes) -> None:
    """Change a file and its entry in the manifest, so that only the validity of its contents is tested."""
    (path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    manifest = json.loads((path / MANIFEST).read_text())
    content = (path / name).read_bytes()
    manifest[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (path / MANIFEST).write_text(json.dumps(manifest))


def changed_state(path: Path, **changes: Any) -> str:
    return json.dumps({**json.loads((path / STATE).read_text()), **changes})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (STATE, "{"),
        (STATE, "[]"),
        (STATE, "{}"),
        (STATE, '{"format": 1}'),
        (STATE, b"\xff\xfe"),
        (STATE, "[" * 100_000),
        (STATE, '{"format": 1, "format": 1}'),
        (STATE, " " * 5_000_000),
        (TOKENIZER, "{}"),
        (TOKENIZER, "nonsense"),
        (MODEL, b""),
        (MODEL, b"\x00" * 7),
        (MODEL, b"\xff" * 64),
        (MODEL, b"\x80\x04N."),  # a pickle
        (OPTIMIZER, b'\x10\x00\x00\x00\x00\x00\x00\x00{"a":{"dtype":1}}'),
    ],
)
def test_invalid_file_contents_are_refused(name: str, content: str | bytes, trained: Trained, tmp_path: Path) -> None:
    path = trained.save(tmp_path)
    rewrite(path, name, content)
    with pytest.raises(UserError) as error:
        load_checkpoint(path)
    assert str(path / name) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2 is not 1, the one this program reads"),
        ({"step": -1}, "step must be a whole number, not -1"),
        ({"step": "7"}, "step must be a whole number, not '7'"),
        ({"step": 10**300}, "step must be|holds step 1000"),
        ({"step": 8}, "holds step 8, but the name of its folder says another step"),
        ({"skipped": -1}, "skipped must be a whole number, not -1"),
        ({"best_val_loss": math.nan}, "NaN is not a JSON number"),
        ({"best_val_loss": 10**400}, "too large"),
        ({"best_val_loss": "low"}, "could not convert"),
        ({"model_config": {"n_layer": 0}}, "n_layer must be at least 1"),
        ({"model_config": {"depth": 1}}, "unknown key 'depth' in a model configuration"),
        ({"model_config": None}, "not a mapping"),
        ({"train_config": {"lr": "1"}}, "lr must be float, not '1'"),
        ({"rng": 3}, "not iterable"),
        ({"optimizer": 3}, "not iterable"),
    ],
)
def test_an_invalid_state_is_refused(
    changes: dict[str, Any], message: str, trained: Trained, tmp_path: Path
) -> None:
    path = trained.save(tmp_path)
    rewrite(path, STATE, changed_state(path, **changes))
    with pytest.raises(UserError, match=message) as error:
        load_checkpoint(path)
    assert str(error.value).startswith(f"{path / STATE}: ")


def test_weights_of_another_shape_are_refused(trained: Trained, tmp_path: Path) -> None:
    path = trained.save(tmp_path)
    wider = {**trained.state.model_config.to_dict(), "n_embd": 16}
    rewrite(path, STATE, changed_state(path, model_config=wider))
    with pytest.raises(UserError, match=r"numbers, but the matrices of a model of that shape have") as error:
        load_checkpoint(path).build_model()
    assert str(error.value).startswith(f"{path / MODEL}: ")


def test_a_model_too_large_for_its_weights_is_refused_before_it_is_built(trained: Trained, tmp_path: Path) -> None:
    for changes in ({"n_layer": 10**9}, {"vocab_size": 10**12}, {"n_embd": 10**6}, {"block_size": 10**9}):
        path = trained.save(tmp_path)
        rewrite(path, STATE, changed_state(path, model_config={**trained.state.model_config.to_dict(), **changes}))
        with pytest.raises(UserError, match=r"holds 888 numbers, but the matrices of .* have [\d,]+$"):
            load_checkpoint(path).build_model()


def test_an_invalid_generator_state_is_refused(trained: Trained, tmp_path: Path) -> None:
    path = trained.save(tmp_path)
    rewrite(path, STATE, changed_state(path, rng={"seed": 1, "steps": {"init": -1}}))
    with pytest.raises(UserError, match=STATE):
        load_checkpoint(path).restore(trained.optimizer)


# --------------------------------------------------------------------------------------------------
# Saving that fails


def fail_with(error: BaseException) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("where", ["save_file", "write_json", "sync", "write_manifest"])
def test_a_full_disk_leaves_earlier_checkpoints_intact(
    where: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = trained.save(tmp_path, 1)
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(module, where, fail_with(full))
        with pytest.raises(UserError, match="step-000002: cannot be saved: .*No space left"):
            trained.save(tmp_path, 2)
    assert list(tmp_path.iterdir()) == [first]
    assert load_checkpoint(tmp_path).state.step == 1
    assert trained.save(tmp_path, 2).name == "step-000002"


@pytest.mark.parametrize("where", ["save_file", "write_json", "sync", "write_manifest", "prune"])
def test_a_kill_leaves_complete_checkpoints_and_its_remains_are_removed(
    where: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained.save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(module, where, fail_with(KeyboardInterrupt()))  # like a kill, it is not caught
        with pytest.raises(KeyboardInterrupt):
            trained.save(tmp_path, 2)
    assert load_checkpoint(tmp_path).state.step == (2 if where == "prune" else 1)
    trained.save(tmp_path, 3)
    assert [folder.name for folder in tmp_path.iterdir()] == ["step-000003"]


def test_a_kill_during_pruning_leaves_no_partial_checkpoint(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained.save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", fail_with(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            trained.save(tmp_path, 2)
    assert steps_after(tmp_path, 0) == [tmp_path / "step-000002"]


def test_files_are_synced_before_the_folder_gets_its_final_name(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    renamed: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def note_sync(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def check_rename(self: Path, target: Path) -> Path:
        inodes = {path.stat().st_ino for path in (self, *self.iterdir())}
        assert len(inodes) == 1 + len(FILES)
        assert inodes <= synced
        renamed.append(target.name)
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "rename", check_rename)
    trained.save(tmp_path)
    assert renamed == ["step-000007"]
    assert tmp_path.stat().st_ino in synced  # the name itself is synced after the rename
