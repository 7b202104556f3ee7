"""The progress bar: shown in a terminal and in a notebook, and nowhere else."""

import os
import pty
import subprocess
import sys
import termios
import types
from pathlib import Path
from typing import Any

import pytest

from gpt.train import progress as module
from gpt.train.progress import Progress, in_notebook, notebook_bar

ROOT = Path(__file__).parents[3]
PROGRAM = """
import itertools, sys, time
from pathlib import Path
time.time = itertools.count(0, 0.1).__next__  # tqdm redraws the bar by this clock, at every step
from gpt.train.progress import Progress
with Progress(Path(sys.argv[1]), step=0, max_iters=30) as progress:
    for step in range(1, 31):
        validation = {"val_loss": 2.0} if step % 10 == 0 else {}
        progress.step(step, tokens_per_s=1234, loss=1.5, lr=1e-3, grad_norm=1.0, **validation)
print("done")
"""
LINES = [f"step {n}/30  loss 1.5000  validation 2.0000  lr 1.00e-03  1,234 tokens/s" for n in (10, 20, 30)]


def test_a_pipe_gets_whole_lines_and_no_bar(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert [line.rpartition("  ")[0] for line in lines[:3]] == LINES
    assert lines[3:] == ["done"]


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_a_terminal_gets_a_bar_that_does_not_mix_with_lines(tmp_path: Path) -> None:
    """Carriage returns are applied to the output, as a terminal does, and the resulting lines are compared."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 90))
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        text = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            text += part
    os.close(ours)
    assert process.returncode == 0
    screen = []
    for line in text.decode().replace("\r\n", "\n").split("\n"):
        cells: list[str] = []
        for piece in line.split("\r"):
            cells[: len(piece)] = piece
        screen.append("".join(cells).rstrip())
    bars = [line for line in screen if "|" in line]
    assert [line.rpartition("  ")[0] for line in screen[:3]] == LINES
    assert len(bars) == 1 and bars[0].startswith("100% |") and "30/30" in bars[0] and "1,234 tokens/s" in bars[0]
    assert text.count(b"%") > 5  # the bar was redrawn
    assert screen[-2:] == ["done", ""]


def test_a_notebook_gets_a_widget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not in_notebook()
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    assert in_notebook()
    made: list[dict[str, Any]] = []

    class Bar(module.tqdm):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            made.append(dict(options))
            super().__init__(**{**options, "disable": True})

    monkeypatch.setattr(module, "notebook_bar", Bar)
    with Progress(tmp_path, step=0, max_iters=1) as progress:
        progress.step(1, tokens_per_s=1, loss=1.0, lr=1.0, grad_norm=1.0)
    assert made[0]["disable"] is False

    shell.config = {}  # IPython in a terminal is not a notebook
    assert not in_notebook()


def test_a_notebook_without_widgets_gets_the_plain_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    import tqdm.notebook

    def missing(**_: Any) -> None:
        raise ImportError("IProgress not found")

    monkeypatch.setattr(tqdm.notebook, "tqdm", missing)
    with notebook_bar(total=3, disable=True) as bar:
        assert isinstance(bar, module.tqdm)
