#!/usr/bin/env python3
"""Time every kernel of tensorgrad beside PyTorch's, forward and backward, at the shapes of A, B and C.

    python benchmarks/ops.py                              all kernels of configurations A, B and C
    python benchmarks/ops.py --config B --op attention    those whose name contains the word
    python benchmarks/ops.py --no-torch --backends numba  without PyTorch

Ops run as a user calls them, with autograd on both sides. PyTorch runs eagerly, with its default allocator and with one
that keeps freed memory. A kernel is timed only if the norms of results and gradients of both sides agree to 1e-3. Every
contender is a process of its own; only one works at a time.
"""

import argparse
import dataclasses
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it works without installation

from benchmarks import common
from benchmarks.configurations import SETUPS
from benchmarks.contenders import colour_of, usable
from benchmarks.op_cases import Case, cases
from benchmarks.workers import Unavailable, Worker, alternate, idle_warning
from gpt.cli import ArgumentParser, one_of
from gpt.cli import run as run_program
from gpt.config import UserError

TOLERANCE = 1e-3  # of norms, in which the rounding errors of up to 10^8 numbers add up
TORCH = ["eager", "eager+keep"]

Result = dict[str, Any]


def main() -> int:
    options = parse()
    env = common.environment(options.threads, keep=True)
    print(common.environment_line(env))
    options.backends, left_out = usable(options.backends)
    results: dict[str, dict[str, Result]] = {}
    with ExitStack() as stack:
        workers = []
        for name in [*options.backends, *(f"torch {mode}" for mode in options.torch)]:
            try:
                workers.append(stack.enter_context(start(name, options.threads)))
            except Unavailable as reason:
                left_out[name] = str(reason)
        for name, reason in left_out.items():
            print(f"left out: {name}: {reason}")
        for config in options.config:
            print(f"\n{config}: {SETUPS[config].describe()}")
            chosen = [case for case in cases(SETUPS[config]) if options.op in case.name]
            results[config] = {case.name: time_case(case, workers, options) for case in chosen}
            print_rows(results[config], [worker.name for worker in workers])
    path = common.result_path("ops", options.out)
    print()
    common.write_json(path, {"program": "ops", "environment": env, "results": results, "left_out": left_out})
    if not options.no_chart and len(workers) > 1:
        rival = "PyTorch" if workers[-1].name.startswith("torch ") else workers[1].name
        title = f"Time of {rival} over that of {workers[0].name}: above 1 we are ahead"
        panels = {config: chart_of(rows) for config, rows in results.items()}
        common.bar_chart(path.with_suffix(".png"), title, panels, "", common.environment_line(env), line_at=1.0)
    return 0


def parse() -> argparse.Namespace:
    parser = ArgumentParser(description="Time kernels of tensorgrad and PyTorch, side by side.")
    known = one_of(*(name for name in SETUPS if name != "124M"))
    parser.add_argument("--config", type=known, nargs="+", default=["A", "B", "C"], help="the shapes")
    parser.add_argument("--op", default="", help="only the kernels whose name contains this")
    parser.add_argument("--backends", type=one_of("numba", "numpy"), nargs="+", default=["numba", "numpy"], help="ours")
    parser.add_argument("--torch", type=one_of(*TORCH), nargs="+", default=TORCH, help="PyTorch's modes")
    parser.add_argument("--no-torch", action="store_true", help="without PyTorch")
    parser.add_argument("--turn-ms", type=common.at_least(1), default=100, help="length of a turn")
    common.add_common_flags(parser, rounds=7)
    options = parser.parse_args()
    options.torch = [] if options.no_torch else options.torch
    known_cases = {case.name for name in options.config for case in cases(SETUPS[name])}
    if not any(options.op in name for name in known_cases):
        parser.error(f"--op: no kernel's name contains {options.op!r}: {', '.join(sorted(known_cases))}")
    return options


def start(name: str, threads: int) -> Worker:
    """Start the process of a contender."""
    if name.startswith("torch "):
        variables = common.KEEP_MEMORY if name.endswith("+keep") else {}
        return Worker(name, "benchmarks.op_cases:Torch", {"threads": threads}, threads, variables)
    return Worker(name, "benchmarks.op_cases:Ours", {"threads": threads, "backend": name}, threads)


def time_case(case: Case, workers: list[Worker], options: argparse.Namespace) -> Result:
    """Time one kernel of all contenders. Returns their forward_ms and backward_ms, and the ratio to the first."""
    common.progress(f"{case.name}")
    try:
        check({worker.name: worker.call("load", case=dataclasses.asdict(case)) for worker in workers}, case)
        seconds = options.turn_ms / 1e3
        turns, idle = alternate(workers, options.rounds, lambda worker: worker.call("run", seconds=seconds))
    except Unavailable as reason:
        raise UserError(f"{case.name}: {reason}") from None
    row: Result = {"shapes": case.shapes, "idle_share": idle, "times": {}}
    for name, replies in turns.items():
        forward, backward = ([ms for reply in replies for ms in reply[key]] for key in ("forward_ms", "backward_ms"))
        row["times"][name] = {
            "forward_ms": common.median(forward),
            "backward_ms": common.median(backward) if backward else 0.0,
            "spread": common.spread(forward),
            "faults": common.median([reply["faults"] for reply in replies]),
        }
    if warning := idle_warning(idle):
        print(f"{case.name}: {warning}")
    both = {name: times["forward_ms"] + times["backward_ms"] for name, times in row["times"].items()}
    first, *others = both.values()
    others_ms = [ms for name, ms in both.items() if name.startswith("torch ")] or others
    row["ratio"] = min(others_ms) / first if others_ms else None
    return row


def check(prints: dict[str, list[float] | None], case: Case) -> None:
    """Raise UserError if the contenders do not compute the same."""
    first, expected = next(iter(prints.items()))
    for name, found in prints.items():
        if expected is None or found is None:
            continue
        for what, (a, b) in enumerate(zip(expected, found, strict=True)):
            if not abs(a - b) <= TOLERANCE * abs(a) + 1e-6:
                raise UserError(
                    f"not timed: {case.name}: norm {what} (the result, then the gradients) is {b:.6g} by {name}, "
                    f"{a:.6g} by {first}"
                )


def print_rows(rows: dict[str, Result], names: list[str]) -> None:
    """Print forward and backward milliseconds, and the ratio of PyTorch's best to the first contender."""
    header = ["", *(f"{name} {way}" for name in names for way in ("fwd", "bwd")), "ratio"]
    cells = []
    for name, row in rows.items():
        times = [row["times"][worker][way] for worker in names for way in ("forward_ms", "backward_ms")]
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        cells.append([name, *(f"{ms:,.3f}" if ms else "" for ms in times), ratio])
    print(common.table(header, cells))


def chart_of(rows: dict[str, Result]) -> common.Bars:
    return [(name, row["ratio"], colour_of("numba" if row["ratio"] >= 1 else "torch ")) for name, row in rows.items()]


if __name__ == "__main__":
    sys.exit(run_program(main))
