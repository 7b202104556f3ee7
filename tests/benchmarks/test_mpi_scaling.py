"""benchmarks/mpi_scaling.py runs, and refuses to time runs with different losses. Speed is not tested."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import mpi_scaling
from gpt.config import UserError

pytestmark = pytest.mark.usefixtures("mpirun")  # skips these tests without MPI


def test_two_processes_are_compared_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "result.json"
    flags = ["--config=tiny", "--backend=numpy", "--rounds=1", "--steps=2", f"--out={out}"]
    monkeypatch.setattr(mpi_scaling.sys, "argv", ["mpi_scaling.py", *flags])
    assert mpi_scaling.main() == 0
    result = json.loads(out.read_text())
    assert [row["processes"] for row in result["rows"]] == [1, 2]
    assert all(len(row["steps"]) == 2 and row["loss_difference"] < 1e-6 for row in result["rows"])
    assert result["speedup"] > 0


def test_runs_with_different_losses_are_not_timed() -> None:
    turns: Any = {1: [{"losses": [2.0, 1.5]}], 2: [{"losses": [2.0, 1.50001]}]}
    with pytest.raises(UserError, match="^not timed: 2 processes have a loss of 1.50001000, one process 1.50000000$"):
        mpi_scaling.check_losses(turns)
