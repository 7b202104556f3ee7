"""benchmarks/prepare.py measures what it says. Figures are no matter of tests."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import prepare


def test_a_small_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "result.json"
    flags = ["--megabytes=1", "--tokenizer=char", "--workers=2", f"--out={out}", "--limit-mb=1"]
    monkeypatch.setattr(prepare.sys, "argv", ["prepare.py", *flags])
    assert prepare.main() == 1  # above a limit that nothing keeps
    result = json.loads(out.read_text())
    assert result["bytes"] > 1_000_000 and result["tokens"] > 1_000_000
    assert result["resident_mb"] >= result["proportional_mb"] > 30


def test_memory_of_a_family_is_that_of_all_its_members() -> None:
    """A process that holds 50 MB, and starts another that does."""
    one = "import time; x = bytearray(50_000_000); time.sleep(0.4)"
    two = f"import subprocess, sys; x = bytearray(50_000_000); subprocess.run([sys.executable, '-c', {one!r}])"
    _, resident, proportional = prepare.watched([sys.executable, "-c", two])
    assert 100 < proportional <= resident < 200
