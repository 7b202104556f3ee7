"""`python -m gpt finetune COMMAND ...`."""

import sys
from collections.abc import Sequence

from gpt.cli import run as run_program
from gpt.cli import run_command

COMMANDS = {  # the module, whose main(argv) returns the exit status, and what it does
    "classify": ("gpt.finetune.classify", "train a model to label texts"),
    "instruct": ("gpt.finetune.instruct", "train a model to answer"),
    "predict": ("gpt.finetune.predict", "label new texts with a model of classify"),
}
USAGE = "\n".join(
    [
        "usage: python -m gpt finetune COMMAND ...",
        *(f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items()),
        "A text to continue, without labels or answers, is for train.py: python train.py --init-from MODEL --data TEXT",
    ]
)


def main(argv: Sequence[str]) -> int:
    """Run the command that the first argument names, and return its exit status; without one, list the commands."""
    return run_command(COMMANDS, USAGE, argv)


if __name__ == "__main__":
    sys.exit(run_program(lambda: main(sys.argv[1:]), prog="python -m gpt finetune"))
