"""A run that is killed and resumed several times ends with the same bytes as an uninterrupted run."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.kill_resume import MOMENTS, Killed, compare, line_of

TINY = [
    "--n-layer=1", "--n-head=2", "--n-embd=16", "--block-size=8", "--batch-size=2", "--grad-accum=2", "--dropout=0.1",
    "--eval-interval=4000", "--eval-iters=1", "--checkpoint-interval=25", "--threads=1", "--tokenizer=char",
]  # fmt: skip


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_run_that_is_killed_and_resumed_has_the_same_bytes(backend: str, tmp_path: Path) -> None:
    row = compare(backend, len(MOMENTS), 7, TINY, tmp_path)
    assert row["differs"] == []
    assert row["damaged"] == 0
    assert [kill["moment"] for kill in row["kills"]] == list(MOMENTS)
    assert "the same bytes" in line_of(row)


def test_a_difference_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = Killed.finish

    def finish_and_tamper(self: Killed, max_iters: int) -> None:
        finish(self, max_iters)
        if self.folder.name == "killed":
            metrics = self.folder / "metrics.jsonl"
            metrics.write_bytes(metrics.read_bytes().replace(b'"step": 9,', b'"step": 8,'))

    monkeypatch.setattr(Killed, "finish", finish_and_tamper)
    row = compare("numpy", 0, 7, TINY, tmp_path)
    assert row["differs"] == ["metrics.jsonl"]
    assert "DIFFERENT: metrics.jsonl" in line_of(row)


def test_a_run_that_ends_before_it_is_killed_raises_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: Killed) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", "print('done')"], stdout=subprocess.PIPE, text=True)

    monkeypatch.setattr(Killed, "start", start)
    run = Killed(tmp_path / "run", "numpy", TINY, random.Random(0))
    with pytest.raises(RuntimeError, match="ended by itself with 0, before it was killed:\ndone"):
        run.kill("while saving")
