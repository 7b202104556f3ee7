#!/usr/bin/env python3
"""Show where the time of a training step goes, op by op, and how much of it is Python.

    python benchmarks/profile_step.py                              configuration B on numba
    python benchmarks/profile_step.py --config A --backend numpy   another one

For every op, forward and backward: calls, time, the part of it inside the backend's kernels, operations and bytes, and
both as shares of the measured peaks of the machine (a 2048 x 2048 product, reading 512 MB). Then the cost of Python:
the same step with almost nothing to compute, and the microseconds of the tape per op, in a chain of tiny ops less the
time of NumPy for the same arithmetic.
"""

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it works without installation

from benchmarks import common
from benchmarks.configurations import SETUPS, write_inputs
from benchmarks.contenders import usable
from benchmarks.workers import Unavailable, Worker
from gpt.cli import ArgumentParser, one_of
from gpt.cli import run as run_program
from gpt.config import UserError

COLOURS = {"forward": "#2a6fbb", "backward": "#c9772b", "update": "#3f8f5f"}

Result = dict[str, Any]


def main() -> int:
    options = parse()
    env = common.environment(options.threads, ("numpy", "numba"))
    print(common.environment_line(env))
    usable([options.backend])
    setup = SETUPS[options.config]
    print(f"{options.config}: {setup.describe()}; {options.backend}\n")
    result = measure(options)
    add_shares(result)
    print_rows(result)
    print_totals(result)
    path = common.result_path("profile_step", options.out)
    print()
    head = {"program": "profile_step", "environment": env, "backend": options.backend}
    common.write_json(path, {**head, "setup": dataclasses.asdict(setup), **result})
    if not options.no_chart:
        bars = [(f"{row['op']}, {row['phase']}", row["ms"], COLOURS[row["phase"]]) for row in result["rows"]]
        title, note = f"A step of {options.config} on {options.backend}", common.environment_line(env)
        common.bar_chart(path.with_suffix(".png"), title, {f"{result['plain_ms']:,.1f} ms": bars}, "ms", note)
    return 0


def parse() -> argparse.Namespace:
    parser = ArgumentParser(description="Show where the time of a training step goes.")
    known = one_of(*(name for name in SETUPS if name != "124M"))
    parser.add_argument("--config", type=known, default="B", help="what to train")
    parser.add_argument("--backend", type=one_of("numba", "numpy"), default="numba", help="the kernels")
    parser.add_argument("--seed", type=int, default=1337, help="of weights and tokens")
    parser.add_argument("--warm-up", type=common.at_least(1), default=3, help="steps before the measurement")
    common.add_common_flags(parser, rounds=10)
    common.add_read_flag(parser)
    return parser.parse_args()


def measure(options: argparse.Namespace) -> Result:
    """Measure in separate processes. --rounds is the number of steps."""
    setup = SETUPS[options.config]
    with tempfile.TemporaryDirectory() as folder:
        inputs = str(Path(folder) / "inputs.safetensors")
        write_inputs(Path(inputs), setup, options.seed)
        spec = {"setup": dataclasses.asdict(setup), "inputs": inputs, "backend": options.backend}
        spec["threads"] = options.threads
        try:
            with Worker(options.backend, "benchmarks.profiling:Profile", spec, options.threads) as worker:
                worker.call("warm_up", steps=options.warm_up)
                result: Result = worker.call("profile", steps=options.rounds)
                result["overhead"] = worker.call("overhead")
                result["skeleton_ms"] = worker.call("skeleton_ms", steps=10 * options.rounds)
            spec = {"threads": options.threads, "read_mb": options.read_mb}
            with Worker("peaks", "benchmarks.profiling:Peaks", spec, options.threads) as worker:
                result["peaks"] = worker.call("run")
        except Unavailable as reason:
            raise UserError(f"{options.backend}: {reason}") from None
    return result


def add_shares(result: Result) -> None:
    """Add the shares of the peaks to the rows, and the cost of the tape."""
    peaks = result["peaks"]
    for row in result["rows"]:
        seconds = row["ms"] / 1e3
        row["share"] = row["ms"] / result["profiled_ms"]
        row["share_of_gflops"] = row["gflop"] / seconds / peaks["gflops"]
        row["share_of_bandwidth"] = row["gb"] / seconds / peaks["gb_per_s"]
    per_op_ms = max(chain["engine_us"] for chain in result["overhead"].values()) / 1e3
    inside = sum(row["ms"] for row in result["rows"])
    result["between_ops_ms"] = result["profiled_ms"] - inside - result["clocks_ms"]
    result["skeleton_share"] = result["skeleton_ms"] / result["plain_ms"]
    result["engine_us"] = per_op_ms * 1e3
    result["engine_ms"] = per_op_ms * result["ops"]
    result["engine_share"] = result["engine_ms"] / result["plain_ms"]


def print_rows(result: Result) -> None:
    header = ["", "calls", "ms", "of step", "in kernels", "GFLOP", "GFLOP/s", "of peak", "GB", "GB/s", "of peak"]
    cells = []
    for row in result["rows"]:
        line = [f"{row['op']}, {row['phase']}", f"{row['calls']:.0f}", f"{row['ms']:.3f}", f"{row['share']:.1%}"]
        line.append(f"{row['kernel_ms']:.3f}" if row["kernel_ms"] else "")
        for amount, share in (("gflop", "share_of_gflops"), ("gb", "share_of_bandwidth")):
            known = row[amount] > 0 and row["ms"] > 0
            speed = row[amount] / row["ms"] * 1e3 if known else 0.0
            line += [f"{row[amount]:.4g}", f"{speed:.1f}", f"{row[share]:.0%}"] if known else ["", "", ""]
        cells.append(line)
    print(common.table(header, cells))


def print_totals(result: Result) -> None:
    phases = ", ".join(f"{phase} {ms:.2f}" for phase, ms in result["phases_ms"].items())
    peaks, profiled = result["peaks"], result["profiled_ms"]
    print(
        f"\nthe step: {result['plain_ms']:.2f} ms; profiled {profiled:.2f} ms ({phases}), "
        f"of which the clocks {result['clocks_ms']:.2f}\n"
        f"between the ops: {result['between_ops_ms']:.2f} ms (gradients added up and scaled, memory freed, Python)\n"
        f"Python: {result['skeleton_ms']:.2f} ms, {result['skeleton_share']:.1%} of the step, if all of it is in a "
        f"cache: the time of the same step with one token and a width of 1 per head\n"
        f"peaks: {peaks['gflops']:.0f} GFLOP/s, {peaks['gb_per_s']:.1f} GB/s"
    )
    for name, chain in result["overhead"].items():
        print(
            f"engine, {name}: {chain['engine_us']:.2f} microseconds an op, forward and backward "
            f"({chain['op_us']:.2f}, of which NumPy {chain['numpy_us']:.2f})"
        )
    print(
        f"engine, a step: {result['ops']:.0f} ops at {result['engine_us']:.2f} microseconds, the worst of these: "
        f"{result['engine_ms']:.3f} ms, {result['engine_share']:.1%} of the step"
    )


if __name__ == "__main__":
    sys.exit(run_program(main))
