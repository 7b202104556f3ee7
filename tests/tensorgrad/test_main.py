"""python -m tensorgrad: its list of commands, and how commands end."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tensorgrad import cli
from tensorgrad.__main__ import COMMANDS, main
from tests.processes import HANG_S

ROOT = Path(__file__).parents[2]


def python(*arguments: str) -> "subprocess.Popen[str]":
    pipe: Any = subprocess.PIPE
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_it_lists_its_commands_with_a_line_each(arguments: list[str]) -> None:
    with python("-m", "tensorgrad", *arguments) as process:
        text, errors = process.communicate(timeout=HANG_S)
    assert (process.returncode, errors) == (0, "")
    assert len(COMMANDS) > 1
    for name, (_, description) in COMMANDS.items():
        assert re.search(rf"^ +{name} +{description}$", text, re.M)


def test_it_runs_a_command_with_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gradcheck", "--op", "sign", "--dtype", "float64", "--backend", "numpy"]) == 0
    assert "examples of 1 ops on numpy in float64: all passed" in capsys.readouterr().out
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.startswith("System\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_is_its_own(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: python -m tensorgrad {command} ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["docter"],
            r": error: argument command: invalid choice: 'docter' \(choose from '?doctor'?, '?gradcheck'?, .*\)",
        ),
        (["--fast"], ": error: unrecognized arguments: --fast"),
        (["doctor", "now"], " doctor: error: unrecognized arguments: now"),
        (["gradcheck", "--op", "sofmax"], r" gradcheck: error: unknown op 'sofmax'; did you mean 'softmax'\?"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(f"python -m tensorgrad{message}\n", captured.err)


@pytest.mark.parametrize("module", [["tensorgrad", "gradcheck"], ["tensorgrad.gradcheck"]])
def test_a_pipe_that_closes_ends_a_command_without_a_word(module: list[str]) -> None:
    with python("-m", *module, "--backend", "numpy", "--dtype", "float32") as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith("op ")
        process.stdout.close()
        assert process.wait(60) == cli.PIPE_CLOSED
        assert process.stderr.read() == ""


def test_a_pipe_that_closes_at_the_last_line() -> None:
    """The output fits the buffer: it is written when the command has ended."""
    program = "import sys; from tensorgrad import cli; sys.stdin.readline(); sys.exit(cli.run(lambda: print('x') or 0))"
    command = [sys.executable, "-c", program]
    pipe: Any = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdout.close()
        process.stdin.write("\n")
        process.stdin.close()
        assert process.wait(60) == cli.PIPE_CLOSED
        assert process.stderr.read() == ""


def test_an_interrupt_ends_a_command_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> int:
        raise KeyboardInterrupt

    assert cli.run(interrupt) == 130
    assert capsys.readouterr() == ("", "")


def shell(line: str) -> "subprocess.CompletedProcess[str]":
    """Run `python -m tensorgrad` in a shell line, where it is $TG; the last line of stdout is its exit status."""
    command = line.replace("$TG", f"PYTHONUNBUFFERED= {sys.executable} -m tensorgrad")
    return subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=HANG_S)


@pytest.mark.parametrize(
    ("line", "status", "error"),
    [
        ("$TG doctor | head -1; echo ${PIPESTATUS[0]}", 141, ""),
        ("$TG | true; echo ${PIPESTATUS[0]}", 141, ""),
        ("$TG gradcheck --op sign --backend numpy >&-; echo $?", 0, ""),
        ("$TG doctor > /dev/full; echo $?", 2, "error: the output cannot be written: No space left on device\n"),
    ],
)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_output_that_is_closed_or_full_is_no_traceback(line: str, status: int, error: str) -> None:
    result = shell(line)
    assert result.stdout.splitlines()[-1] == str(status)
    assert result.stderr.replace("compiling kernels (once)\n", "") == error
