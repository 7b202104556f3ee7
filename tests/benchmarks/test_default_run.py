"""benchmarks/default_run.py trains candidates, measures their texts, and adds runs to those of earlier calls."""

import json
from pathlib import Path

import pytest

from benchmarks import default_run
from benchmarks.default_run import known_words, longest_copy, main


def test_words_that_occur_in_the_training_text_are_known() -> None:
    assert known_words("Thou art, thou brart; o'er the", "O'er thou:\nART") == 0.8  # the last word may be cut
    assert known_words("", "a") == 0.0


@pytest.mark.parametrize(
    ("text", "copied"),
    [("xxabcdyyabcxx", "abcd"), ("xdabcda", "dabcda"), ("efg", ""), ("abcdabcd", "abcdabcd"), ("", "")],
)
def test_the_longest_copied_run_is_found(text: str, copied: str) -> None:
    assert longest_copy(text, "abcdabcdabcd") == copied


def test_runs_are_added_to_earlier_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(default_run, "CHARACTERS", 40)
    Path("text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 200)
    flags = ["--data=text.txt", "--candidates", "char-64", "--max-iters=2", "--threads=1", "--out=runs.json"]
    for seed in ("1337", "5"):
        monkeypatch.setattr("sys.argv", ["default_run.py", *flags, "--seeds", seed])
        assert main() == 0
    runs = json.loads(Path("runs.json").read_text())["runs"]
    assert [(run["candidate"], run["seed"], run["steps"], len(run["texts"]["0.8"]["text"])) for run in runs] == [
        ("char-64", 1337, 2, 40), ("char-64", 5, 2, 40),
    ]  # fmt: skip
    assert "## char-64, seed 5, temperature 0.8" in Path("runs.md").read_text()
