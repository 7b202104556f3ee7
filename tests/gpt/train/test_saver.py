"""Asynchronous saving: the same bits as synchronous saving, one save at a time, and errors."""

import errno
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tensorgrad as tg
from gpt import checkpoint as checkpoint_module
from gpt.checkpoint import load_checkpoint
from gpt.checkpoint.files import METRICS
from gpt.checkpoint.steps import steps_after
from gpt.config import UserError
from gpt.train import loop as trainer
from gpt.train import saver as module
from gpt.train.config import TrainConfig
from gpt.train.flags import Arguments
from gpt.train.loop import train
from gpt.train.metrics import JSONLines
from gpt.train.run import Run, make_run, new_run
from gpt.train.saver import Saver
from tests.processes import HANG_S, wait_until

SMALL: dict[str, Any] = {
    "data": "text.txt", "backend": "numpy", "n_layer": 1, "n_head": 2, "n_embd": 16, "dropout": 0.1,
    "block_size": 8, "batch_size": 4, "max_iters": 20, "eval_interval": 5, "eval_iters": 1, "keep_checkpoints": 99,
    "plot": False, "tokenizer": "char",
}  # fmt: skip


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 30)
    with tg.use_backend("numpy"):
        yield tmp_path


def small(out: str, **changes: Any) -> Run:
    return new_run(TrainConfig(**{**SMALL, "out": out, **changes}))


def saved(folder: str) -> list[str]:
    return [path.name for path in steps_after(folder, -1)]


def test_an_asynchronous_checkpoint_has_the_state_at_the_save(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train(small("at-once", async_save=False))
    writing = module.write_checkpoint
    run = small("beside")

    def write_late(folder: Path, snapshot: Any, keep: int) -> Path:
        wait_until(lambda: run.step >= min(snapshot.state.step + 3, 20))  # training continues in the meantime
        return writing(folder, snapshot, keep)

    monkeypatch.setattr(module, "write_checkpoint", write_late)
    train(run)
    assert saved("beside") == saved("at-once") == [f"step-0000{step:02}" for step in (5, 10, 15, 20)]
    for step in saved("beside"):
        for name in (checkpoint_module.MODEL, checkpoint_module.OPTIMIZER):
            assert Path("beside", step, name).read_bytes() == Path("at-once", step, name).read_bytes()
        states = [json.loads(Path(run, step, checkpoint_module.STATE).read_text()) for run in ("beside", "at-once")]
        assert states[0]["rng"] == states[1]["rng"]
    assert Path("beside", METRICS).read_bytes() == Path("at-once", METRICS).read_bytes()


def test_training_continues_while_a_checkpoint_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    writing, reached = module.write_checkpoint, []

    def write(folder: Path, snapshot: Any, keep: int) -> Path:
        wait_until(lambda: snapshot.state.step != 5 or run.step >= 9)
        reached.append((snapshot.state.step, run.step))
        return writing(folder, snapshot, keep)

    monkeypatch.setattr(module, "write_checkpoint", write)
    run = small("run")
    train(run)
    assert reached[0][1] >= 9
    assert [step for step, _ in reached] == [5, 10, 15, 20]


def test_checkpoints_and_validations_have_separate_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([1.0, 3.0, 0.5, 4.0])
    monkeypatch.setattr("gpt.train.loop.estimate_loss", lambda *_: next(losses))
    train(small("run", checkpoint_interval=8))
    assert saved("run") == [f"step-0000{step:02}" for step in (5, 8, 15, 16, 20)]  # the best so far: 5, 15


def full(*arguments: Any, **options: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("async_save", [True, False])
def test_a_full_disk_stops_the_run(async_save: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small("run", async_save=async_save)
    saving = checkpoint_module.save_file
    monkeypatch.setattr(checkpoint_module, "save_file", lambda *a: saving(*a) if run.step < 8 else full())
    with pytest.raises(UserError, match="step-000010: cannot be saved: .*No space left on device; earlier ones are"):
        train(run)
    assert saved("run") == ["step-000005"]
    assert load_checkpoint("run").state.step == 5
    assert run.step == (15 if async_save else 10)  # an asynchronous error is raised at the next save


@pytest.mark.parametrize("async_save", [True, False])
def test_a_full_disk_does_not_stop_a_run_with_on_save_error_continue(
    async_save: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small("run", async_save=async_save, on_save_error="continue")
    saving = checkpoint_module.save_file
    monkeypatch.setattr(checkpoint_module, "save_file", lambda *a: full() if 10 <= run.step < 15 else saving(*a))
    # each save finishes before training continues, so step 10 fails before step 15 is saved
    monkeypatch.setattr(module.Saver, "save", waiting(module.Saver.save))
    assert train(run) == 0
    out = capsys.readouterr().out
    reason = "[Errno 28] No space left on device; earlier ones are complete; training continues\n"
    assert out.count(f"run/step-000010: cannot be saved: {reason}") == 1
    assert saved("run") == ["step-000005", "step-000015", "step-000020"]


def waiting(save: Any) -> Any:
    def save_and_wait(self: Saver, **options: Any) -> None:
        save(self, **options)
        self._join()

    return save_and_wait


def test_an_error_in_the_last_save_is_never_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    run = small("run", on_save_error="continue")
    monkeypatch.setattr(checkpoint_module, "save_file", full)
    with pytest.raises(UserError, match="step-000020: cannot be saved"):
        train(run)
    assert run.step == 20


def test_another_error_is_raised_after_the_checkpoint_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    writing, failed = module.write_checkpoint, threading.Event()

    def write_late(*arguments: Any) -> Path:
        assert failed.wait(HANG_S)
        return writing(*arguments)

    def fail(run: Run) -> bool:
        if run.step == 6:
            failed.set()
            raise UserError("something else")
        return run.step == 5

    monkeypatch.setattr(module, "write_checkpoint", write_late)
    monkeypatch.setattr("gpt.train.loop.should_save", fail)
    with pytest.raises(UserError, match="something else"):
        train(small("run"))
    assert load_checkpoint("run").state.step == 5


def test_snapshots_reuse_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    writing = module.write_checkpoint

    def record_snapshot(folder: Path, snapshot: Any, keep: int) -> Path:
        seen.append(id(snapshot.weights["wte.weight"]))
        return writing(folder, snapshot, keep)

    monkeypatch.setattr(module, "write_checkpoint", record_snapshot)
    train(small("run"))
    assert len(seen) == 4
    assert len(set(seen)) == 1


# --------------------------------------------------------------------------------------------------
# Metrics


class FullFile:
    """A file that accepts a given number of bytes and then raises an error until it has more capacity."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.written = b""

    def write(self, content: bytes) -> int:
        accepted = bytes(content[: self.room])
        if content and not accepted:
            full()
        self.room -= len(accepted)
        self.written += accepted
        return len(accepted)


def test_metrics_lines_refused_by_a_full_disk_are_written_later(tmp_path: Path) -> None:
    lines = JSONLines(tmp_path / METRICS, retry=True)
    lines.close()
    file = FullFile(room=20)
    lines._file = file  # type: ignore[assignment]
    for step in (1, 2, 3):
        lines.write({"step": step})
    assert len(file.written) == 20
    file.room = 1000
    lines.write({"step": 4})
    assert [json.loads(line)["step"] for line in file.written.splitlines()] == [1, 2, 3, 4]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_the_error_for_metrics_on_a_full_disk_is_one_line(tmp_path: Path) -> None:
    (tmp_path / METRICS).symlink_to("/dev/full")
    lines = JSONLines(tmp_path / METRICS)
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written: No space left on device"):
        lines.write({"step": 1})
    lines.close()


# --------------------------------------------------------------------------------------------------
# Data that disappears


def test_a_run_is_saved_if_its_data_disappears(monkeypatch: pytest.MonkeyPatch) -> None:
    train(small("whole"))
    drawing = trainer.batch_of

    def draw(*arguments: Any) -> Any:
        if arguments[-1] == 7:
            raise UserError("text.txt: changed while it was in use")
        return drawing(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "batch_of", draw)
        with pytest.raises(UserError, match="changed while it was in use"):
            train(small("run"))
    assert saved("run") == ["step-000005", "step-000007"]
    train(make_run(Arguments(given={}, resume="run")))
    for name in (checkpoint_module.MODEL, checkpoint_module.OPTIMIZER):
        assert Path("run/step-000020", name).read_bytes() == Path("whole/step-000020", name).read_bytes()
    assert Path("run", METRICS).read_bytes() == Path("whole", METRICS).read_bytes()
