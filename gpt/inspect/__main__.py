"""`python -m gpt inspect COMMAND ...`."""

import sys
from collections.abc import Sequence

from gpt.cli import run as run_program
from gpt.cli import run_command

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
    return run_command(COMMANDS, USAGE, argv)


if __name__ == "__main__":
    sys.exit(run_program(lambda: main(sys.argv[1:]), prog="python -m gpt inspect"))
