"""python -m tensorgrad: list the commands of the library, or run one of them: python -m tensorgrad doctor."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from tensorgrad import cli

COMMANDS = {
    "doctor": ("tensorgrad.doctor", "report what is installed and what works, and what to do where it does not"),
    "gradcheck": ("tensorgrad.gradcheck.__main__", "check the gradient of every op against finite differences"),
    "roofline": (
        "tensorgrad.inspect.roofline_command",
        "time every op of a step beside what this machine can do at most",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name with the rest of them; return its exit status."""
    lines = [f"  {name:<12} {text}" for name, (_, text) in COMMANDS.items()]
    parser = cli.ArgumentParser(
        prog="python -m tensorgrad", usage="%(prog)s COMMAND ...", epilog="\n".join(["commands:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("command", nargs="?", choices=COMMANDS, help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.command is None:
        parser.print_help()
        return 0
    status: int = importlib.import_module(COMMANDS[given.command][0]).main(given.arguments)
    return status


if __name__ == "__main__":
    sys.exit(cli.run(main))
