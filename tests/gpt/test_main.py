"""`python -m gpt` lists the commands and runs them, and their old spellings still work."""

import subprocess
import sys
from pathlib import Path

import pytest

from gpt.__main__ import COMMANDS, main
from gpt.weights.initial import MODEL_HELP
from tests.processes import HANG_S

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S)


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_lists_every_command_on_its_own_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, (_, text) in COMMANDS.items():
        assert [line.split(maxsplit=1) for line in lines].count([name, text]) == 1
    assert any("python train.py" in line for line in lines)
    assert any("python generate.py" in line for line in lines)


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["evalute"], "python -m gpt: error: unknown command 'evalute'; did you mean evaluate?"),
        (["x"], f"python -m gpt: error: unknown command 'x' (one of {', '.join(COMMANDS)})"),
        (["data", "x"], "python -m gpt data: error: unknown command 'x': prepare or verify"),
        (
            ["data", "verify", "x"],
            "python -m gpt data: error: x is not a folder of prepared data: it has no manifest.json; "
            "python -m gpt data prepare writes one",
        ),
        (["compare", "x"], "python -m gpt compare: error: x: not a run: there is no metrics.jsonl in it"),
        (
            ["evaluate", "x", "--data=y", "--backend=numpy"],
            f"python -m gpt evaluate: error: x: no such checkpoint; give {MODEL_HELP}",
        ),
    ],
)
def test_user_errors_are_one_line_with_status_2(
    argv: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    assert capsys.readouterr().err == f"{error}\n"


def test_the_help_of_a_command_shows_its_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["evaluate", "--help"], ["compare", "--help"], ["data", "prepare", "--help"]):
        with pytest.raises(SystemExit) as ended:
            main(argv)
        assert ended.value.code == 0
        assert capsys.readouterr().out.startswith("usage: python -m gpt " + " ".join(argv[:-1]))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_old_spelling_runs_the_same_program(command: str) -> None:
    old, new = run(f"gpt.{command}", "--nonsense"), run("gpt", command, "--nonsense")
    assert (old.returncode, old.stdout, old.stderr) == (new.returncode, new.stdout, new.stderr)
    assert old.returncode == 2
    assert old.stderr.count("\n") == 1
