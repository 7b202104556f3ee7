#!/usr/bin/env python3
"""Check that the memory of a process does not grow over ten thousand steps of a tiny model.

    python benchmarks/memory_flat.py [--steps 10000] [--backend numba] [--plot]

The run validates and saves every 50 steps, when the physical memory (VmRSS) is read. After the first tenth, which is
the warm-up, the maximum may be at most 3 MB above the minimum; otherwise the program exits with 1. By chance malloc's
heap takes up to 2 MB more; an array of 4 kB a step that is never freed takes 5 MB in 1,350 steps. With --plot the run
also draws loss.png: matplotlib needs some 40 MB more, and its memory settles a few MB above its start.
"""

import argparse
import ctypes
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it works without installation

from benchmarks import common
from gpt.train.config import TrainConfig
from gpt.train.loop import train
from gpt.train.progress import Progress
from gpt.train.run import new_run
from tensorgrad.memory import keep_freed_memory

EVERY = 50  # steps between two readings, validations and checkpoints
ALLOWED_MB = 3.0
PR_SET_THP_DISABLE = 41  # from Linux's prctl.h
TINY: dict[str, Any] = {
    "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16, "batch_size": 4, "grad_accum": 2, "dropout": 0.1,
    "eval_interval": EVERY, "eval_iters": 2, "checkpoint_interval": EVERY, "tokenizer": "char",
}  # fmt: skip
TEXT = "".join(f"{i} times {j} is {i * j}.\n" for i in range(100) for j in range(20))


def measure(steps: int, backend: str, plot: bool, folder: Path) -> list[float]:
    """Train, and return the memory held every EVERY steps, in MB."""
    if sys.platform == "linux":  # with huge pages the memory would grow by 2 MB at a time
        ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    keep_freed_memory()
    (folder / "text.txt").write_text(TEXT)
    settings = {**TINY, "data": str(folder / "text.txt"), "out": str(folder / "run")}
    run = new_run(TrainConfig(**settings, backend=backend, plot=plot, max_iters=steps))
    mb: list[float] = []
    step = Progress.step

    def step_and_read(self: Progress, number: int, **figures: Any) -> None:
        step(self, number, **figures)
        if number % EVERY == 0:
            mb.append(common.resident_memory())

    with patch.object(Progress, "step", step_and_read):
        train(run)
    return mb


def growth(mb: list[float]) -> float:
    """How far the maximum is above the minimum after the first tenth, in MB."""
    steady = mb[len(mb) // 10 :]
    return max(steady) - min(steady)


def main() -> int:
    """Measure, print, and return 0 if the memory does not grow."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=common.at_least(10 * EVERY), default=10_000)
    parser.add_argument("--backend", choices=("numpy", "numba"), default="numba")
    parser.add_argument("--plot", action="store_true", help="draw loss.png as the run goes")
    parser.add_argument("--out", help="the JSON file (default: a new one in results/)")
    options = parser.parse_args()
    env = common.environment(common.available_threads(), packages=("numpy", "numba"))
    print(common.environment_line(env))
    with tempfile.TemporaryDirectory() as folder:
        mb = measure(options.steps, options.backend, options.plot, Path(folder))
    grown = growth(mb)
    marks = ", ".join(f"{mb[len(mb) * i // 10 - 1]:.1f}" for i in range(1, 11))
    print(f"{options.backend}, {options.steps} steps, MB after each tenth: {marks}")
    print(f"after the first tenth the maximum is {grown:.1f} MB above the minimum")
    result = {
        "program": "memory_flat",
        "environment": env,
        "steps": options.steps,
        "plot": options.plot,
        "mb": mb,
        "growth_mb": grown,
    }
    common.write_json(common.result_path("memory_flat", options.out), result)
    return 0 if grown <= ALLOWED_MB else 1


if __name__ == "__main__":
    sys.exit(main())
