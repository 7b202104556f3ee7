"""The memory of a run does not grow over its steps, and growth is detected."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.memory_flat import ALLOWED_MB, growth

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_the_memory_of_training_does_not_grow(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "benchmarks/memory_flat.py",
        "--steps=1500",
        "--backend=numpy",
        f"--out={tmp_path / 'x.json'}",
    ]
    # Its products are too small for more threads. In one arena of malloc, how the thread that saves checkpoints takes
    # turns with training leaves no holes, whatever else the machine does.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)  # a process of its own
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1500 steps, MB after each tenth: " in result.stdout


def test_memory_growth_is_detected() -> None:
    assert growth([50, *[100.0] * 9]) == 0
    assert growth([50, *(100 + i / 4 for i in range(9))]) == pytest.approx(2)
    assert growth([50, 100, 100 + 1350 * 4096 / 2**20]) > ALLOWED_MB  # an array of 4 kB a step that is never freed
