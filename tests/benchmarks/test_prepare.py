"""benchmarks/prepare.py measures time and memory. Speed is not tested."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import prepare


def test_time_and_memory_of_a_small_text_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "result.json"
    flags = ["--megabytes=1", "--tokenizer=char", "--workers=2", f"--out={out}", "--limit-mb=1"]
    monkeypatch.setattr(prepare.sys, "argv", ["prepare.py", *flags])
    assert prepare.main() == 1  # the limit of 1 MB is always exceeded
    result = json.loads(out.read_text())
    assert result["bytes"] > 1_000_000 and result["tokens"] > 1_000_000
    assert result["resident_mb"] >= result["proportional_mb"] > 30


def test_memory_includes_that_of_child_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that holds 50 MB starts another that holds 50 MB, and both run until both have been measured."""
    large: set[int] = set()
    memory_of = prepare.memory_of

    def record_large_processes(pid: int) -> tuple[float, float]:
        resident, proportional = memory_of(pid)
        large.update([pid] if resident > 50 else [])
        if len(large) == 2:
            (tmp_path / "seen").touch()
        return resident, proportional

    monkeypatch.setattr(prepare, "memory_of", record_large_processes)
    holds = f"while not pathlib.Path({str(tmp_path / 'seen')!r}).exists(): time.sleep(0.01)"
    one = f"import pathlib, time; x = bytearray(50_000_000)\n{holds}"
    two = f"import subprocess, sys; x = bytearray(50_000_000); subprocess.run([sys.executable, '-c', {one!r}])"
    _, resident, proportional = prepare.measured([sys.executable, "-c", two])
    assert 100 < proportional <= resident < 200
