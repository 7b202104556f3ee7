"""`python -m gpt COMMAND ...`: every program besides train.py and generate.py."""

import importlib
import sys
from collections.abc import Sequence

from gpt.cli import run as run_program
from gpt.config import UserError, nearest

COMMANDS = {  # the module, whose main(argv) returns the exit status, and what it does
    "data": ("gpt.data.__main__", "prepare texts of any size as shards of tokens, and verify them"),
    "evaluate": ("gpt.evaluate.__main__", "measure the loss of a model over a whole text"),
    "finetune": ("gpt.finetune.__main__", "train a model to label texts, or to answer"),
    "weights": ("gpt.weights.__main__", "write a model for transformers or llama.cpp, or quantised"),
    "inspect": ("gpt.inspect.__main__", "pages that show a training step or a model at work; where two runs diverge"),
    "compare": ("gpt.evaluate.compare", "compare training runs in a table and a plot"),
}
USAGE = "\n".join(
    [
        "usage: python -m gpt COMMAND ...",
        *(f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items()),
        "python -m gpt COMMAND --help describes a command. The other programs:",
        "  python train.py        train a model",
        "  python generate.py     generate text with a trained model",
        "  python -m tensorgrad   list the commands of the library: gradcheck, doctor",
    ]
)


def main(argv: Sequence[str]) -> int:
    """Run the command that the first argument names, and return its exit status; without one, list the commands."""
    command, *rest = argv or ["--help"]

    def run_command() -> int:
        if command in ("-h", "--help"):
            print(USAGE)
            return 0
        if command not in COMMANDS:
            hint = nearest(command, COMMANDS) or f" (one of {', '.join(COMMANDS)})"
            raise UserError(f"unknown command {command!r}{hint}")
        module = importlib.import_module(COMMANDS[command][0])
        status: int = module.main(rest)
        return status

    return run_program(run_command, prog=f"python -m gpt {command}" if command in COMMANDS else "python -m gpt")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
