"""Train a character model of Shakespeare on the GPU and on the CPU, for gpu_check.py.

    python -m benchmarks.gpu_losses OUT [--data FILE] [--max-iters 500] [--stand-in]

The same seed gives the same initial weights, batches and dropout masks on every backend. The losses of the first steps
must agree step by step; the last ones, when rounding has made the weights differ, on average. It runs train.py once for
each dtype on the GPU, and on the CPU at the same time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.gpu_card import Figures

SETTINGS = [
    "--tokenizer", "char", "--block-size", "64", "--batch-size", "12", "--n-layer", "4", "--n-head", "4", "--n-embd",
    "128", "--dropout", "0.1", "--lr", "1e-3", "--min-lr", "1e-4", "--warmup-iters", "100", "--beta2", "0.99", "--seed",
    "1337", "--eval-iters", "20",
]  # fmt: skip
TINY = ["--n-layer", "1", "--n-embd", "16", "--block-size", "16", "--eval-iters", "1"]
DTYPES = ("float32", "bfloat16")
FIRST, LAST = 20, 100  # first steps, compared one by one; last steps, whose means are compared
# relative tolerances by dtype: of the losses of the first steps, and of the mean of the last
TOLERANCE = {"float32": (1e-4, 5e-3), "bfloat16": (1e-2, 5e-3)}


def command(out: Path, backend: str, dtype: str, options: argparse.Namespace) -> list[str]:
    """The command line of train.py; with `stand_in` on numpy, since the emulation exists only in one process."""
    backend = "numpy" if options.stand_in else backend
    iters, sizes = str(options.max_iters), TINY if options.stand_in else []
    return [
        sys.executable, str(common.ROOT / "train.py"), "--data", options.data, "--backend", backend, "--dtype", dtype,
        "--max-iters", iters, "--eval-interval", iters, "--out", str(out), *SETTINGS, *sizes,
    ]  # fmt: skip


def losses(folder: Path) -> list[float]:
    """The training loss of every step."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def compare(there: list[float], here: list[float], dtype: str) -> dict[str, Any]:
    """The differences between the GPU's and the CPU's losses, and whether they are within the tolerances."""
    first, last = TOLERANCE[dtype]
    steps = [abs(a - b) / abs(b) for a, b in zip(there, here, strict=True)]
    mean_there, mean_here = (sum(x[-LAST:]) / len(x[-LAST:]) for x in (there, here))
    worst, of_mean = max(steps[:FIRST]), abs(mean_there - mean_here) / mean_here
    return {
        "dtype": dtype, "worst_of_first": worst, "of_mean_of_last": of_mean, "mean_gpu": mean_there,
        "mean_cpu": mean_here, "passed": worst <= first and of_mean <= last, "losses": there,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description="Train on the GPU and on the CPU, and compare the losses.")
    parser.add_argument("out", help="the JSON file")
    parser.add_argument("--data", default="shakespeare", help="a corpus of train.py, or a file")
    parser.add_argument("--max-iters", type=common.at_least(1), default=500, help="steps of each run")
    parser.add_argument("--stand-in", action="store_true", help="no GPU: numpy in its place")
    options = parser.parse_args()
    runs = {"cpu": ("numba", "float32"), **{d: ("cupy", d) for d in DTYPES}}
    environment = {**os.environ, "PYTHONPATH": str(common.ROOT)}
    figures = Figures(options.out)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        started = {}
        for name, (backend, dtype) in runs.items():
            log = stack.enter_context(open(Path(scratch) / f"{name}.log", "w+"))
            process = subprocess.Popen(
                command(Path(scratch) / name, backend, dtype, options), cwd=common.ROOT, env=environment, stdout=log,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            stack.callback(process.kill)
            started[name] = process, log
        for name, (process, log) in started.items():
            if process.wait():
                log.seek(0)
                print(f"{name}: train.py ended with status {process.returncode}: {log.read().strip()[-500:]}")
                return 1
        here = losses(Path(scratch) / "cpu")
        rows = [compare(losses(Path(scratch) / dtype), here, dtype) for dtype in DTYPES]
    figures.add(rows=rows, cpu_losses=here, passed=all(row["passed"] for row in rows))
    for row in rows:
        print({name: value for name, value in row.items() if name != "losses"})
    return 0 if figures.values["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
