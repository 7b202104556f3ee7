"""The memory of a few hundred steps does not grow, and growth is found."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.memory_flat import ALLOWED, growth

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_is_flat(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "benchmarks/memory_flat.py",
        "--steps=1500",
        "--backend=numpy",
        f"--out={tmp_path / 'x.json'}",
    ]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # its products are too small for more
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)  # no memory but its own
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1500 steps, MB after each tenth: " in result.stdout


def test_growth_is_found() -> None:
    assert growth([50, *[100.0] * 9]) == 0
    assert growth([50, *(100 + i / 4 for i in range(9))]) == pytest.approx(0.02)
    assert growth([100 + i * ALLOWED for i in range(10)]) < ALLOWED
