"""train_step.py --sweep: how the time of a step grows with the batch, and its memory with the context."""

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.configurations import SETUPS, Setup, write_inputs
from benchmarks.contenders import colour_of, start
from benchmarks.workers import Unavailable

BATCHES, CONTEXTS = (1, 2, 4, 8, 16, 32), (256, 512, 1024, 2048, 4096)

Result = dict[str, Any]


def sweep(options: argparse.Namespace) -> Result:
    """Measure B's model at every point, and how time and memory grow."""
    by_batch = options.sweep == "batch"
    contenders = [*options.backends, *(f"torch {mode}" for mode in options.torch)]
    points = sorted(set(options.points or (BATCHES if by_batch else CONTEXTS)))
    results: Result = {name: [] for name in contenders}
    for point in points:
        setup = sweep_setup(point, by_batch, options)
        common.progress(f"{options.sweep} {point}")
        with tempfile.TemporaryDirectory() as folder:
            inputs = str(Path(folder) / "inputs.safetensors")
            write_inputs(Path(inputs), setup, options.seed)
            for name in contenders:
                if row := sweep_point(name, setup, inputs, options):
                    results[name].append({"point": point, **row})
    print_sweep({name: rows for name, rows in results.items() if rows}, options.sweep)
    return {name: {"rows": rows, **growth_of(rows)} for name, rows in results.items() if rows}


def sweep_setup(point: int, by_batch: bool, options: argparse.Namespace) -> Setup:
    """The model of B, or of the configuration that was given."""
    base = SETUPS[options.config[0] if len(options.config) == 1 else "B"]
    return dataclasses.replace(base, batch=point) if by_batch else dataclasses.replace(base, block_size=point, batch=1)


def sweep_point(name: str, setup: Setup, inputs: str, options: argparse.Namespace) -> Result | None:
    try:
        with start(name, setup, inputs, options.threads) as worker:
            worker.call("warm_up", steps=options.warm_up)
            turns = [worker.call("run", steps=options.steps or 2) for _ in range(options.rounds)]
            memory = worker.call("memory")
    except Unavailable as reason:
        print(f"left out: {name} at {setup.describe()}: {reason}")
        return None
    times = [ms for turn in turns for ms in turn["ms"]]
    faults = common.median([turn["faults"] for turn in turns])
    ms = {"ms": common.median(times), "spread": common.spread(times)}
    return {**ms, "tokens": setup.tokens, "faults": faults, **memory}


def growth_of(rows: list[Result]) -> Result:
    """The exponents of time and of memory above that of the smallest point: 1 is linear."""
    if len(rows) < 3:
        return {}
    xs = [row["tokens"] for row in rows]
    more = [max(row["steady_peak_mb"] - rows[0]["steady_peak_mb"], 1e-3) for row in rows[1:]]
    steps = [x - xs[0] for x in xs[1:]]
    return {
        "time_exponent": common.growth(xs, [row["ms"] for row in rows]),
        "memory_exponent": common.growth(steps, more),
    }


def print_sweep(results: dict[str, list[Result]], sweep: str) -> None:
    for name, rows in results.items():
        print(f"\n{name}")
        cells = [
            [
                f"{row['point']}", f"{row['ms']:,.1f}", f"{row['ms'] / row['tokens'] * 1e3:,.1f}",
                f"{row['peak_mb']:,.0f}", f"{row['steady_peak_mb']:,.0f}", f"{row['faults']:,.0f}",
            ]
            for row in rows
        ]  # fmt: skip
        header = [sweep, "ms/step", "microseconds/token", "peak MB", "steady peak MB", "faults/step"]
        print(common.table(header, cells))
        if found := growth_of(rows):
            print(f"time grows as tokens^{found['time_exponent']:.2f}, ", end="")
            print(f"memory beyond the first point's as tokens^{found['memory_exponent']:.2f}")


def chart_of_sweep(results: Result, sweep: str) -> tuple[dict[str, common.Bars], str]:
    if sweep == "batch":
        return {
            name: [(f"batch {row['point']}", row["ms"] / row["point"], colour_of(name)) for row in result["rows"]]
            for name, result in results.items()
        }, "ms"
    return {
        name: [(f"{row['point']} tokens", row["steady_peak_mb"], colour_of(name)) for row in result["rows"]]
        for name, result in results.items()
    }, "MB"
