"""What the commands of the library share: errors in one line, and a quiet end when the output is closed."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

MISTAKE, INTERRUPTED, PIPE_CLOSED = 2, 130, 141  # exit statuses; a shell reports SIGINT and SIGPIPE as the last two


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, `prog: error: message`, and exit with status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(MISTAKE, f"{self.prog}: error: {message}\n")


def run(main: Callable[[], int]) -> int:
    """Run a command and return its exit status: 130 after Ctrl-C, 141 where its output was closed, as by `| head`.

    An output that cannot be written, as on a full disk, is an error of one line.
    """
    if sys.stdout is None:  # closed by the shell, as with `>&-`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # stays open
    try:
        status = main()
        sys.stdout.flush()  # here, where a closed pipe can be caught
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        if error.filename is not None:  # of a file that the command works with
            raise
        discard_output()
        if isinstance(error, BrokenPipeError):
            return PIPE_CLOSED
        sys.stderr.write(f"error: the output cannot be written: {error.strerror}\n")
        return MISTAKE
    return status


def discard_output() -> None:
    """Write nothing more on stdout, which cannot be written: Python flushes it once more at its end."""
    if sys.__stdout__ is not None and sys.stdout is sys.__stdout__:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
