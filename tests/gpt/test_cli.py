"""The command line shared by the programs: flags in both spellings, suggestions, and one-line user errors."""

from __future__ import annotations

import sys

import pytest

import tensorgrad as tg
from gpt import cli
from gpt.cli import ArgumentParser, boolean, one_of, out_of_memory, run, user_errors
from gpt.config import UserError
from gpt.tokenizer.errors import TokenizerError


def parser() -> ArgumentParser:
    parser = ArgumentParser(prog="prog")
    parser.add_argument("--batch-size", type=int, default=12)
    parser.add_argument("--backend", type=one_of("numpy", "numba"), default="numpy")
    parser.add_argument("--bias", type=boolean, default=True)
    parser.add_argument("--prompt", default="")
    return parser


def error_line(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Parse the arguments, which must fail, and return the one-line error."""
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(words)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("prog: error: ")
    return err.removeprefix("prog: error: ").rstrip("\n")


@pytest.mark.parametrize(
    "words",
    [["--batch-size", "7"], ["--batch_size", "7"], ["--batch-size=7"], ["--batch_size=7"]],
    ids=" ".join,
)
def test_flags_accept_hyphens_and_underscores(words: list[str]) -> None:
    assert parser().parse_args(words).batch_size == 7


def test_values_of_flags_are_not_changed() -> None:
    assert parser().parse_args(["--prompt=--batch_size"]).prompt == "--batch_size"
    assert parser().parse_args(["--prompt", "-- a_b"]).prompt == "-- a_b"
    assert parser().parse_args(["--prompt", "a_b=c_d"]).prompt == "a_b=c_d"


def test_arguments_default_to_sys_argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["prog", "--batch_size=3"])
    assert parser().parse_args().batch_size == 3


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--batchsize", "unknown flag --batchsize; did you mean --batch-size?"),
        ("--batch_sizes=3", "unknown flag --batch_sizes; did you mean --batch-size?"),
        ("--batch", "unknown flag --batch; did you mean --batch-size?"),
        ("--zzz", "unknown flag --zzz (see --help)"),
        ("-prompt", "unknown flag -prompt; did you mean --prompt?"),
        ("7", "unexpected argument '7': every setting is a flag (see --help)"),
        ("--batch-size=x", "argument --batch-size: invalid int value: 'x'"),
        ("--batch-size", "argument --batch-size: expected one argument"),
        (
            "--backend=numby",
            "argument --backend: unknown value 'numby'; did you mean numpy? (one of numpy, numba)",
        ),
        ("--bias=maybe", "argument --bias: 'maybe' is neither true nor false"),
    ],
)
def test_the_error_for_a_bad_argument_suggests_a_correction(
    word: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert error_line(capsys, word) == message


@pytest.mark.parametrize(("text", "value"), [("True", True), ("off", False), ("0", False), ("yes", True)])
def test_boolean_parses_several_spellings(text: str, value: bool) -> None:
    assert boolean(text) is value


def test_help_shows_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    parser_with_help = ArgumentParser(prog="prog")
    parser_with_help.add_argument("--top-k", type=int, default=200, help="how many")
    with pytest.raises(SystemExit) as caught:
        parser_with_help.parse_args(["--help"])
    assert caught.value.code == 0
    assert "how many (default: 200)" in capsys.readouterr().out


def test_help_shows_no_default_that_is_none_or_told_already(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser(prog="prog")
    parser.add_argument("words", nargs="*", help="texts")
    parser.add_argument("--stop", action="append", default=[], help="where to end")
    parser.add_argument("--list", action="store_true", help="list the runs")
    parser.add_argument("--threads", type=int, help="CPU threads (default: every core)")
    parser.add_argument("--top-k", type=int, default=0, help="how many")
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    out = capsys.readouterr().out
    assert out.count("(default: ") == 2 and "(default: every core)\n" in out and "how many (default: 0)" in out


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("no such\nfile"), "no such file"),
        (TokenizerError("never seen 'z'"), "never seen 'z'"),
        (tg.BackendUnavailable("no GPU"), "no GPU"),
        (
            FileNotFoundError(2, "No such file or directory", "a.txt"),
            "a.txt: No such file or directory",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_user_errors_are_one_line(error: Exception, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(error), prog="prog") == 2
    assert capsys.readouterr() == ("", f"prog: error: {line}\n")


def test_help_needs_no_processes_of_mpi(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A size that a scheduler's shell has left behind ends programs, but not their help."""
    monkeypatch.setattr(cli, "world", raising(tg.BackendUnavailable("started by mpirun")))
    monkeypatch.setattr(sys, "argv", ["prog", "--help"])
    assert run(lambda: 0, prog="prog") == 0
    monkeypatch.setattr(sys, "argv", ["prog"])
    assert run(lambda: 0, prog="prog") == 2
    assert capsys.readouterr().err == "prog: error: started by mpirun\n"


@pytest.mark.parametrize("bug", [ValueError("x"), KeyError("x"), OSError("nothing of a file")])
def test_bugs_keep_their_traceback(bug: Exception) -> None:
    with pytest.raises(type(bug)):
        run(raising(bug), prog="prog")


def test_interrupts_and_broken_pipes_end_without_an_error_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(KeyboardInterrupt()), prog="prog") == 130
    assert run(raising(BrokenPipeError()), prog="prog") == 141
    assert capsys.readouterr() == ("", "\n")


def test_the_status_is_the_return_value_of_main(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda: 0) == 0
    assert run(lambda: 5) == 5


def test_user_errors_converts_the_given_exceptions() -> None:
    with pytest.raises(UserError, match="^file: bad$"), user_errors(about="file"):
        raise ValueError("bad")
    with pytest.raises(UserError, match="^bad$"), user_errors(ArithmeticError):
        raise FloatingPointError("bad")
    with pytest.raises(TypeError), user_errors():
        raise TypeError("bad")


def raising(error: BaseException) -> object:
    def main() -> int:
        raise error

    return main


def test_out_of_memory_is_reported_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for error, line in (
        (MemoryError("3 GiB were asked for"), "3 GiB were asked for"),
        (MemoryError(), "out of memory"),
    ):

        def fails(error: MemoryError = error) -> int:
            raise error

        assert run(fails, "prog") == 2
        expected_line = f"prog: error: {line}; a smaller batch, window or model needs less\n"
        assert capsys.readouterr().err == expected_line


@pytest.mark.parametrize(
    ("batch_size", "grad_accum", "share", "flags"),
    [
        (64, 1, 0.9, "--batch-size 32 --grad-accum 2"),
        (12, 4, 0.6, "--batch-size 6 --grad-accum 8"),
        (5, 1, 0.9, "--batch-size 1 --grad-accum 5"),
        (8, 1, None, "--batch-size 4 --grad-accum 2"),
        (1, 4, 0.9, "--recompute True"),
    ],
)
def test_the_out_of_memory_error_suggests_flags_for_the_same_step(
    batch_size: int, grad_accum: int, share: float | None, flags: str
) -> None:
    error = MemoryError("full")
    if share is not None:
        error.share = share  # type: ignore[attr-defined]
    message = str(out_of_memory(error, batch_size, grad_accum))
    assert message == f"full; {flags} makes the same steps in less memory"
