#!/usr/bin/env python3
"""Time a step of LoRA beside PEFT on transformers, and beside finetuning all weights: time and peak memory.

    pip install transformers peft gguf accelerate && python benchmarks/lora_step.py
    python benchmarks/lora_step.py --rivals-python PATH         PEFT from another environment

SmolLM2 in float32, adapters on all linear layers of a block, T = 128, batch 4. A step is forward, backward, gradients
clipped to a norm of 1, AdamW. PEFT runs with the system's allocator, and as +keep with one that keeps freed memory:
its time is the faster one's, its memory the smaller one's. Each contender is a process of its own, only one works at a
time, and they are timed only if the losses of the first three steps agree to 1e-4. Exits with 1 unless the memory is at
most 0.6 of that for all weights and not above PEFT's, and the time not above PEFT's. Without PEFT, it is left out.
"""

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it works without installation

from benchmarks import common
from benchmarks.train_step import check_losses
from benchmarks.workers import Unavailable, Worker, alternate, idle_warning
from gpt.cli import ArgumentParser, one_of
from gpt.cli import run as run_program
from gpt.config import UserError
from gpt.data import load_text
from gpt.weights.initial import load_initial
from gpt.weights.published import find_published

ALL, LORA, PEFT, PEFT_KEEP = "ours, all weights", "ours, LoRA", "PEFT", "PEFT+keep"
MEMORY_LIMIT = 0.6  # of that for all weights
N_BATCHES = 4  # used in turn


def main() -> int:
    options = parse()
    env = common.environment(options.threads, keep=True)
    print(common.environment_line(env))
    rows, idle = measure(options)
    if warning := idle_warning(idle):
        print(warning)
    cells = [
        [name, f"{row['ms']:,.0f}", f"{row['spread']:.1%}", f"{row['fastest_ms']:,.0f}", f"{row['peak_mb']:,.0f}",
         f"{row['losses'][-1]:.5f}", row["version"]]
        for name, row in rows.items()
    ]  # fmt: skip
    print(common.table(["", "ms/step", "+-", "fastest", "peak MB", "loss", ""], cells))
    summary = summarise(rows)
    print(*(f"{name}: {value:.3f}" for name, value in summary.items()), sep="\n")
    passed = summary["memory / all weights"] <= MEMORY_LIMIT and PEFT in rows
    passed = passed and max(summary["time / PEFT"], summary["memory / PEFT"]) <= 1
    sizes = {name: getattr(options, name) for name in ("batch_size", "block_size", "rank", "rounds", "steps")}
    result = {"program": "lora_step", "environment": env, **sizes, "passed": passed, "summary": summary, "rows": rows}
    common.write_json(common.result_path("lora_step", options.out), result)
    return 0 if passed else 1


def parse() -> argparse.Namespace:
    parser = ArgumentParser(description="Time a step of LoRA beside PEFT's, and beside one for all weights.")
    parser.add_argument("--model", default="smollm2", help="a name or a GGUF file")
    parser.add_argument("--batch-size", type=common.at_least(1), default=4, help="windows in a batch")
    parser.add_argument("--block-size", type=common.at_least(1), default=128, help="tokens of a window")
    parser.add_argument("--rank", type=common.at_least(1), default=8, help="of the adapters")
    parser.add_argument("--steps", type=common.at_least(1), default=2, help="steps in a turn")
    parser.add_argument("--backend", type=one_of("numba", "numpy"), default="numba", help="ours")
    parser.add_argument("--rivals-python", default=sys.executable, help="the Python that has PEFT")
    common.add_common_flags(parser, rounds=7)
    return parser.parse_args()


def measure(options: argparse.Namespace) -> tuple[dict[str, dict[str, Any]], float]:
    """Start all contenders, compare their losses and time them in turns; how busy those were that had to wait."""
    place = Path(options.model)
    file = str((place if place.exists() else find_published(options.model)).resolve())
    spec = {"batches": batches(file, options), "file": file, "threads": options.threads}
    ours = {**spec, "backend": options.backend}
    contenders: dict[str, Any] = {
        LORA: ("Ours", {**ours, "rank": options.rank}, None, sys.executable),
        ALL: ("Ours", {**ours, "rank": 0}, None, sys.executable),
        PEFT: ("Peft", {**spec, "rank": options.rank}, None, options.rivals_python),
        PEFT_KEEP: ("Peft", {**spec, "rank": options.rank}, common.KEEP_MEMORY, options.rivals_python),
    }
    with ExitStack() as stack:
        workers, warm = [], {}
        for name, (factory, given, variables, python) in contenders.items():
            try:
                common.progress(f"starting {name}")
                factory = f"benchmarks.lora_contenders:{factory}"
                worker = stack.enter_context(Worker(name, factory, given, options.threads, variables, python=python))
                warm[name] = worker.call("warm_up", steps=3)
                workers.append(worker)
            except Unavailable as reason:
                if name in (LORA, ALL):
                    raise UserError(f"{name}: cannot run: {reason}") from None
                print(f"left out: {name}: {reason}")
        check_losses({name: reply for name, reply in warm.items() if name != ALL})  # which learns otherwise
        common.progress("timing")
        turns, idle = alternate(workers, options.rounds, lambda worker: worker.call("run", steps=options.steps))
        rows = {w.name: {**figures_of(w, turns[w.name]), **warm[w.name]} for w in workers}
    return rows, idle


def batches(file: str, options: argparse.Namespace) -> list[list[list[int]]]:
    """Return windows of T + 1 tokens of Python's documentation, as batches."""
    B, T = options.batch_size, options.block_size + 1
    tokens = load_initial(file).tokenizer.encode(load_text("python-docs")[: 20 * N_BATCHES * B * T])
    rows = [tokens[start : start + T] for start in range(0, N_BATCHES * B * T, T)]
    return [rows[start : start + B] for start in range(0, N_BATCHES * B, B)]


def figures_of(worker: Worker, turns: list[dict[str, Any]]) -> dict[str, Any]:
    """The times and the memory of a contender."""
    times = [ms for turn in turns for ms in turn["ms"]]
    figures = {"ms": common.median(times), "spread": common.spread(times), "fastest_ms": min(times), "times_ms": times}
    return {**figures, **worker.call("memory"), "version": worker.call("version")}


def summarise(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return our LoRA's time and memory over those of the others."""
    summary = {}
    for what, key in (("time", "ms"), ("fastest step", "fastest_ms"), ("memory", "peak_mb")):
        ours = rows[LORA][key]
        summary[f"{what} / all weights"] = ours / rows[ALL][key]
        if theirs := [rows[name][key] for name in (PEFT, PEFT_KEEP) if name in rows]:
            summary[f"{what} / PEFT"] = ours / min(theirs)
    return summary


if __name__ == "__main__":
    sys.exit(run_program(main))
