#!/usr/bin/env python3
"""Time decoding: GPT-2 124M, one sequence with a KV cache, tensorgrad beside Hugging Face and plain PyTorch.

    python benchmarks/generate.py                            prompt 64, 64 new tokens
    python benchmarks/generate.py --prompt 16 --new 256      other lengths
    python benchmarks/generate.py --backends numba --no-torch   without PyTorch

Every token reads every weight once, so memory limits the speed: the bound is the bytes of the weights over the
bandwidth of memory, measured in the same run. Weights are random and the same for all. Contenders are timed only if the
losses that they compute for a text, fed through their caches token by token, agree to 1e-4. Without transformers,
Hugging Face's model is left out. Every contender is a process of its own; only one works at a time.
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
from benchmarks.contenders import colour_of, usable
from benchmarks.workers import Unavailable, Worker, alternate, idle_warning
from gpt.cli import ArgumentParser, one_of
from gpt.cli import run as run_program
from gpt.config import UserError

TOLERANCE = 1e-4
BANDWIDTH = "bandwidth"
THEIRS = {"huggingface": "HuggingFace", "plain": "Torch"}

Result = dict[str, Any]


def main() -> int:
    options = parse()
    env = common.environment(options.threads, ("numpy", "numba", "torch", "transformers"))
    print(common.environment_line(env))
    options.backends, left_out = usable(options.backends)
    setup = SETUPS[options.config]
    print(f"{options.config}: {setup.describe()}; prompt {options.prompt}, {options.new} new tokens")
    with tempfile.TemporaryDirectory() as folder:
        inputs = str(Path(folder) / "inputs.safetensors")
        write_inputs(Path(inputs), setup, options.seed, n_tokens=options.prompt + options.new)
        rows, bound = measure(setup, inputs, options, left_out)
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    print_rows(rows, bound)
    path = common.result_path("generate", options.out)
    sizes = {"prompt": options.prompt, "new": options.new, "setup": dataclasses.asdict(setup)}
    result = {"program": "generate", "environment": env, **sizes, "bound": bound, "rows": rows, "left_out": left_out}
    print()
    common.write_json(path, result)
    if not options.no_chart:
        bars = [(name, row["tokens_per_s"], colour_of(name)) for name, row in rows.items()]
        bars.append(("bound by memory", bound["tokens_per_s"], common.BOUND))
        title, note = "Decoding with a cache: longer is faster", common.environment_line(env)
        common.bar_chart(path.with_suffix(".png"), title, {options.config: bars}, "tokens/s", note)
    return 0


def parse() -> argparse.Namespace:
    parser = ArgumentParser(description="Time generation of tensorgrad, Hugging Face and PyTorch, side by side.")
    parser.add_argument("--config", type=one_of(*SETUPS), default="124M", help="the model")
    parser.add_argument("--prompt", type=common.at_least(1), default=64, help="tokens of the prompt")
    parser.add_argument("--new", type=common.at_least(2), default=64, help="tokens to generate")
    parser.add_argument("--backends", type=one_of("numba", "numpy"), nargs="+", default=["numba", "numpy"], help="ours")
    parser.add_argument("--torch", type=one_of(*THEIRS), nargs="+", default=[*THEIRS], help="contenders on PyTorch")
    parser.add_argument("--no-torch", action="store_true", help="without them")
    parser.add_argument("--seed", type=int, default=1337, help="of weights and tokens")
    common.add_common_flags(parser, rounds=5)
    common.add_read_flag(parser)
    options = parser.parse_args()
    options.torch = [] if options.no_torch else options.torch
    room = SETUPS[options.config].block_size
    if options.prompt + options.new > room:
        parser.error(f"--prompt {options.prompt} and --new {options.new} do not fit the window, {room} tokens")
    return options


def measure(
    setup: Setup, inputs: str, options: argparse.Namespace, left_out: dict[str, str]
) -> tuple[dict[str, Result], Result]:
    """Start all contenders, compare their scores, and time them in turns. Returns the rows and the bound."""
    with ExitStack() as stack:
        workers, scores = [], {}
        for name in [*options.backends, *(f"torch {rival}" for rival in options.torch)]:
            try:
                common.progress(f"starting {name}")
                worker = stack.enter_context(start(name, setup, inputs, options))
                scores[name] = worker.call("score")
                worker.call("run", n=2)
                workers.append(worker)
            except Unavailable as reason:
                if not workers:
                    raise UserError(f"{name} cannot run: {reason}") from None
                left_out[name] = str(reason)
        check_scores(scores)
        spec = {"threads": options.threads, "read_mb": options.read_mb, "with_numba": True}
        memory = stack.enter_context(Worker(BANDWIDTH, "benchmarks.generation:Bandwidth", spec, options.threads))
        memory.call("run")
        common.progress(f"timing {', '.join(worker.name for worker in workers)}")

        def turn(worker: Worker) -> Any:
            return worker.call("run") if worker is memory else worker.call("run", n=options.new)

        try:
            turns, idle = alternate([*workers, memory], options.rounds, turn)
            peaks = {worker.name: worker.call("memory") for worker in workers}
        except Unavailable as reason:
            raise UserError(f"a contender failed while it was timed: {reason}") from None
    if warning := idle_warning(idle):
        print(warning)
    bound = bound_of(turns.pop(BANDWIDTH), setup)
    rows = {name: {**figures_of(replies, options.new), "peak_mb": peaks[name]} for name, replies in turns.items()}
    compare_rows(rows, bound, options.new, scores)
    return rows, bound | {"idle_share": idle}


def start(name: str, setup: Setup, inputs: str, options: argparse.Namespace) -> Worker:
    """Start the process of a contender."""
    spec = {"setup": dataclasses.asdict(setup), "inputs": inputs, "prompt": options.prompt}
    spec["threads"] = options.threads
    if name.startswith("torch "):
        factory = f"benchmarks.generation:{THEIRS[name.removeprefix('torch ')]}"
        return Worker(name, factory, spec, options.threads)
    return Worker(name, "benchmarks.generation:Ours", spec | {"backend": name}, options.threads)


def check_scores(scores: dict[str, float]) -> None:
    """Raise UserError if the contenders do not compute the same."""
    first, expected = next(iter(scores.items()))
    for name, score in scores.items():
        if not abs(score - expected) <= TOLERANCE * abs(expected):
            raise UserError(
                f"not timed: {name} has a loss of {score:.6f}, {first} of {expected:.6f}: "
                f"they differ by more than {TOLERANCE:g}, so they do not compute the same"
            )


def bound_of(turns: list[dict[str, float]], setup: Setup) -> Result:
    """The bytes of the parameters over the bandwidth: the best way to read, the median over the turns."""
    speeds = {way: common.median([turn[way] for turn in turns]) for way in turns[0]}
    parameter_bytes = 4 * setup.n_params()
    best = max(speeds.values())
    seconds = parameter_bytes / (best * 1e9)
    return {
        "gb_per_s": best,
        "ways_gb_per_s": speeds,
        "parameter_bytes": parameter_bytes,
        "ms_per_token": seconds * 1e3,
        "tokens_per_s": 1 / seconds,
    }


def figures_of(turns: list[Result], n: int) -> Result:
    """The medians over the turns of a contender; "later" tokens are those after the first."""
    seconds = [turn["s"] for turn in turns]
    later = [s for turn in turns for s in turn["later_s"]]
    return {
        "s": common.median(seconds),
        "spread": common.spread(seconds),
        "tokens_per_s": n / common.median(seconds),
        "first_ms": common.median([turn["first_s"] for turn in turns]) * 1e3,
        "later_ms": common.median(later) * 1e3,
        "faults": common.median([turn["faults"] for turn in turns]),
        "tokens": turns[-1]["tokens"],
        "times_s": seconds,
    }


def compare_rows(rows: dict[str, Result], bound: Result, n: int, scores: dict[str, float]) -> None:
    """Add the ratio to the first contender, shares of the bound, and the tokens that agree with the first."""
    reference = next(iter(rows.values()))
    for name, row in rows.items():
        row["score"] = scores[name]
        row["ratio"] = row["s"] / reference["s"]
        row["share_of_bound"] = n * bound["ms_per_token"] / (row["s"] * 1e3)
        row["later_share_of_bound"] = bound["ms_per_token"] / row["later_ms"]
        pairs = zip(row["tokens"], reference["tokens"], strict=True)
        row["tokens_agreeing"] = next((i for i, (a, b) in enumerate(pairs) if a != b), n)


def print_rows(rows: dict[str, Result], bound: Result) -> None:
    header = [
        "", "seconds", "+-", "ratio", "tokens/s", "of bound", "first ms", "later ms", "of bound", "peak MB",
        "faults/token", "same tokens",
    ]  # fmt: skip
    cells = [
        [
            name, f"{row['s']:.2f}", f"{row['spread']:.1%}", f"{row['ratio']:.2f}", f"{row['tokens_per_s']:.1f}",
            f"{row['share_of_bound']:.2f}", f"{row['first_ms']:.0f}", f"{row['later_ms']:.1f}",
            f"{row['later_share_of_bound']:.2f}", f"{row['peak_mb']:,.0f}", f"{row['faults']:,.0f}",
            f"{row['tokens_agreeing']}",
        ]
        for name, row in rows.items()
    ]  # fmt: skip
    print(common.table(header, cells))
    print(
        f"the bound: {bound['parameter_bytes'] / 1e6:,.0f} MB of weights at {bound['gb_per_s']:.1f} GB/s, "
        f"{bound['ms_per_token']:.1f} ms a token, {bound['tokens_per_s']:.1f} tokens/s"
    )


if __name__ == "__main__":
    sys.exit(run_program(main))
