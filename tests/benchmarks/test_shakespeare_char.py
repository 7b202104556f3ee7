"""benchmarks/shakespeare_char.py runs, and fails if the loss misses the target."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_a_short_run_misses_the_target(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 100)
    command = [
        sys.executable, str(ROOT / "benchmarks" / "shakespeare_char.py"), "--data=text.txt", "--backend=numpy",
        "--max-iters=2", "--seeds", "1", "5", "--out=figures.json",
    ]  # fmt: skip
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    result = subprocess.run(command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.stderr == "text.txt is not tiny Shakespeare: the target does not apply\n"
    assert result.returncode == 1
    figures = json.loads((tmp_path / "figures.json").read_text())
    losses = [run["validation_loss"] for run in figures["runs"]]
    assert [run["seed"] for run in figures["runs"]] == [1, 5]
    assert [run["pytorch"] for run in figures["runs"]] == [1.891, None]
    assert figures["mean"] == pytest.approx(sum(losses) / 2)
    assert not figures["passed"]
    assert f"mean {figures['mean']:.4f}, NOT within 0.02 of 1.899" in result.stdout
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
