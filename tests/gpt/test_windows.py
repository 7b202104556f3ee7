"""The programs on a simulated Windows: without glibc, resource, fcntl, pread, pthread_sigmask, SIGHUP and sysconf."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import HANG_S

ROOT = Path(__file__).parents[2]

WINDOWS = """
import fcntl, os, platform, signal, sys, types
import multiprocessing, subprocess, tqdm  # what is of POSIX in the standard library stays


def locking(descriptor, mode, n_bytes):
    fcntl.flock(descriptor, mode)


sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=fcntl.LOCK_EX | fcntl.LOCK_NB)
for name in ("resource", "fcntl"):
    sys.modules[name] = None
for module, names in (
    (os, ("pread", "pwrite", "sysconf", "sched_getaffinity", "fork", "getuid", "posix_fadvise")),
    (signal, ("pthread_sigmask", "SIGHUP", "SIGKILL", "SIGUSR1")),
):
    for name in names:
        delattr(module, name)
platform.libc_ver = lambda *_: ("", "")
own, sys.platform = sys.platform, "win32"
import gpt.files
sys.platform = own
"""

TRAIN = ["--backend=numpy", "--n-layer=1", "--n-embd=16", "--block-size=8", "--eval-iters=1", "--plot=False",
         "--tokenizer=char"]  # fmt: skip


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("to be or not to be\n" * 40)


def run(program: str, *argv: str) -> str:
    """Run one of the programs and return its output."""
    call = {
        "train": "from train import main",
        "generate": "from generate import main",
        "data": "from gpt.data.__main__ import main",
        "evaluate": "from gpt.evaluate.__main__ import main",
    }[program]
    Path("program.py").write_text(
        f"{WINDOWS}\n{call}\nfrom gpt.cli import run\nif __name__ == '__main__': sys.exit(run(main, {program!r}))\n"
    )
    command = [sys.executable, "program.py", *argv]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG_S)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_train_resume_generate_and_evaluate_work() -> None:
    run("train", *TRAIN, "--data=text.txt", "--out=run", "--max-iters=2")
    assert "from step 2" in run("train", "--resume=run", "--max-iters=3")
    assert run("generate", "--checkpoint=run", "--max-new-tokens=5", "--backend=numpy")
    assert "loss" in run("evaluate", "run", "--data=text.txt", "--backend=numpy")


def test_a_dry_run_works() -> None:
    assert "ms per step" in run("train", *TRAIN, "--data=text.txt", "--dry-run")


def test_preparing_and_training_on_prepared_data_work() -> None:
    run("data", "prepare", "text.txt", "--tokenizer=char", "--out=prepared", "--workers=2")
    run("data", "verify", "prepared")
    run("train", *TRAIN, "--data=prepared", "--out=run", "--max-iters=2")
