"""A disk that fills while a run saves: a small file system in memory, which only root can mount."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpt.checkpoint import load_checkpoint
from gpt.checkpoint.files import METRICS
from gpt.checkpoint.steps import steps_after

ROOT = Path(__file__).parents[3]
SETTINGS = [
    "--data=text.txt", "--backend=numpy", "--n-layer=1", "--n-head=2", "--n-embd=16", "--block-size=8", "--threads=1",
    "--batch-size=4", "--max-iters=40", "--eval-interval=5", "--eval-iters=1", "--keep-checkpoints=99",
    "--out=disk/run", "--tokenizer=char",
]  # fmt: skip


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on a disk of 320 KB: enough for four or five checkpoints of 49 KB."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 30)
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=320k", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here: that takes Linux and root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def run_train(*argv: str, meanwhile: Callable[[], None] | None = None) -> tuple[int, str, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "train.py"), *argv]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:  # fmt: skip
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "training continues" in line and meanwhile is not None:
                meanwhile()
        assert process.stderr is not None
        err = process.stderr.read()
    return process.returncode, "".join(lines), err


@pytest.mark.parametrize("beside", ["True", "False"])
def test_a_run_stops_on_a_full_disk_and_can_be_resumed_after_freeing_space(beside: str, disk: Path) -> None:
    status, _, err = run_train(*SETTINGS, f"--async-save={beside}")
    assert status == 2
    assert err.startswith("train.py: error: disk/run/")
    assert "No space left on device" in err or "os error 28" in err
    assert err.count("\n") == 1
    kept = steps_after(disk / "run", -1)
    assert 2 <= len(kept) < 8
    for folder in kept:
        load_checkpoint(folder)
    for folder in kept[:-1]:
        shutil.rmtree(folder)
    assert run_train("--resume", "disk/run", "--keep-checkpoints=1")[0] == 0
    assert load_checkpoint(disk / "run").state.step == 40


def test_a_run_with_on_save_error_continue_survives_a_full_disk(disk: Path) -> None:
    def free_space() -> None:
        for folder in steps_after(disk / "run", -1)[:-1]:
            shutil.rmtree(folder)

    status, out, err = run_train(*SETTINGS, "--on-save-error=continue", meanwhile=free_space)
    assert (status, err) == (0, "")
    assert "earlier ones are complete; training continues" in out
    assert load_checkpoint(disk / "run").state.step == 40
    assert (disk / "run" / METRICS).read_bytes().count(b"\n") == 40


def test_a_last_checkpoint_that_does_not_fit_on_the_disk_is_an_error(disk: Path) -> None:
    status, out, err = run_train(*SETTINGS, "--on-save-error=continue")
    assert status == 2
    assert "training continues" in out
    assert err.startswith("train.py: error: disk/run/step-000040: cannot be saved: ")
    for folder in steps_after(disk / "run", -1):
        load_checkpoint(folder)
