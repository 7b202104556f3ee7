"""What train.py and generate.py share: flags with suggestions, and errors in one line."""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import tensorgrad as tg
from gpt.config import UserError, nearest
from gpt.tokenizer.errors import TokenizerError
from tensorgrad.distributed import world

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, what a shell reports for Ctrl-C
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # what a write can meet whose file has no name here
EXIT_PIPE_CLOSED = 141  # 128 + SIGPIPE, what `cat` ends with in `cat file | head`


class ArgumentParser(argparse.ArgumentParser):
    """argparse, with one-line errors, the nearest right flag, and nanoGPT's spelling.

    `--batch_size=12`, `--batch-size=12` and `--batch-size 12` mean the same. Abbreviations are off:
    a flag that happens to start another one must not be taken for it.
    """

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)

    def parse_args(  # type: ignore[override]  # argparse overloads this for namespaces of other types
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse, or print one line to stderr and exit with status 2."""
        given = sys.argv[1:] if args is None else args
        parsed, unknown = self.parse_known_args([self._hyphens(word) for word in given], namespace)
        if unknown:
            self.error(self._explain(unknown[0]))
        return parsed

    def error(self, message: str) -> NoReturn:
        """Print the message alone, without the usage that would bury it."""
        # All processes of a group have the same flags, so one of them is enough to say so.
        self.exit(EXIT_ERROR, None if world().rank else error_line(self.prog, message))

    def flags(self) -> list[str]:
        """Return every long flag."""
        words = (word for action in self._actions for word in action.option_strings)
        return [word for word in words if word.startswith("--")]

    def _hyphens(self, word: str) -> str:
        name, equals, value = word.partition("=")
        hyphenated = name.replace("_", "-")
        # Only the name of a flag we have: a prompt may well begin with dashes and hold underscores.
        return hyphenated + equals + value if hyphenated in self.flags() else word

    def _explain(self, word: str) -> str:
        name = word.partition("=")[0]
        if not name.startswith("-"):
            return f"unexpected argument {word!r}: every setting is a flag (see --help)"
        guess = nearest("--" + name.lstrip("-").replace("_", "-"), self.flags())
        return f"unknown flag {name}{guess or ' (see --help)'}"


def one_of(*names: str) -> Callable[[str], str]:
    """Return an argparse type that accepts these names, and suggests the nearest for any other."""

    def parse(text: str) -> str:
        if text in names:
            return text
        raise argparse.ArgumentTypeError(f"unknown value {text!r}{nearest(text, names)} (one of {', '.join(names)})")

    return parse


def boolean(text: str) -> bool:
    """Parse `True`, `False`, `1`, `0`, `yes`, `no`, `on`, `off` in any case, an argparse type."""
    words = {"true": True, "1": True, "yes": True, "on": True}
    words |= {"false": False, "0": False, "no": False, "off": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return words[text.lower()]


@contextmanager
def user_errors(*kinds: type[Exception], about: str = "") -> Iterator[None]:
    """Turn exceptions of these kinds (default ValueError) into UserError, with `about: ` in front.

    For the few lines that read what the user gave; anywhere else a ValueError is a bug and keeps
    its traceback.
    """
    kinds = kinds or (ValueError,)
    try:
        yield
    except kinds as error:
        raise UserError(f"{about}: {error}" if about else str(error)) from error


def use_backend(name: str, threads: int | None, dtype: str = "float32", cuda_graph: bool = False) -> str:
    """Make a backend current, on that many CPU threads; return which was taken, and why that one.

    Of several processes with GPUs, each takes its own. Raises UserError for a dtype that the backend cannot compute in,
    and for a CUDA graph where it is not on a GPU or there are several processes.
    """
    group = world()
    if threads is None and group.size > 1:
        threads = group.threads()
    if threads is not None:
        with user_errors():
            tg.set_num_threads(threads)
    chosen = tg.use_backend(name)
    if lacks := chosen.backend.lacks(dtype):
        raise UserError(f"dtype {dtype}: {lacks}")
    if cuda_graph and (lacks := chosen.backend.lacks("cuda_graph")):
        raise UserError(f"cuda_graph: {lacks}")
    if cuda_graph and group.size > 1:
        raise UserError(f"cuda_graph: a step of {group.size} processes cannot be recorded: leave it out")
    chosen.backend.communicator(group)
    tg.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    return chosen.reason


def error_line(prog: str, message: str) -> str:
    """Return `prog: error: message` as exactly one line."""
    return f"{prog}: error: {' '.join(message.split())}\n"


def run(main: Callable[[], int], prog: str | None = None) -> int:
    """Run a program's main and return its exit status, for `sys.exit(run(main))`.

    A mistake of the user (UserError, a text that the tokenizer cannot take, a backend that cannot
    run here, a file that cannot be read or written) and memory that runs out become one line on
    stderr and status 2; Ctrl-C ends with 130, a closed pipe with 141, both quietly. Anything else
    is a bug, and keeps its traceback. Of the processes that mpirun started the first alone prints
    on stdout, and an error of one ends all.
    """
    prog = prog or Path(sys.argv[0]).name
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this, as `>&-` does
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # for good
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show every character
    try:
        group = world()
    except tg.BackendUnavailable as error:
        sys.stderr.write(error_line(prog, str(error)))
        return EXIT_ERROR
    if group.rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for good
    status, message = _outcome(main)
    if message and group.rank:
        time.sleep(GRACE)
        message = f"process {group.rank} of {group.size}: {message}"
    if message:
        sys.stderr.write(error_line(prog, message))
    if group.size > 1 and (message or status == EXIT_PIPE_CLOSED):
        group.abort(status)
    return status


GRACE = 3.0  # seconds: most mistakes are everybody's, so the first process may say them, and end all, before others do


def _outcome(main: Callable[[], int]) -> tuple[int, str]:
    """Return the exit status of main, and the error that it ended with, if there is one to be told."""
    try:
        status = main()
        sys.stdout.flush()  # here, where a closed pipe is still ours to catch
        return status, ""
    except (UserError, TokenizerError, tg.BackendUnavailable) as error:
        return EXIT_ERROR, str(error)
    except MemoryError as error:
        return EXIT_ERROR, f"{str(error) or 'out of memory'}; a smaller batch, window or model needs less"
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        if world().size > 1:
            world().abort(EXIT_INTERRUPTED)
        return EXIT_INTERRUPTED, ""
    except BrokenPipeError:
        return EXIT_PIPE_CLOSED, ""
    except OSError as error:
        if error.filename is None and error.errno in NO_ROOM:
            _drop_output()
            return EXIT_ERROR, f"what this program prints, or a file of its own, cannot be written: {error.strerror}"
        if error.filename is None:
            raise
        return EXIT_ERROR, f"{error.filename}: {error.strerror}"


def _drop_output() -> None:
    """Give up what stdout could not take: Python would try once more at its end, and print a warning."""
    try:
        sys.stdout.flush()
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for good


def out_of_memory(error: MemoryError, batch_size: int, grad_accum: int) -> UserError:
    """Return what to tell a user whose training does not fit, with the flags of the same step in less memory."""
    room = int(batch_size * getattr(error, "share", 0.5))  # of all that is needed, where the backend knows it
    fits = max((n for n in range(1, room + 1) if batch_size * grad_accum % n == 0), default=0)
    less = f"--batch-size {fits} --grad-accum {batch_size * grad_accum // fits}" if fits else "--recompute True"
    return UserError(f"{str(error) or 'out of memory'}; {less} makes the same steps in less memory")


def leave(status: int) -> NoReturn:
    """End the program with a status; after Ctrl-C at once.

    Python's own way would end a thread that is writing a checkpoint in the middle of its machine code, which some
    libraries answer with a crash. What that thread was writing has no name yet, so nothing is lost with it.
    """
    if status == EXIT_INTERRUPTED and world().size == 1:  # a group has stopped together, with nothing being written
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
