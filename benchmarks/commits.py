#!/usr/bin/env python3
"""The training step of this working tree against that of another commit, in one run.

    python benchmarks/commits.py 29e515c                                  A and B on numba and NumPy
    python benchmarks/commits.py HEAD~5 --config B --backends numpy       one of them
    python benchmarks/commits.py 29e515c --rounds 31                      narrower intervals

Each side is a process of its own with its own sources and its own compiled kernels, and only one works at a time. They
are timed only if the losses of their first steps agree to 1e-4. The ratio is the median over all rounds of this / other
in the same round, with its 95 % interval; below 1 this working tree is faster. Memory is that of the whole process.
"""

import argparse
import dataclasses
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installing, too

from benchmarks import common
from benchmarks.configurations import SETUPS, write_inputs
from benchmarks.contenders import begin
from benchmarks.train_step import STEPS, check_losses
from benchmarks.workers import Worker, alternate, idle_warning
from gpt.cli import ArgumentParser, one_of
from gpt.cli import run as run_program
from gpt.config import UserError

THIS, OTHER = "this", "other"


def main() -> int:
    options = parse()
    env = begin(options)
    with checked_out(options.commit) as root:
        rows = {
            f"{config} on {backend}": compare(config, backend, root, options)
            for config in options.config
            for backend in options.backends
        }
    print(f"\nthis working tree / {options.commit}")
    cells = []
    for name, row in rows.items():
        low, high = row["interval"]
        line = [name, f"{row['this_ms']:,.2f}", f"{row['other_ms']:,.2f}", f"{row['ratio']:.3f}"]
        line += [f"{low:.3f} to {high:.3f}", f"{row['this_mb']:,.0f}", f"{row['other_mb']:,.0f}"]
        cells.append([*line, f"{row['memory_ratio']:.3f}"])
    print(common.table(["", "ms/step", "other", "ratio", "95 % interval", "peak MB", "other", "ratio"], cells))
    path = common.result_path("commits", options.out)
    common.write_json(path, {"program": "commits", "environment": env, "commit": options.commit, "rows": rows})
    return 0


def parse() -> argparse.Namespace:
    parser = ArgumentParser(description="Time the training step of this working tree against another commit.")
    known = one_of(*(name for name in SETUPS if name != "124M"))
    parser.add_argument("commit", help="what to compare with: anything that git checkout takes")
    parser.add_argument("--config", type=known, nargs="+", default=["A", "B"], help="what to train")
    parser.add_argument("--backends", type=one_of("numba", "numpy"), nargs="+", default=["numba", "numpy"], help="ours")
    parser.add_argument("--steps", type=common.at_least(1), help="steps in a turn (default: 20, 4, 2 for A, B, C)")
    parser.add_argument("--warm-up", type=common.at_least(1), default=3, help="first steps: their losses must agree")
    parser.add_argument("--seed", type=int, default=1337, help="decides weights and tokens")
    common.add_common_flags(parser, rounds=21)
    return parser.parse_args()


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """The files of a commit in a folder of their own."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "other"
        add = subprocess.run(
            ["git", "worktree", "add", "--detach", str(root), commit], cwd=common.ROOT, capture_output=True, text=True
        )
        if add.returncode:
            raise UserError(f"commit {commit}: {(add.stderr.splitlines() or ['git failed'])[-1]}")
        try:
            yield root
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(root)], cwd=common.ROOT, check=False)


def compare(config: str, backend: str, other: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Time both sides on one configuration and one backend."""
    setup = SETUPS[config]
    print(f"\n{config} on {backend}: {setup.describe()}")
    steps = options.steps or STEPS.get(config, 2)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        inputs = str(Path(folder) / "inputs.safetensors")
        write_inputs(Path(inputs), setup, options.seed)
        spec = {"setup": dataclasses.asdict(setup), "inputs": inputs, "threads": options.threads, "backend": backend}
        for root in (common.ROOT, other):  # once before: afterwards all kernels are compiled, as they are in later runs
            with Worker("first", "benchmarks.training:Ours", spec, options.threads, root=root) as worker:
                worker.call("warm_up", steps=1)
        workers, warm = [], {}
        for name, root in ((THIS, common.ROOT), (OTHER, other)):
            worker = stack.enter_context(Worker(name, "benchmarks.training:Ours", spec, options.threads, root=root))
            warm[name] = worker.call("warm_up", steps=options.warm_up)
            workers.append(worker)
        check_losses(warm)
        turns, idle = alternate(workers, options.rounds, lambda worker: worker.call("run", steps=steps))
        memory = {worker.name: worker.call("memory")["peak_mb"] for worker in workers}
    if warning := idle_warning(idle):
        print(warning)
    times = {name: [common.median(reply["ms"]) for reply in replies] for name, replies in turns.items()}
    ratios = [this / reference for this, reference in zip(times[THIS], times[OTHER], strict=True)]
    return {
        "this_ms": common.median(times[THIS]), "other_ms": common.median(times[OTHER]),
        "ratio": common.median(ratios), "interval": common.median_interval(ratios),
        "this_mb": memory[THIS], "other_mb": memory[OTHER], "memory_ratio": memory[THIS] / memory[OTHER],
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_program(main))
