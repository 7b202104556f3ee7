#!/usr/bin/env python3
"""What each fusion of gpt/fused.py saves: a training step with it and without it, in one run.

    python benchmarks/fusions.py                                configurations A and B on numba and NumPy
    python benchmarks/fusions.py --config B --backends numpy    one of them
    python benchmarks/fusions.py --rounds 31                    narrower intervals

Every variant is a process of its own and only one works at a time: the fused model, the fused model with one fusion
replaced by the plain code of gpt/model.py, and the plain model. In two more the plain MLP recomputes the result of its
GELU in backward instead of keeping it. They are timed only if the losses of their first steps agree to 1e-4.

The ratio of two times is the median over all rounds of variant / fused in the same round, with its 95 % interval.
Memory is given twice: the arrays that a step holds at its peak with weights and moments, by tracemalloc in a step that
is not timed, and the physical memory of the process. A fusion is worth keeping if it saves 3 % of the time of a step or
5 % of its arrays in any configuration on any backend.
"""

import argparse
import dataclasses
import sys
import tempfile
import tracemalloc
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installing, too

from benchmarks import common
from benchmarks.configurations import SETUPS, Setup, write_inputs
from benchmarks.contenders import begin
from benchmarks.train_step import STEPS, check_losses
from benchmarks.training import Ours
from benchmarks.workers import Worker, alternate, idle_warning
from gpt.cli import ArgumentParser, one_of
from gpt.cli import run as run_program

TIME, MEMORY = 0.03, 0.05  # the share of a step that a fusion has to save
FUSIONS = {  # the class of gpt/fused.py that calls the op
    "attention": "FusedCausalSelfAttention",
    "mlp": "FusedMLP",
    "add_layer_norm": "FusedBlock",
    "linear_cross_entropy": "FusedGPT",
}
FUSED, RECOMPUTED = "fused", "GELU recomputed"
# name -> the fusions that are replaced, and whether the GELU's result is recomputed in backward
VARIANTS: dict[str, tuple[list[str], bool]] = {
    FUSED: ([], False),
    **{f"without {op}": ([op], False) for op in FUSIONS},
    f"without mlp, {RECOMPUTED}": (["mlp"], True),
    "plain": (list(FUSIONS), False),
    f"plain, {RECOMPUTED}": (list(FUSIONS), True),
}

Result = dict[str, Any]


class Variant(Ours):
    """A training step of the fused model without some of its fusions."""

    def prepare(self, inputs: str, threads: int, backend: str, without: list[str], recompute_gelu: bool) -> None:
        """See Training."""
        super().prepare(inputs, threads, backend)
        removed = {FUSIONS[op] for op in without}
        for module in self.model.modules():
            if type(module).__name__ in removed:
                module.__class__ = type(module).__bases__[0]  # the plain class
        if recompute_gelu:
            import tensorgrad as tg

            tg.gelu = recomputable_gelu()

    def arrays(self) -> float:
        """The MB of arrays that a step holds at its peak, with weights and moments."""
        kept = sum(p.data.nbytes for p in self.parameters) * 3
        tracemalloc.start()
        try:
            self.step(*next(self.batches))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        return (kept + peak) / common.MB


def recomputable_gelu() -> Any:
    """A `tensorgrad.gelu` whose result the linear layer after it does not keep but recomputes from what gelu keeps."""
    from tensorgrad.autograd import op

    @op
    def gelu(k: Any, x: Any, *, approximate: str = "none", ctx: Any) -> Any:
        forward, backward = (
            (k.gelu_tanh, k.gelu_tanh_backward) if approximate == "tanh" else (k.gelu, k.gelu_backward)
        )  # fmt: skip
        y = forward(x)
        return y, ctx.recomputable(k, lambda dy: backward(dy, x), y, lambda: forward(x))

    return gelu


def main() -> int:
    options = parse()
    env = begin(options)
    results = {
        f"{config} on {backend}": compare(config, SETUPS[config], backend, options)
        for config in options.config
        for backend in options.backends
    }
    savings = {op: savings_of(op, results) for op in FUSIONS}
    print_savings(savings)
    path = common.result_path("fusions", options.out)
    result = {"program": "fusions", "environment": env, "results": results, "savings": savings}
    common.write_json(path, result)
    return 0


def parse() -> argparse.Namespace:
    parser = ArgumentParser(description="Time a training step with and without each fused operation.")
    known = one_of(*(name for name in SETUPS if name != "124M"))
    parser.add_argument("--config", type=known, nargs="+", default=["A", "B"], help="what to train")
    parser.add_argument("--backends", type=one_of("numba", "numpy"), nargs="+", default=["numba", "numpy"], help="ours")
    parser.add_argument("--steps", type=common.at_least(1), help="steps in a turn (default: 20, 4, 2 for A, B, C)")
    parser.add_argument("--warm-up", type=common.at_least(1), default=3, help="first steps: their losses must agree")
    parser.add_argument("--seed", type=int, default=1337, help="decides weights and tokens")
    common.add_common_flags(parser, rounds=15)
    return parser.parse_args()


def compare(config: str, setup: Setup, backend: str, options: argparse.Namespace) -> dict[str, Result]:
    """Time all variants on one configuration and one backend, and print the table."""
    print(f"\n{config} on {backend}: {setup.describe()}")
    steps = options.steps or STEPS.get(config, 2)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        inputs = str(Path(folder) / "inputs.safetensors")
        write_inputs(Path(inputs), setup, options.seed)
        spec = {"setup": dataclasses.asdict(setup), "inputs": inputs, "threads": options.threads, "backend": backend}
        workers, warm = [], {}
        for name, (without, recompute_gelu) in VARIANTS.items():
            common.progress(f"starting {name}")
            variant = {**spec, "without": without, "recompute_gelu": recompute_gelu}
            worker = stack.enter_context(Worker(name, "benchmarks.fusions:Variant", variant, options.threads))
            warm[name] = worker.call("warm_up", steps=options.warm_up)
            workers.append(worker)
        check_losses(warm)
        common.progress(f"timing {len(workers)} variants")
        turns, idle = alternate(workers, options.rounds, lambda worker: worker.call("run", steps=steps))
        memory = {w.name: {**w.call("memory"), "arrays_mb": w.call("arrays")} for w in workers}
    if warning := idle_warning(idle):
        print(warning)
    times = {name: [common.median(reply["ms"]) for reply in replies] for name, replies in turns.items()}
    rows = {name: row_of(times[name], times[FUSED], memory[name], memory[FUSED]) for name in VARIANTS}
    print_rows(rows)
    return rows


def row_of(times: list[float], fused: list[float], memory: Result, fused_memory: Result) -> Result:
    """The figures of a variant and their ratios to the fused model's."""
    ratios = [ms / reference for ms, reference in zip(times, fused, strict=True)]
    return {
        "ms": common.median(times),
        "time_ratio": common.median(ratios),
        "time_interval": common.median_interval(ratios),
        "arrays_mb": memory["arrays_mb"],
        "arrays_ratio": memory["arrays_mb"] / fused_memory["arrays_mb"],
        "peak_mb": memory["steady_peak_mb"],
        "peak_ratio": memory["steady_peak_mb"] / fused_memory["steady_peak_mb"],
        "times_ms": times,
    }


def print_rows(rows: dict[str, Result]) -> None:
    header = ["", "ms/step", "ratio", "95 % interval", "arrays MB", "ratio", "process MB", "ratio"]
    cells = []
    for name, row in rows.items():
        low, high = row["time_interval"]
        line = [name, f"{row['ms']:,.1f}", f"{row['time_ratio']:.3f}", f"{low:.3f} to {high:.3f}"]
        line += [f"{row['arrays_mb']:,.1f}", f"{row['arrays_ratio']:.3f}"]
        cells.append([*line, f"{row['peak_mb']:,.0f}", f"{row['peak_ratio']:.3f}"])
    print(common.table(header, cells))


def savings_of(op: str, results: dict[str, dict[str, Result]]) -> Result:
    """The shares of time and memory that a fusion saves, where it saves most, and whether that is enough."""
    rows = {where: variants[f"without {op}"] for where, variants in results.items()}
    time, where_time = max((1 - 1 / row["time_ratio"], where) for where, row in rows.items())
    memory, where_memory = max((1 - 1 / row["arrays_ratio"], where) for where, row in rows.items())
    keep = time >= TIME or memory >= MEMORY
    return {"time": time, "where_time": where_time, "memory": memory, "where_memory": where_memory, "keep": keep}


def print_savings(savings: dict[str, Result]) -> None:
    print(f"\nthe most that each fusion saves; it has to be {TIME:.0%} of the time or {MEMORY:.0%} of the memory")
    cells = [
        [op, f"{s['time']:.1%}", s["where_time"], f"{s['memory']:.1%}", s["where_memory"],
         "keep" if s["keep"] else "delete"]
        for op, s in savings.items()
    ]  # fmt: skip
    print(common.table(["", "time", "in", "memory", "in", ""], cells))


if __name__ == "__main__":
    sys.exit(run_program(main))
