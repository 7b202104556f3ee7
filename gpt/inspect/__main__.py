"""`python -m gpt inspect COMMAND ...`."""

import importlib
import sys
from collections.abc import Sequence

from gpt.cli import run as run_program
from gpt.config import UserError, nearest

COMMANDS = {  # the module, whose main(argv) returns the exit status, and what it does
    "step": ("gpt.inspect.step", "a page that shows a training step, forward and backward, op by op"),
    "model": ("gpt.inspect.model", "a page that shows what a model computes for a prompt"),
    "diverge": ("gpt.inspect.diverge", "the first step, op and element at which two runs stop agreeing"),
}
USAGE = "\n".join(
    ["usage: python -m gpt inspect COMMAND ...", *(f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items())]
)


def main(argv: Sequence[str]) -> int:
    """Run the command that the first argument names, and return its exit status; without one, list the commands."""
    command, *rest = argv or ["--help"]
    if command in ("-h", "--help"):
        print(USAGE)
        return 0
    if command not in COMMANDS:
        hint = nearest(command, COMMANDS) or f" (one of {', '.join(COMMANDS)})"
        raise UserError(f"unknown command {command!r}{hint}")
    status: int = importlib.import_module(COMMANDS[command][0]).main(rest)
    return status


if __name__ == "__main__":
    sys.exit(run_program(lambda: main(sys.argv[1:]), prog="python -m gpt inspect"))
