"""python -m tensorgrad gradcheck: check every example of every op, and print a table.

Exits with status 0 where everything passes, 1 where anything fails, 2 for a mistake on the command line.
"""

import argparse
import difflib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from tensorgrad import backend, cli
from tensorgrad.gradcheck.cases import Case, cases
from tensorgrad.gradcheck.precision import TOLERANCE
from tensorgrad.gradcheck.report import TextTable, page, summary
from tensorgrad.gradcheck.run import Row, dtypes, run

FAILED = 1  # exit status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    chosen = [cases[op] for op in _names(parser, "op", options.op, sorted(cases))]
    precisions = _dtypes(parser, options.dtype)
    backends = _backends(parser, options.backend)
    if options.html:
        _open(parser, options.html, "a").close()  # a path that cannot be written is an error now, not after the run
    rows, seconds = _print_run(chosen, precisions, backends)
    if options.html:
        text = page(rows, seconds)
        with _open(parser, options.html, "w") as file:
            file.write(text)
    return FAILED if any(row.failure for row in rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(
        prog="python -m tensorgrad gradcheck", allow_abbrev=False, description="Check the gradient of every op."
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


def _print_run(chosen: list[Case], precisions: list[str], backends: list[str]) -> tuple[list[Row], float]:
    """Run and print all checks; return them and the seconds they took."""
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
    return rows, seconds


def _open(parser: argparse.ArgumentParser, path: Path, mode: str) -> IO[str]:
    try:
        return open(path, mode, encoding="utf-8")
    except OSError as error:
        parser.error(f"cannot write {path}: {error.strerror}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
