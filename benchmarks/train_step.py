#!/usr/bin/env python3
"""Time a training step of tensorgrad and PyTorch in one run, on the same weights and batches.

    python benchmarks/train_step.py                                   configurations A, B and C
    python benchmarks/train_step.py --config B --rounds 11            one of them, more turns
    python benchmarks/train_step.py --torch eager compile+fused+keep  these modes of PyTorch only
    python benchmarks/train_step.py --no-torch --backends numba       without PyTorch
    python benchmarks/train_step.py --sweep batch                     B's model, batch 1 to 32
    python benchmarks/train_step.py --sweep context                   B's model, batch 1, 256 to 4096 tokens

A mode of PyTorch is `eager`, `compile` or `compile-max` (torch.compile with autotuning), with `+fused` for the fused
AdamW and `+keep` for an allocator that keeps freed memory (MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_).
Every contender is a process of its own and only one works at a time. They are timed only if the losses of their first
steps agree to 1e-4. If they do not all fit into memory, they run in groups, each with our first backend. The control is
plain NumPy's step, or without it the products alone: ratios count only where its time in the last round is within 5 %
of that in the first.
"""

import argparse
import dataclasses
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it works without installation

from benchmarks import common
from benchmarks.configurations import SETUPS, Setup, write_inputs
from benchmarks.contenders import (
    PRODUCTS,
    begin,
    colour_of,
    contender_environment,
    groups_in_memory,
    start,
    torch_mode,
)
from benchmarks.sweeps import chart_of_sweep, sweep
from benchmarks.workers import Unavailable, Worker, alternate, idle_warning
from gpt.cli import ArgumentParser, one_of
from gpt.cli import run as run_program
from gpt.config import UserError

TORCH_MODES = ["eager", "eager+fused", "eager+fused+keep", "compile+fused", "compile+fused+keep"]
STEPS = {"A": 20, "B": 4, "C": 2}  # of a turn: enough to warm the caches, few enough to alternate often
TOLERANCE = 1e-4
DRIFT = 0.05  # of the control, above which the machine was not quiet

Result = dict[str, Any]


def main() -> int:
    options = parse()
    env = begin(options)
    if options.sweep:
        results = sweep(options)
        panels, unit = chart_of_sweep(results, options.sweep)
    else:
        results = {name: compare(name, SETUPS[name], options) for name in options.config}
        panels, unit = {name: chart_of(name, result) for name, result in results.items()}, "ms"
    path = common.result_path("train_step" + (f"-{options.sweep}" if options.sweep else ""), options.out)
    print()
    common.write_json(path, {"program": "train_step", "environment": env, "sweep": options.sweep, "results": results})
    if not options.no_chart:
        what = {"batch": "A sequence's share of a training step", "context": "Peak memory of training, by context"}
        title = what.get(options.sweep, "A training step: shorter is faster")
        common.bar_chart(path.with_suffix(".png"), title, panels, unit, common.environment_line(env))
    return 0


def parse() -> argparse.Namespace:
    parser = ArgumentParser(description="Time a training step of tensorgrad and PyTorch, side by side.")
    known = one_of(*(name for name in SETUPS if name != "124M"))
    parser.add_argument("--config", type=known, nargs="+", default=["A", "B", "C"], help="what to train")
    parser.add_argument("--backends", type=one_of("numba", "numpy"), nargs="+", default=["numba", "numpy"], help="ours")
    parser.add_argument("--torch", type=torch_mode, nargs="+", default=TORCH_MODES, help="PyTorch's modes")
    parser.add_argument("--no-torch", action="store_true", help="without PyTorch")
    parser.add_argument("--steps", type=common.at_least(1), help="steps in a turn (default: 20, 4, 2 for A, B, C)")
    parser.add_argument("--warm-up", type=common.at_least(1), default=3, help="first steps: their losses must agree")
    parser.add_argument("--seed", type=int, default=1337, help="of weights and tokens")
    parser.add_argument("--sweep", type=one_of("batch", "context"), help="B's model over batch sizes or contexts")
    parser.add_argument("--points", type=common.at_least(1), nargs="+", help="of --sweep (default: 1-32, 256-4096)")
    common.add_common_flags(parser, rounds=7)
    options = parser.parse_args()
    if options.points and not options.sweep:
        parser.error("--points needs --sweep batch or --sweep context")
    options.torch = [] if options.no_torch else options.torch
    return options


# --- the comparison -----------------------------------------------------------------------------


def compare(name: str, setup: Setup, options: argparse.Namespace) -> Result:
    """Time all contenders on one configuration and print the table."""
    print(f"\n{name}: {setup.describe()}")
    steps = options.steps or STEPS.get(name, 2)
    rows: dict[str, Result] = {}
    left_out: dict[str, str] = {}
    modes = [f"torch {mode}" for mode in options.torch]
    with tempfile.TemporaryDirectory() as folder:
        inputs = str(Path(folder) / "inputs.safetensors")
        write_inputs(Path(inputs), setup, options.seed)
        for group in groups_in_memory(options.backends, modes, setup):
            for row, figures in run_group(group, setup, inputs, steps, options, left_out).items():
                rows.setdefault(row, figures)
    for contender, reason in left_out.items():
        print(f"left out: {contender}: {reason}")
    result = {"setup": dataclasses.asdict(setup), "rows": rows, "left_out": left_out, "steps": steps}
    result["summary"] = summarise(rows, options.backends)
    print_rows(rows, setup)
    print_summary(result["summary"], rows)
    return result


def run_group(
    group: list[str], setup: Setup, inputs: str, steps: int, options: argparse.Namespace, left_out: dict[str, str]
) -> dict[str, Result]:
    """Start a group of contenders, compare their losses with the first one's, and time them in turns."""
    with ExitStack() as stack:
        workers, warm = [], {}
        for contender in group:
            try:
                common.progress(f"starting {contender}")
                worker = stack.enter_context(start(contender, setup, inputs, options.threads))
                warm[contender] = worker.call("warm_up", steps=options.warm_up)
                workers.append(worker)
            except Unavailable as reason:
                if contender == group[0]:
                    raise UserError(f"{contender} cannot run: {reason}") from None
                left_out[contender] = str(reason)
        check_losses(warm)
        products = stack.enter_context(start(PRODUCTS, setup, inputs, options.threads))
        products.call("run", steps=1)
        common.progress(f"timing {', '.join(worker.name for worker in workers)}")
        try:
            turns, idle = alternate([*workers, products], options.rounds, lambda w: w.call("run", steps=steps))
            rows = {w.name: figures_of(w, turns, warm[w.name], setup) for w in workers}
            rows[PRODUCTS] = bound_of(turns[PRODUCTS], products.call("gflop"))
        except Unavailable as reason:
            raise UserError(f"a contender failed while it was timed: {reason}") from None
    if warning := idle_warning(idle):
        print(warning)
    report_control(turns)
    reference = rows[group[0]]
    for row in rows.values():
        row |= {"ratio": row["ms"] / reference["ms"], "fastest_ratio": row["fastest_ms"] / reference["fastest_ms"]}
        row |= {"share_of_bound": rows[PRODUCTS]["ms"] / row["ms"], "idle_share": idle}
    return rows


def report_control(turns: dict[str, list[Result]]) -> float:
    """Print, and return, how much longer the control took in the last round than in the first."""
    name = "numpy" if "numpy" in turns else PRODUCTS
    first, last = (common.median(turns[name][i]["ms"]) for i in (0, -1))
    drift = last / first - 1
    verdict = "" if abs(drift) <= DRIFT else "; the ratios do not count, since the machine was not quiet"
    print(f"control: {name} took {drift:+.1%} in the last round, beside the first{verdict}")
    return drift


def check_losses(warm: dict[str, Result]) -> None:
    """Raise UserError if the contenders do not compute the same."""
    (first, reference), *others = warm.items()
    for name, reply in others:
        pairs = zip(reference["losses"], reply["losses"], strict=True)
        for step, (expected, loss) in enumerate(pairs):
            if not abs(loss - expected) <= TOLERANCE * abs(expected):
                raise UserError(
                    f"not timed: at step {step} {name} has loss {loss:.6f}, {first} {expected:.6f}: "
                    f"they differ by more than {TOLERANCE:g}, so they do not compute the same"
                )


def figures_of(worker: Worker, turns: dict[str, list[Result]], warm: Result, setup: Setup) -> Result:
    """The medians over the turns of a contender, and its memory."""
    replies = turns[worker.name]
    times = [ms for reply in replies for ms in reply["ms"]]
    return {
        "ms": common.median(times),
        "spread": common.spread(times),
        "fastest_ms": min(times),
        "tokens_per_s": setup.tokens / common.median(times) * 1e3,
        "faults": common.median([reply["faults"] for reply in replies]),
        "cpu_ms": common.median([reply["cpu_ms"] for reply in replies]),
        **worker.call("memory"),
        **warm,
        "environment": contender_environment(worker.name),
        "times_ms": times,
    }


def bound_of(turns: list[Result], gflop: float) -> Result:
    times = [ms for reply in turns for ms in reply["ms"]]
    attention = common.median([ms for reply in turns for ms in reply["attention_ms"]])
    ms = common.median(times)
    spread, speed = common.spread(times), gflop / ms * 1e3
    return {
        "ms": ms,
        "spread": spread,
        "fastest_ms": min(times),
        "attention_ms": attention,
        "gflop": gflop,
        "gflops": speed,
    }


# --- the output ---------------------------------------------------------------------------------


def print_rows(rows: dict[str, Result], setup: Setup) -> None:
    header = [
        "",
        "ms/step",
        "+-",
        "ratio",
        "fastest",
        "ratio",
        "tokens/s",
        "peak MB",
        "faults/step",
        "share of bound",
        "first step s",
    ]
    cells = []
    for name, row in rows.items():
        line = [name, f"{row['ms']:,.1f}", f"{row['spread']:.1%}", f"{row['ratio']:.2f}"]
        line += [f"{row['fastest_ms']:,.1f}", f"{row['fastest_ratio']:.2f}"]
        if "peak_mb" in row:
            line += [f"{row['tokens_per_s']:,.0f}", f"{row['peak_mb']:,.0f}", f"{row['faults']:,.0f}"]
            line += [f"{row['share_of_bound']:.2f}", f"{row['first_step_s']:.1f}"]
        else:
            line += ["", "", "", f"{row['gflops']:.0f} GFLOP/s", ""]
        cells.append(line)
    print(common.table(header, cells))


def summarise(rows: dict[str, Result], backends: list[str]) -> Result:
    """The ratios that the README reports."""
    torch = {name: row for name, row in rows.items() if name.startswith("torch ")}
    eager = torch.get("torch eager")
    ours = rows[backends[0]]
    summary: Result = {"reference": backends[0], "bound_over_ours": ours["share_of_bound"]}
    if torch:
        best = min(torch, key=lambda name: torch[name]["ratio"])
        fastest = min(row["fastest_ratio"] for row in torch.values())
        summary |= {
            "torch_best": best,
            "torch_best_over_ours": torch[best]["ratio"],
            "torch_fastest_over_ours": fastest,
        }
    if eager:
        summary["memory_ours_over_eager"] = ours["peak_mb"] / eager["peak_mb"]
    if eager and "numpy" in rows:
        summary["eager_over_numpy"] = eager["ratio"] / rows["numpy"]["ratio"]
    return summary


def print_summary(summary: Result, rows: dict[str, Result]) -> None:
    first = summary["reference"]
    lines = [f"products alone / {first}: {summary['bound_over_ours']:.2f}"]
    if "torch_best" in summary:
        lines.append(f"PyTorch's best ({summary['torch_best']}) / {first}: {summary['torch_best_over_ours']:.2f}")
        lines.append(
            f"PyTorch's fastest step / the fastest of {first}: {summary['torch_fastest_over_ours']:.2f}"
        )
    if "memory_ours_over_eager" in summary:
        lines.append(f"peak memory, {first} / torch eager: {summary['memory_ours_over_eager']:.2f}")
    if "eager_over_numpy" in summary and first != "numpy":
        lines.append(f"torch eager / numpy: {summary['eager_over_numpy']:.2f}")
    print("\n".join(lines))


def chart_of(name: str, result: Result) -> common.Bars:
    # The ratio within a group, not milliseconds: during another group the machine may have been slower.
    reference = result["rows"][result["summary"]["reference"]]["ms"]
    return [(row, figures["ratio"] * reference, colour_of(row)) for row, figures in result["rows"].items()]


if __name__ == "__main__":
    sys.exit(run_program(main))
