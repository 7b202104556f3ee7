"""The first step is timed from the command to the first line of metrics.jsonl."""

from pathlib import Path

import pytest

from benchmarks.first_step import measure

COMMAND = "python train.py --data text.txt --tokenizer char --backend numpy --n-layer 1 --n-embd 16 --max-iters 1000000"


def test_a_run_is_timed_and_ended(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("to be, or not to be\n" * 50)
    times = measure(COMMAND, tmp_path, tmp_path / "cache")
    assert 0 < times.first_output < times.first_step
    assert 0.1 < times.processor < 60
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) < 1000000


def test_a_run_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ended before its first step:\n.*text.txt"):
        measure(COMMAND, tmp_path, tmp_path / "cache")
