"""What all programs share: flags with suggestions, errors of one line, and the choice of the backend."""

import argparse
import errno
import importlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import tensorgrad as tg
from gpt.config import UserError, nearest
from gpt.tokenizer.errors import TokenizerError
from tensorgrad.cli import discard_output
from tensorgrad.distributed import ALONE, world

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports Ctrl-C
EXIT_PIPE_CLOSED = 141  # 128 + SIGPIPE, as of `cat` in `cat file | head`
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of a flag that has one, unless its help tells it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = "(default: " in (action.help or "")
        none = action.default is False or action.default in (None, "", [])
        return action.help if told or none else super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """argparse with errors of one line, suggestions for mistyped flags, and nanoGPT's spelling.

    `--batch_size=12`, `--batch-size=12` and `--batch-size 12` mean the same. Flags cannot be abbreviated.
    """

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", HelpFormatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)

    def parse_args(  # type: ignore[override]  # argparse overloads this for namespaces of other types
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse; for a mistake, print one line to stderr and exit with status 2."""
        given = sys.argv[1:] if args is None else args
        parsed, unknown = self.parse_known_args(self._with_values([self._hyphens(word) for word in given]), namespace)
        if unknown:
            self.error(self._explain(unknown[0]))
        return parsed

    def error(self, message: str) -> NoReturn:
        """Print the message, without the usage, and exit with status 2; of several processes, rank 0 prints it."""
        self.exit(EXIT_ERROR, None if world().rank else error_line(self.prog, message))

    def flags(self) -> list[str]:
        """Return every long flag."""
        return [word for action in self._actions for word in action.option_strings if word.startswith("--")]

    def _hyphens(self, word: str) -> str:
        name, equals, value = word.partition("=")
        hyphenated = name.replace("_", "-")
        # Only in the names of known flags: a prompt may begin with dashes and contain underscores.
        return hyphenated + equals + value if hyphenated in self.flags() else word

    def _with_values(self, words: Sequence[str]) -> list[str]:
        """`--prompt -a` -> `--prompt=-a`: argparse takes every word that begins with a hyphen for a flag."""
        texts = {
            flag for action in self._actions for flag in action.option_strings
            if action.nargs is None and action.type not in (int, float)
        }  # fmt: skip
        joined: list[str] = []
        for word in words:
            is_flag = word.partition("=")[0] in self._option_string_actions
            if joined and joined[-1] in texts and word.startswith("-") and not is_flag:
                joined[-1] += f"={word}"
            else:
                joined.append(word)
        return joined

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if action.nargs is None and action.option_strings and arg_strings == ["--"]:
            return self._get_value(action, "--")  # which Python 3.12 and older drop, as if it ended the flags
        return super()._get_values(action, arg_strings)

    def _explain(self, word: str) -> str:
        name = word.partition("=")[0]
        if not name.startswith("-"):
            return f"unexpected argument {word!r}: every setting is a flag (see --help)"
        guess = nearest("--" + name.lstrip("-").replace("_", "-"), self.flags())
        return f"unknown flag {name}{guess or ' (see --help)'}"


def one_of(*names: str) -> Callable[[str], str]:
    """Return an argparse type that accepts these names, and suggests the closest for any other."""

    def parse(text: str) -> str:
        if text in names:
            return text
        raise argparse.ArgumentTypeError(f"unknown value {text!r}{nearest(text, names)} (one of {', '.join(names)})")

    return parse


def cpu_backend() -> str:
    """Return the name of the fastest backend for the CPU that runs here."""
    return "numpy" if tg.backend.check("numba") else "numba"


def boolean(text: str) -> bool:
    """Parse `True`, `False`, `1`, `0`, `yes`, `no`, `on`, `off` in any case; an argparse type."""
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


@contextmanager
def user_errors(*kinds: type[Exception], about: str = "") -> Iterator[None]:
    """Convert exceptions of these kinds (default: ValueError) to UserError, with `about: ` in front.

    For the few lines that process what the user gave; anywhere else a ValueError is a bug, and keeps its traceback.
    """
    kinds = kinds or (ValueError,)
    try:
        yield
    except kinds as error:
        raise UserError(f"{about}: {error}" if about else str(error)) from error


def use_backend(
    name: str, threads: int | None, dtype: str = "float32", cuda_graph: bool | None = False,
    numpy_products: Iterable[str] | None = None,
) -> str:  # fmt: skip
    """Select a backend and the number of its CPU threads; return its name and why it was chosen.

    numpy_products: those of a run that is resumed, for Backend.leave_products. Several processes have to compute
    alike, so none leaves any to NumPy's library. With GPUs, each uses its own. Raises UserError for a dtype that the
    backend does not support, and for a CUDA graph without a GPU or with several processes.
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
        raise UserError(f"cuda_graph: a step of {group.size} processes cannot be recorded: give --no-cuda-graph")
    if numpy_products is None and group.size > 1:
        numpy_products = ()
    with user_errors():
        chosen.backend.leave_products(numpy_products)
    chosen.backend.communicator(group)
    tg.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    return chosen.reason


def one_line(error: Exception) -> str:
    """Return the kind of an exception and its message, without line breaks."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def error_line(prog: str, message: str) -> str:
    """Return `prog: error: message` as exactly one line."""
    line = " ".join(message.split())
    return f"{prog}: error: {line}\n".encode(errors="backslashreplace").decode()  # of a file name that is not UTF-8


def run_command(commands: Mapping[str, tuple[str, str]], usage: str, argv: Sequence[str]) -> int:
    """Run the command that the first argument names, and return its exit status; without one, print the usage.

    commands: of each the module, whose main(argv) returns the exit status, and what it does. Raises UserError for an
    unknown command.
    """
    command, *rest = argv or ["--help"]
    if command in ("-h", "--help"):
        print(usage)
        return 0
    if command not in commands:
        hint = nearest(command, commands) or f" (one of {', '.join(commands)})"
        raise UserError(f"unknown command {command!r}{hint}")
    status: int = importlib.import_module(commands[command][0]).main(rest)
    return status


def run(main: Callable[[], int], prog: str | None = None) -> int:
    """Run a program's main and return its exit status, for `sys.exit(run(main))`.

    A mistake of the user and a lack of memory are reported in one line on stderr, with status 2. Ctrl-C gives status
    130 and a closed pipe 141, without a message. Anything else is a bug, and keeps its traceback. Of the processes that
    mpirun started, only rank 0 prints on stdout, and an error of one ends all.
    """
    prog = prog or Path(sys.argv[0]).name
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell, as with `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # stays open
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show every character
    try:
        group = world()
    except tg.BackendUnavailable as error:
        if not {"-h", "--help"} & set(sys.argv[1:]):  # help needs no group
            sys.stderr.write(error_line(prog, str(error)))
            return EXIT_ERROR
        group = ALONE
    if group.rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # stays open
    status, message = _outcome(main)
    if message and group.rank:
        time.sleep(GRACE)
        message = f"process {group.rank} of {group.size}: {message}"
    if message:
        sys.stderr.write(error_line(prog, message))
    if group.size > 1 and (message or status == EXIT_PIPE_CLOSED):
        group.abort(status)
    return status


GRACE = 3.0  # seconds: most errors occur in every process, so rank 0 has time to report it and end the others


def _outcome(main: Callable[[], int]) -> tuple[int, str]:
    """Return the exit status of main, and the message of its error, if it has one."""
    try:
        status = main()
        sys.stdout.flush()  # here, where a closed pipe can still be caught
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
        discard_output()
        return EXIT_PIPE_CLOSED, ""
    except OSError as error:
        if error.filename is not None:
            return EXIT_ERROR, f"{error.filename}: {error.strerror}"
        if error.errno not in DISK_ERRORS:
            raise
        try:
            sys.stdout.flush()
        except OSError:  # Python would try again at exit, and print a warning
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # stays open
        return EXIT_ERROR, f"the output of this program, or one of its files, cannot be written: {error.strerror}"


def out_of_memory(error: MemoryError, batch_size: int, grad_accum: int) -> UserError:
    """Return the error for training that does not fit into memory, with flags for the same steps in less memory."""
    limit = int(batch_size * getattr(error, "share", 0.5))  # the share of the memory that there is, if known
    fits = max((n for n in range(1, limit + 1) if batch_size * grad_accum % n == 0), default=0)
    flags = f"--batch-size {fits} --grad-accum {batch_size * grad_accum // fits}" if fits else "--recompute True"
    return UserError(f"{str(error) or 'out of memory'}; {flags} makes the same steps in less memory")


def leave(status: int) -> NoReturn:
    """Exit with a status; after Ctrl-C at once, because Python's shutdown may crash in a thread that is writing.

    The incomplete checkpoint of that thread has no name yet, so nothing is lost.
    """
    if status == EXIT_INTERRUPTED and world().size == 1:  # several processes stop together, when nothing is written
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
