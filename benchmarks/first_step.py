#!/usr/bin/env python3
"""Measure the first step ever: from the command to the first line of metrics.jsonl, with nothing in a cache.

    python benchmarks/first_step.py [--runs 3] [--command 'python train.py --config llama-char']

Each run has a new folder and an empty cache of compiled kernels and tokenizers (cold); then the same command runs again
(warm). For both it prints the seconds until the first output, the seconds until the first line of metrics.jsonl, and
the processor time until then, of all processes together. The process is ended after that line. Linux only. For a
machine that does nothing else; the processor time alone also means something on a busy one.
"""

import argparse
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "python train.py"
TICKS = os.sysconf("SC_CLK_TCK")


class Times(NamedTuple):
    """Seconds since the command was started."""

    first_output: float
    first_step: float
    processor: float  # until the first step, of all processes together


def processor_time(pid: int) -> float:
    """The processor time of a process and of those of its children that have ended (proc(5), fields 14 to 17)."""
    numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, numbers[11:15])) / TICKS


def measure(command: str, folder: Path, cache: Path) -> Times:
    """Run a command of train.py in a new folder until its first step; RuntimeError where it ends before."""
    words = [*shlex.split(command), "--out", str(folder / "run")]
    words = [sys.executable if word == "python" else word for word in words]
    words = [str(ROOT / word) if word == "train.py" else word for word in words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(cache), "XDG_CACHE_HOME": str(cache)}
    output, metrics = folder / "output.txt", folder / "run/metrics.jsonl"
    with output.open("wb") as file:
        started, first_output = time.perf_counter(), 0.0
        process = subprocess.Popen(words, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT)
        while not (metrics.exists() and b"\n" in metrics.read_bytes()):
            if process.poll() is not None:
                raise RuntimeError(f"{command} ended before its first step:\n{output.read_text()}")
            if not first_output and output.stat().st_size:
                first_output = time.perf_counter() - started
            time.sleep(0.01)
        times = Times(first_output, time.perf_counter() - started, processor_time(process.pid))
        process.send_signal(signal.SIGTERM)
        process.wait()
    return times


def main() -> None:
    """Measure, and print the medians."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="of which the medians are printed (1)")
    parser.add_argument("--command", default=COMMAND, metavar="COMMAND", help=f"of train.py ({COMMAND})")
    options = parser.parse_args()
    runs: dict[str, list[Times]] = {"cold": [], "warm": []}
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory() as name:
            for state, times in runs.items():
                folder = Path(name, state)
                folder.mkdir()
                times.append(measure(options.command, folder, Path(name, "cache")))
    print(f"{options.command}, medians of {options.runs}, in seconds from the command")
    print(f"{'':6}{'first output':>14}{'first step':>12}{'processor time':>16}")
    for state, times in runs.items():
        medians = [statistics.median(values) for values in zip(*times, strict=True)]
        print(f"{state:6}{medians[0]:14.2f}{medians[1]:12.2f}{medians[2]:16.2f}", flush=True)


if __name__ == "__main__":
    main()
