#!/usr/bin/env python3
"""Measure what `--recompute` saves and costs: the activations and the time of a training step, with and without it.

    python benchmarks/recompute.py                            configuration C on numba
    python benchmarks/recompute.py --config B --backend numpy

Activations are all arrays except weights, moments and gradients, at their peak: NumPy reports every array to
tracemalloc, from which the gradients are subtracted. That step is not timed. Times are those of alternating steps in
two processes, after a check that the losses are bitwise equal.
"""

import argparse
import dataclasses
import sys
import tempfile
import tracemalloc
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it works without installation

from benchmarks import common
from benchmarks.configurations import SETUPS, write_inputs
from benchmarks.training import Ours
from benchmarks.workers import Worker, alternate, idle_warning
from gpt.cli import ArgumentParser, one_of
from gpt.cli import run as run_program
from gpt.config import UserError

KEPT, RECOMPUTED = "kept", "recomputed"


class Recomputing(Ours):
    """A training step whose blocks are recomputed in backward, or not."""

    def prepare(self, inputs: str, threads: int, backend: str, recompute: bool) -> None:
        """See Training."""
        super().prepare(inputs, threads, backend)
        self.model.recompute = recompute

    def activations(self) -> float:
        """The peak bytes of arrays in a forward and backward, without weights, moments and gradients."""
        from tensorgrad.autograd import Leaf, Observer

        class Memory(Observer):
            """Measures the peak of everything except gradients."""

            gradients = peak = 0

            def sent(self, node: Any, edge: Any, gradient: Any, dys: Any) -> None:
                """Before the gradient is added: if the leaf will own this array, it is already part of the peak."""
                if isinstance(edge[0], Leaf):
                    own = gradient.nbytes if edge[0].grad is None and getattr(gradient, "base", 0) is None else 0
                    self.note(self.gradients + own)

            def added(self, node: Any, edge: Any) -> None:
                """After the addition: count the gradient of the leaf."""
                if node is not None and isinstance(edge[0], Leaf) and id(edge[0]) not in self.seen:
                    self.seen.add(id(edge[0]))
                    self.gradients += edge[0].grad.nbytes
                tracemalloc.reset_peak()

            def note(self, without: int) -> None:
                self.peak = max(self.peak, tracemalloc.get_traced_memory()[1] - without)
                tracemalloc.reset_peak()

            def __init__(self) -> None:
                self.seen: set[int] = set()

        tracemalloc.start()
        try:
            with Memory() as memory:
                idx, targets = next(self.batches)
                loss = self.model.loss(idx, targets)
                memory.note(self.model.wte.weight.data.nbytes)  # the head's gradient is computed together with the loss
                loss.backward()
                memory.note(memory.gradients)
        finally:
            tracemalloc.stop()
        self.optimizer.zero_grad()
        return memory.peak


def main() -> int:
    options = parse()
    env = common.environment(options.threads, keep=True)
    print(common.environment_line(env))
    setup = SETUPS[options.config]
    print(f"\n{options.config} on {options.backend}: {setup.describe()}")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        inputs = str(Path(folder) / "inputs.safetensors")
        write_inputs(Path(inputs), setup, options.seed)
        spec = {"setup": dataclasses.asdict(setup), "inputs": inputs, "threads": options.threads}
        spec["backend"] = options.backend
        workers = [
            stack.enter_context(
                Worker(name, "benchmarks.recompute:Recomputing", {**spec, "recompute": recompute}, options.threads)
            )
            for name, recompute in ((KEPT, False), (RECOMPUTED, True))
        ]
        warm = {worker.name: worker.call("warm_up", steps=3) for worker in workers}
        if warm[KEPT]["losses"] != warm[RECOMPUTED]["losses"]:
            raise UserError(f"not timed: the losses differ: {warm[KEPT]['losses']}, {warm[RECOMPUTED]['losses']}")
        turns, idle = alternate(workers, options.rounds, lambda w: w.call("run", steps=options.steps))
        rows = {w.name: figures_of(w, turns[w.name]) for w in workers}
    if warning := idle_warning(idle):
        print(warning)
    cells = [
        [name, f"{row['ms']:,.1f}", f"{row['spread']:.1%}", f"{row['activations_mb']:,.1f}", f"{row['peak_mb']:,.0f}"]
        for name, row in rows.items()
    ]
    print(common.table(["", "ms/step", "+-", "activations MB", "peak MB of the process"], cells))
    less = rows[KEPT]["activations_mb"] / rows[RECOMPUTED]["activations_mb"]
    more = rows[RECOMPUTED]["ms"] / rows[KEPT]["ms"] - 1
    print(f"activations: {less:.2f} times less; time: {more:+.1%}; equal losses, bit for bit")
    result = {"program": "recompute", "environment": env, "setup": dataclasses.asdict(setup), "rows": rows}
    common.write_json(common.result_path("recompute", options.out), {**result, "less": less, "more_time": more})
    return 0


def parse() -> argparse.Namespace:
    parser = ArgumentParser(description="Measure what recomputing blocks in backward saves and costs.")
    parser.add_argument("--config", type=one_of(*SETUPS), default="C", help="what to train")
    parser.add_argument("--backend", type=one_of("numba", "numpy"), default="numba", help="ours")
    parser.add_argument("--steps", type=common.at_least(1), default=2, help="steps in a turn")
    parser.add_argument("--seed", type=int, default=1337, help="of weights and tokens")
    common.add_common_flags(parser, rounds=5)
    return parser.parse_args()


def figures_of(worker: Worker, turns: list[dict[str, Any]]) -> dict[str, float]:
    """Times, the memory of the process, and in a step that is not timed the memory of its activations."""
    times = [ms for turn in turns for ms in turn["ms"]]
    memory = worker.call("memory")
    activations = worker.call("activations") / common.MB
    return {"ms": common.median(times), "spread": common.spread(times), "activations_mb": activations, **memory}


if __name__ == "__main__":
    sys.exit(run_program(main))
