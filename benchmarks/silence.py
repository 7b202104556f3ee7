#!/usr/bin/env python3
"""Check that no program is silent for more than five seconds while its output is piped.

    python benchmarks/silence.py [--allowed 5] [--command 'python train.py --max-iters 50' ...]

Runs each command (by default the first ones of README.md: training, then generating from what it trained, and
evaluating it) in a new folder, with stdout and stderr in one pipe, and prints the longest time without a byte, and what
was written before it. Exits with 1 if that is longer than allowed, or if a command fails. For a machine that does
nothing else.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = [
    "python train.py --out run",
    "python generate.py --checkpoint run",
    "python -m gpt evaluate run --data shakespeare",
]


def gaps(pieces: Iterable[bytes], clock: Callable[[], float]) -> Iterator[tuple[float, str]]:
    """The seconds without output before every piece and before the end, each with the last line written before it."""
    last, line = clock(), b"(the start)"
    for piece in pieces:
        now = clock()
        yield now - last, line.decode(errors="replace")
        last, line = now, (piece.split() and piece.strip().replace(b"\r", b"\n").splitlines()[-1]) or line
    yield clock() - last, line.decode(errors="replace")


def run(command: str, folder: str, clock: Callable[[], float] = time.perf_counter) -> tuple[int, float, str]:
    """The exit status of a command, and the longest time that it was silent, with the line before."""
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    words = [str(ROOT / word) if (ROOT / word).suffix == ".py" and (ROOT / word).is_file() else word for word in words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONUNBUFFERED", None)  # which few people set
    pipe = subprocess.PIPE
    with subprocess.Popen(words, cwd=folder, env=environment, stdout=pipe, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        descriptor = process.stdout.fileno()
        longest, line = max(gaps(iter(lambda: os.read(descriptor, 2**16), b""), clock))
    return process.returncode, longest, line


def main() -> int:
    """Measure the commands; the exit status."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--allowed", type=float, default=5.0, metavar="S", help="seconds without output (5)")
    parser.add_argument("--command", action="append", metavar="COMMAND", help="may be given several times")
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for command in options.command or COMMANDS:
            status, longest, line = run(command, folder)
            failed |= status != 0 or longest > options.allowed
            print(f"{longest:6.1f} s silent at most, exit status {status}: {command}", flush=True)
            print(f"         after: {line:.100}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
