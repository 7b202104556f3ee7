"""benchmarks/default_run.py trains candidates, measures their texts, and adds runs to those of earlier calls."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.default_run import known_words, longest_copy

ROOT = Path(__file__).parents[2]


def test_words_that_occur_in_the_training_text_are_known() -> None:
    assert known_words("Thou art, thou brart; o'er the", "O'er thou:\nART") == 0.8  # the last word may be cut
    assert known_words("", "a") == 0.0


@pytest.mark.parametrize(
    ("text", "copied"),
    [("xxabcdyyabcxx", "abcd"), ("xdabcda", "dabcda"), ("efg", ""), ("abcdabcd", "abcdabcd"), ("", "")],
)
def test_the_longest_copied_run_is_found(text: str, copied: str) -> None:
    assert longest_copy(text, "abcdabcdabcd") == copied


def test_runs_are_added_to_earlier_ones(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 200)
    for seed in ("1337", "5"):
        command = [
            sys.executable, str(ROOT / "benchmarks" / "default_run.py"), "--data=text.txt", "--candidates", "char-64",
            "--seeds", seed, "--max-iters=2", "--threads=1", "--out=runs.json",
        ]  # fmt: skip
        subprocess.run(command, check=True, cwd=tmp_path, env={**os.environ, "NUMBA_DISABLE_JIT": "1"})
    runs = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert [(run["candidate"], run["seed"], run["steps"], len(run["texts"]["0.8"]["text"])) for run in runs] == [
        ("char-64", 1337, 2, 1000), ("char-64", 5, 2, 1000),
    ]  # fmt: skip
    assert "## char-64, seed 5, temperature 0.8" in (tmp_path / "runs.md").read_text()
