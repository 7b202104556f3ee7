#!/usr/bin/env python3
"""Time a training step by mpirun -n 1 and by mpirun -n 2, with one thread per process, in turns.

    python benchmarks/mpi_scaling.py [--config B] [--processes 2] [--out FILE]

Both do the same work, which the processes share by rows of the batch: the same weights and batches, gradients summed
during backward, clipping, AdamW. They are timed only if the losses of the first steps agree to 1e-6. Every turn is a
new mpirun, because processes that wait for others spin.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it works without installation

from benchmarks import common
from benchmarks.configurations import SETUPS, write_inputs
from benchmarks.training import Ours
from gpt.cli import ArgumentParser, one_of
from gpt.cli import run as run_program
from gpt.config import UserError

WARM_UP = 3  # steps whose losses are compared
TOLERANCE = 1e-6


def main() -> int:
    options = parse()
    if options.inputs:
        return work(options)
    env = common.environment(1, packages=("numpy", "numba", "mpi4py"))
    print(common.environment_line(env))
    setup = SETUPS[options.config]
    print(f"{options.config}: {setup.describe()}")
    if setup.batch % options.processes:
        raise UserError(f"{options.processes} processes cannot share a batch of {setup.batch} equally")
    turns: dict[int, list[dict[str, Any]]] = {1: [], options.processes: []}
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder, "inputs.safetensors")
        write_inputs(inputs, setup, seed=0)
        for number in range(options.rounds):
            for n, results in turns.items():
                common.progress(f"round {number + 1}: {n} process{'es' * (n > 1)}")
                results.append(launched(n, inputs, options))
            check_losses(turns)
    result = {"program": "mpi_scaling", "environment": env, "config": options.config, **summary(turns)}
    print(table_of(result))
    common.write_json(common.result_path("mpi_scaling", options.out), result)
    return 0


def parse() -> argparse.Namespace:
    parser = ArgumentParser(description="Time a training step in one process and in several, a thread each.")
    parser.add_argument("--config", type=one_of(*SETUPS), default="B", help="the shape of the model")
    parser.add_argument("--processes", type=common.at_least(2, common.available_threads()), default=2)
    parser.add_argument("--backend", type=one_of("numba", "numpy"), default="numba", help="the kernels")
    parser.add_argument("--rounds", type=common.at_least(1), default=3, help="turns of each number of processes")
    parser.add_argument("--steps", type=common.at_least(1), default=8, help="steps of a turn")
    parser.add_argument("--out", help="the JSON file (default: a new one in results/)")
    parser.add_argument("--inputs", help=argparse.SUPPRESS)  # for the processes that mpirun starts
    return parser.parse_args()


def launched(n: int, inputs: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run a turn with n processes, and return what they measured."""
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    mpirun = shutil.which("mpirun", path=beside)
    if mpirun is None:
        raise UserError("mpirun is not installed: pip install mpi4py mpich")
    flags = [f"--config={options.config}", f"--backend={options.backend}", f"--steps={options.steps}"]
    command = [mpirun, "-n", str(n), sys.executable, __file__, *flags, f"--inputs={inputs}"]
    done = subprocess.run(command, env={**os.environ, **common.thread_variables(1)}, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"mpirun -n {n} ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def work(options: argparse.Namespace) -> int:
    """The turn of one process, which prints what it measured."""
    from tensorgrad.distributed import world

    trainer = DataParallel(vars(SETUPS[options.config]), options.inputs, threads=1, backend=options.backend)
    group = world()
    losses = [trainer.step(*next(trainer.batches)) for _ in range(WARM_UP)]
    milliseconds = []
    for _ in range(options.steps):
        group.barrier()
        started = time.perf_counter()
        trainer.step(*next(trainer.batches))
        milliseconds.append((time.perf_counter() - started) * 1000)
    print(json.dumps({"losses": losses, "milliseconds": milliseconds, "peak_mb": common.peak_memory()}))
    return 0


class DataParallel(Ours):
    """tensorgrad in a process group."""

    def step(self, idx: Any, targets: Any) -> float:
        """See Training. Computes the rows of this process and sums the gradients of all."""
        from gpt.train.step import accumulate_gradients
        from tensorgrad.distributed import GradientReducer, world

        if not hasattr(self, "reducer"):
            self.reducer = GradientReducer(self.parameters, world())
        loss = accumulate_gradients(
            self.model, (idx, targets), len(idx) // self.reducer.group.size, reducer=self.reducer
        )  # fmt: skip
        self.update()
        return loss


def check_losses(turns: dict[int, list[dict[str, Any]]]) -> None:
    """Raise UserError unless all turns begin with the same losses."""
    expected = turns[1][0]["losses"]
    for n, results in turns.items():
        for loss, other in zip(expected, results[-1]["losses"], strict=True):
            if abs(loss - other) > TOLERANCE:
                raise UserError(f"not timed: {n} processes have a loss of {other:.8f}, one process {loss:.8f}")


def summary(turns: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians over all steps, the speedup, and the largest difference between losses."""
    alone = turns[1][0]["losses"]
    rows = []
    for n, results in turns.items():
        steps = [ms for result in results for ms in result["milliseconds"]]
        difference = max(abs(a - b) for result in results for a, b in zip(alone, result["losses"], strict=True))
        rows.append({
            "processes": n, "ms": common.median(steps), "spread": common.spread(steps), "steps": steps,
            "peak_mb": max(result["peak_mb"] for result in results), "loss_difference": difference,
        })  # fmt: skip
    return {"rows": rows, "losses": alone, "speedup": rows[0]["ms"] / rows[1]["ms"]}


def table_of(result: dict[str, Any]) -> str:
    cells = [
        [
            str(row["processes"]),
            f"{row['ms']:.1f}",
            f"{row['spread']:.1%}",
            f"{result['rows'][0]['ms'] / row['ms']:.2f}",
            f"{row['peak_mb']:.0f}",
            f"{row['loss_difference']:.1e}",
        ]
        for row in result["rows"]
    ]
    return common.table(["processes", "ms/step", "+-", "times faster", "peak MB each", "losses differ by"], cells)


if __name__ == "__main__":
    sys.exit(run_program(main))
