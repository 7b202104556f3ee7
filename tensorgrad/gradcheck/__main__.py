"""python -m tensorgrad gradcheck: check every example of every op, and print a table.

Exits with status 0 where everything passes, 1 where anything fails, 2 for a mistake on the command line.
"""

import argparse
import difflib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NoReturn

from tensorgrad import backend
from tensorgrad.gradcheck.cases import Case, cases
from tensorgrad.gradcheck.precision import TOLERANCE
from tensorgrad.gradcheck.report import TextTable, page, summary
from tensorgrad.gradcheck.run import Row, dtypes, run

FAILED, MISTAKE, INTERRUPTED, PIPE_CLOSED = 1, 2, 130, 141  # the last two as a shell reports these signals


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(MISTAKE, f"gradcheck: error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    chosen = [cases[op] for op in _names(parser, "op", options.op, sorted(cases))]
    precisions = _dtypes(parser, options.dtype)
    backends = _backends(parser, options.backend)
    try:
        if options.html is None:
            return _print_run(chosen, precisions, backends, None)
        with _replacing(options.html) as file:
            return _print_run(chosen, precisions, backends, file)
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return PIPE_CLOSED
        parser.error(f"cannot write {options.html}: {error.strerror or error}")
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m tensorgrad.gradcheck", allow_abbrev=False, description="Check the gradient of every op."
    )
    parser.add_argument("--op", action="append", metavar="NAME", help="this op only (may be given several times)")
    parser.add_argument("--dtype", action="append", metavar="NAME", help=f"this precision only: {', '.join(TOLERANCE)}")
    parser.add_argument("--backend", action="append", metavar="NAME", help="this backend only (all that run here)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the table as an HTML page as well")
    return parser


def _names(parser: argparse.ArgumentParser, what: str, given: list[str] | None, known: Sequence[str]) -> list[str]:
    """The names that were given, each once; without any, all that are known."""
    for name in given or []:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            parser.error(f"unknown {what} {name!r}{f'; did you mean {near[0]!r}?' if near else ''}")
    return list(dict.fromkeys(given)) if given else list(known)


def _dtypes(parser: argparse.ArgumentParser, given: list[str] | None) -> list[str]:
    here = dtypes()
    names = _names(parser, "dtype", given, list(TOLERANCE))
    if given and "bfloat16" in given and "bfloat16" not in here:
        parser.error("bfloat16 needs ml_dtypes: pip install ml_dtypes")
    return [name for name in names if name in here]


def _backends(parser: argparse.ArgumentParser, given: list[str] | None) -> list[str]:
    """The backends that were given, which have to work; without any, all that work here."""
    if not given:
        return [name for name in backend.NAMES if backend.check(name) is None]
    names = []
    for name in given:
        try:
            names.append(backend.choose()[0].name if name == "auto" else backend.load(name).name)
        except (ValueError, backend.BackendUnavailable) as error:
            parser.error(str(error))
    return list(dict.fromkeys(names))


def _print_run(chosen: list[Case], precisions: list[str], backends: list[str], file: IO[str] | None) -> int:
    table = TextTable(chosen)
    print(table.heading())
    rows: list[Row] = []
    start = time.perf_counter()
    for row in run(chosen, precisions, backends):
        rows.append(row)
        print(table.line(row))
    seconds = time.perf_counter() - start
    failed = [row for row in rows if row.failure]
    if failed:
        print("\nwhat failed:")
    for row in failed:
        print(table.line(row))
    print(f"\n{summary(rows, seconds)}", flush=True)
    if file is not None:
        file.write(page(rows, seconds))
    return FAILED if failed else 0


@contextmanager
def _replacing(path: Path) -> Iterator[IO[str]]:
    """A file that replaces `path` once it is complete; it is opened at once, so that a wrong path is an error now."""
    if path.is_dir():
        raise IsADirectoryError(None, "it is a folder")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", text=True)
    try:
        with open(handle, "w", encoding="utf-8") as file:
            yield file
        os.chmod(temporary, 0o644)  # mkstemp makes it readable by its owner only
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


if __name__ == "__main__":
    sys.exit(main())
