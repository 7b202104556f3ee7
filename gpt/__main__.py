"""`python -m gpt COMMAND ...`: every program besides train.py and generate.py."""

import sys
from collections.abc import Sequence

from gpt.cli import run as run_program
from gpt.cli import run_command

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
        "  python -m tensorgrad   list the commands of the library: doctor, gradcheck, roofline",
    ]
)


def main(argv: Sequence[str]) -> int:
    """Run the command that the first argument names, and return its exit status; without one, list the commands."""
    prog = f"python -m gpt {argv[0]}" if argv and argv[0] in COMMANDS else "python -m gpt"
    return run_program(lambda: run_command(COMMANDS, USAGE, argv), prog=prog)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
