"""Random command lines of every program: no traceback, status 0 or 2, one line of error, nothing half-written.

The programs run in this process, in a folder of their own; each case has one command of a few right and wrong flags.
"""

import contextlib
import io
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import generate
import tensorgrad as tg
import tensorgrad.__main__
import train
from gpt import __main__ as gpt_programs
from gpt.cli import ArgumentParser, run
from gpt.data.__main__ import build_parser as prepare_parser
from gpt.evaluate.__main__ import build_parser as evaluate_parser
from gpt.files import LOCK
from gpt.train.flags import build_parser as train_parser
from tensorgrad import cli as library

HANG_S = 600  # no case takes so long on the slowest machine
TINY = [
    "--data", "text.txt", "--backend", "numpy", "--n-layer", "1", "--n-head", "2", "--n-embd", "8", "--block-size", "4",
    "--batch-size", "2", "--max-iters", "2", "--eval-iters", "1", "--eval-interval", "2", "--plot", "False",
]  # fmt: skip
PREPARE = ["--tokenizer", "char", "--workers", "1"]

# What people type for a value: right for some flags, and wrong for others.
NUMBERS = ["0", "1", "2", "3", "-1", "0.5", "1e-3", "-0.0", "nan", "inf", "-inf", "1e400", "100000000000000000000",
           "9223372036854775808", "2147483648", "1_0", "0x10", "٣", "1e3", "007", " 2 "]  # fmt: skip
INTEGERS = ["0", "1", "2", "3", "4", "8", "-1", "-2", "100000000000000000000", "9223372036854775808", "2147483648"]
WORDS = [
    "", " ", "True", "False", "yes", "None", "auto", "numpy", "numba", "cuda", "char", "bpe", "gpt2", "val", "all",
    "float32", "bfloat16", "cosine", "-", "--", "-a", "--x", "=", "a=b", "é", "\udcff", "a\nb", "'", '"', "$x$", "%s",
]  # fmt: skip
PATHS = [
    "text.txt", "run", "run/step-000002", "out", "missing", "missing/deeper", "/", ".", "..", "~", "/dev/null",
    "empty.txt", "noise.bin", "lines.jsonl", "broken.toml", "good.toml", "prepared", "run/config.toml", "x" * 300,
    "FILE:text.txt", "FILE:missing", "*.txt", "folder",
]  # fmt: skip
# Values of flags that would make a command long, or use what the machine does not have.
SHORT = {
    "--max-iters": ["0", "1", "2", "-1", "nan", "x", ""], "--eval-iters": ["0", "1", "-1", "x"],
    "--max-new-tokens": ["0", "1", "3", "-1", "x", "1.5"], "--num-samples": ["0", "1", "2", "-1", "x"],
    "--workers": ["0", "1", "-1", "x", "100000"], "--threads": ["0", "1", "2", "-1", "x", "100000000000000000000"],
    "--vocab-size": ["0", "1", "260", "-1", "x"], "--data": PATHS, "--logger": ["none", "x", ""],
    "--op": ["exp", "softmax", "x", ""],
    "--dtype": ["float64", "float32", "float16", "x", ""], "--backend": ["numpy", "cupy", "x", "", "auto"],
    "--html": ["out.html", "missing/out.html", "folder", ""],
}  # fmt: skip


def flags_of(parser: Any) -> list[Any]:
    """The flags of a parser but --help."""
    return [action for action in parser._actions if action.option_strings and "--help" not in action.option_strings]


def spoilt(rng: random.Random, flag: str) -> str:
    """The flag as people mistype it."""
    at = rng.randrange(2, len(flag))
    underscored = flag.replace("-", "_").replace("__", "--", 1)
    return rng.choice([flag[:at] + flag[at + 1 :], flag[:at], underscored, flag.upper(), flag + "s"])


def fitting(action: Any) -> list[str]:
    """Values of the type that a flag takes, if not always in its range."""
    if action.type is int:
        return INTEGERS
    if action.type is float:
        return NUMBERS
    names = [cell.cell_contents for cell in getattr(action.type, "__closure__", None) or ()]
    return list(names[0]) if names and isinstance(names[0], tuple) else [*WORDS, *PATHS]


def random_flags(rng: random.Random, parser: Any, most: int) -> list[str]:
    """A few flags of a program, with values that are right for some, at times mistyped, twice, or without a value."""
    words: list[str] = []
    actions = flags_of(parser)
    for action in rng.choices(actions, k=rng.randrange(most + 1)):
        flag = rng.choice(action.option_strings)
        values = SHORT.get(flag) or (fitting(action) if rng.random() < 0.8 else [*NUMBERS, *WORDS, *PATHS])
        if rng.random() < 0.08:
            flag = spoilt(rng, flag)
        takes_none = action.nargs == 0 or (action.nargs == "?" and rng.random() < 0.3)
        if takes_none or rng.random() < 0.05:
            words.append(flag)
        else:
            words += rng.choice([[flag, rng.choice(values)], [f"{flag}={rng.choice(values)}"]])
    if rng.random() < 0.05:
        words.append(rng.choice([*WORDS, "--help", "-h", "extra"]))
    return words


# --- a command of each program: its words, and how it is run ---------------------------------------

Command = tuple[list[str], Callable[[], int]]


def with_argv(name: str, words: list[str], main: Callable[[], int]) -> Command:
    def call() -> int:
        sys.argv = [name, *words]
        return run(main, prog=name)

    return [name, *words], call


def train_command(rng: random.Random) -> Command:
    words = [*TINY, "--out", "out", *random_flags(rng, train_parser(), 3)]
    if rng.random() < 0.2:
        path = rng.choice(PATHS)
        begun = [["--resume"], ["--resume", "run"], ["--resume", path], ["--replay", path], ["--config", path]]
        words = rng.choice([*begun, [*TINY, "--out", "out", "--init-from", rng.choice(["run", path])]])
        words += [*([] if "--replay" in words else ["--max-iters", "2"]), *random_flags(rng, train_parser(), 1)]
    if rng.random() < 0.3:
        words.append("--dry-run")
    return with_argv("train.py", words, train.main)


def generate_command(rng: random.Random) -> Command:
    source = ["--checkpoint", rng.choice(["run", "run", "run/step-000002", rng.choice(PATHS)])]
    words = [*source, "--max-new-tokens", "2", "--backend", "numpy", *random_flags(rng, generate.build_parser(), 3)]
    return with_argv("generate.py", words, generate.main)


def gpt_command(rng: random.Random) -> Command:
    name = rng.choice(["evaluate", "evaluate", "compare", "data", "data", "verify", "none"])
    if name == "evaluate":
        words = ["evaluate", rng.choice(["run", "run", rng.choice(PATHS)]), "--backend", "numpy"]
        words += ["--data", rng.choice(["text.txt", rng.choice(PATHS)]), *random_flags(rng, evaluate_parser(), 2)]
    elif name == "compare":
        words = ["compare", *rng.choices(["run", *PATHS], k=rng.randrange(3)), "--out", rng.choice(["c.png", *PATHS])]
    elif name == "data":
        words = ["data", "prepare", rng.choice(["text.txt", rng.choice(PATHS)]), *PREPARE]
        words += ["--out", rng.choice(["out", "out", rng.choice(PATHS)]), *random_flags(rng, prepare_parser(), 2)]
    elif name == "verify":
        words = ["data", rng.choice(["verify", "verify", "verfy", ""]), *rng.choices(PATHS, k=rng.randrange(3))]
    else:
        words = rng.choice([[], ["--help"], ["evalute"], [""], ["--x"], ["evaluate"], ["data"], ["compare", "--help"]])
    return ["python -m gpt", *words], lambda: gpt_programs.main(words)


def library_command(rng: random.Random) -> Command:
    parser = ArgumentParser()
    for flag in ("--op", "--dtype", "--backend", "--html"):
        parser.add_argument(flag)
    words = ["gradcheck", "--op", "sign", "--dtype", "float32", "--backend", "numpy", *random_flags(rng, parser, 2)]
    others = [[], ["--help"], ["gradchek"], ["doctor", "--x"], ["doctor", "--help"], [""], ["gradcheck", "extra"]]
    words = rng.choice([words] * 4 + others)
    return ["python -m tensorgrad", *words], lambda: library.run(lambda: tensorgrad.__main__.main(words))


COMMANDS = [train_command, train_command, generate_command, gpt_command, gpt_command, library_command]


# --- the cases --------------------------------------------------------------------------------------


class Cases:
    """A folder with a text, a run and other files, of which every case gets a copy."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.whole = folder, folder / "whole"
        self.whole.mkdir()
        with inside(self.whole):
            Path("text.txt").write_text("to be, or not to be\n" * 30)
            Path("empty.txt").write_text("")
            Path("noise.bin").write_bytes(random.Random(0).randbytes(500))
            Path("lines.jsonl").write_text('{"text": "to be"}\n' * 20)
            Path("broken.toml").write_text("n_layer = \n")
            settings = ['data = "text.txt"', 'backend = "numpy"', *(f"{name} = 2" for name in ("max_iters", "n_layer"))]
            Path("good.toml").write_text("\n".join([*settings, "n_embd = 8", "n_head = 2"]))
            Path("folder").mkdir()
            status, said = outcome(with_argv("train.py", [*TINY, "--out", "run"], train.main)[1])
            assert status == 0, said
            words = ["data", "prepare", "text.txt", "--out", "prepared", *PREPARE]
            status, said = outcome(lambda: gpt_programs.main(words))
            assert status == 0, said

    def check(self, seed: int) -> None:
        """Raises AssertionError, or what the program ended with, for a command that is handled wrongly."""
        rng = random.Random(seed)
        words, call = rng.choice(COMMANDS)(rng)
        folder = self.folder / str(seed)
        shutil.copytree(self.whole, folder)
        before = {path.relative_to(folder) for path in folder.rglob("*")}
        try:
            with inside(folder):
                try:
                    status, said = outcome(call)
                except BaseException as error:
                    raise AssertionError(f"{words}: {type(error).__name__}: {error}") from error
            new = {path.relative_to(folder) for path in folder.rglob("*")} - before
        finally:
            shutil.rmtree(folder)
        failed = status == 1 and words[0] == "python -m tensorgrad"  # as documented, where a check fails
        assert status in (0, 2) or failed, f"{words}: status {status}\n{said}"
        assert "Traceback" not in said, f"{words}: {said}"
        errors = [line for line in said.splitlines() if "error: " in line]
        assert len(errors) == (status == 2), f"{words}: status {status}\n{said}"
        left = [str(path) for path in new if path.name.startswith(".") or path.name == LOCK]
        assert not left, f"{words}: left behind {left}\n{said}"
        assert status == 0 or not new, f"{words}: refused, but wrote {sorted(map(str, new))[:5]}\n{said}"


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """In a folder, with nothing of the programs' effects on this process left after it."""
    here, argv, home, chosen = Path.cwd(), sys.argv, os.environ.get("HOME"), tg.get_backend().name
    os.chdir(folder)
    os.environ["HOME"] = str(folder.parent)
    try:
        yield
    finally:
        os.chdir(here)
        sys.argv = argv
        os.environ.pop("HOME") if home is None else os.environ.update(HOME=home)
        tg.use_backend(chosen)


def outcome(call: Callable[[], int]) -> tuple[int, str]:
    """The status of a command, and what it printed. Raises what it raises, and TimeoutError where it hangs."""
    said = io.StringIO()

    def end(*_: Any) -> None:
        raise TimeoutError(f"it has not ended in {HANG_S} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(HANG_S)
    stdin = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(b"typed"))
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                status = call()
            except SystemExit as error:
                status = int(error.code or 0)
    finally:
        sys.stdin = stdin
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return status, said.getvalue()


def failures(seeds: range) -> Iterator[tuple[int, str]]:
    """The seed of every case that fails, and how."""
    with tempfile.TemporaryDirectory() as folder:
        cases = Cases(Path(folder))
        for seed in seeds:
            try:
                cases.check(seed)
            except Exception as error:
                yield seed, str(error)
