#!/usr/bin/env python3
"""Which settings are the best use of two minutes on two cores: the choice of what `python train.py` does.

    python benchmarks/default_run.py                            every candidate with three seeds: half an hour
    python benchmarks/default_run.py --candidates bpe-4096 --seeds 1337
    python benchmarks/default_run.py --cost                     what a step of each costs

Every candidate takes as many steps as cost what 4,286 steps of nanoGPT's settings do: two minutes at 28 ms each. Runs
are those of train.py, on its default text. Models with different tokens are compared by the loss over the whole
validation text, in bits per character, and by what they write: the text that train.py prints at the end, continued to
1,000 characters, at three temperatures. Of it count the share of its words that occur in the training text, and the
longest run of characters that is copied from there.
Results are added to those in `--out`, beside which a table with all texts is written.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it works without installation

import tensorgrad as tg
from benchmarks import common
from gpt.cli import ArgumentParser, one_of, use_backend
from gpt.cli import run as run_program
from gpt.data import load_text, split_text
from gpt.evaluate import score
from gpt.train.build import make_optimizer
from gpt.train.config import TrainConfig
from gpt.train.loop import train
from gpt.train.observers import sample
from gpt.train.run import Run, new_run
from gpt.train.step import TrainingStep
from gpt.weights import build_model
from tensorgrad.memory import keep_freed_memory

BUDGET = 4286  # steps of nanoGPT's settings
NANOGPT = "char-64"
CHARACTERS = 1000  # of a text
TEMPERATURES = (1.0, 0.8, 0.6)
WORD = re.compile("[a-z][a-z']*")
SEEDS = (1337, 1, 2)

# Spelled out, so that a change of train.py's defaults does not change the benchmark.
BASE: dict[str, Any] = {
    "n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "batch_size": 12, "dropout": 0.0, "bias": False,
    "lr": 1e-3, "min_lr": 1e-4, "warmup_iters": 100, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1, "grad_clip": 1.0,
    "eval_iters": 20,
}  # fmt: skip
BPE: dict[str, Any] = {**BASE, "tokenizer": "bpe"}
CANDIDATES: dict[str, dict[str, Any]] = {
    NANOGPT: {**BASE, "tokenizer": "char", "max_iters": BUDGET},
    "char-128": {**BASE, "tokenizer": "char", "block_size": 128, "batch_size": 6, "max_iters": 4000},
    "bpe-2048": {**BPE, "vocab_size": 2048, "max_iters": 3200},
    "bpe-4096": {**BPE, "vocab_size": 4096, "max_iters": 2500},
    "bpe-8192": {**BPE, "vocab_size": 8192, "max_iters": 1800},
}


def main() -> int:
    options = parse()
    keep_freed_memory()
    if options.cost:
        print(common.table(["candidate", "ms", "of nanoGPT's step", "of the budget"], cost_rows()))
        return 0
    path = common.result_path("default_run", options.out)
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"runs": []}
    env = common.environment(options.threads, packages=("numpy", "numba"))
    print(common.environment_line(env))
    for seed in options.seeds:
        for name in options.candidates:
            row = measure(name, seed, options)
            runs = in_order([*result["runs"], row])
            result = {"program": "default_run", "environment": env, "candidates": CANDIDATES, "runs": runs}
            common.write_json(path, result)
            path.with_suffix(".md").write_text(report(runs), encoding="utf-8")
    print(f"\n{table_of(runs)}")
    return 0


def in_order(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of several runs of one candidate and seed the last; in the order of the candidates."""
    last = {(run["candidate"], run["seed"]): run for run in runs}
    return sorted(last.values(), key=lambda run: list(CANDIDATES).index(run["candidate"]))


def parse() -> argparse.Namespace:
    parser = ArgumentParser(description="Train the candidates for the defaults of train.py, and compare their texts.")
    known = one_of(*CANDIDATES)
    parser.add_argument("--candidates", type=known, nargs="+", default=list(CANDIDATES), help="which to train")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="one run each")
    parser.add_argument("--data", default="shakespeare", help="the text: a corpus or a file")
    parser.add_argument("--max-iters", type=common.at_least(1), help="steps of each run (default: the candidate's)")
    parser.add_argument("--threads", type=common.at_least(1), default=common.available_threads(), help="CPU threads")
    parser.add_argument("--cost", action="store_true", help="measure only what a step of each costs, and train nothing")
    parser.add_argument("--out", help="the JSON file, to which runs are added (default: a new one in results/)")
    return parser.parse_args()


# --- what a step costs --------------------------------------------------------------------------


def cost_rows(rounds: int = 5, steps: int = 5) -> list[list[str]]:
    """Time a step of each candidate: the smallest processor time, on one thread, of steps that alternate.

    Unlike the time of a clock, this hardly depends on what else the machine does.
    """
    use_backend("auto", threads=1)
    trials = {name: trial(values) for name, values in CANDIDATES.items()}
    best = dict.fromkeys(trials, float("inf"))
    for _ in range(rounds):
        for name, (take_step, x) in trials.items():
            for _ in range(steps):
                started = time.process_time()
                take_step(x, x, 1e-3)
                best[name] = min(best[name], time.process_time() - started)
    rows = []
    for name, seconds in best.items():
        ratio = seconds / best[NANOGPT]
        share = ratio * CANDIDATES[name]["max_iters"] / BUDGET
        rows.append([name, f"{1000 * seconds:.1f}", f"{ratio:.2f}", f"{share:.2f}"])
    return rows


def trial(values: dict[str, Any]) -> tuple[TrainingStep, Any]:
    """Return a step of training, and a batch of random tokens x (B, T) for it."""
    config = TrainConfig(**values)
    vocab_size = config.vocab_size or 75
    model = build_model(config.model_config(vocab_size), plain=False).train()
    x = np.random.default_rng(0).integers(0, vocab_size, (config.batch_size, config.block_size))
    take_step = TrainingStep(model, make_optimizer(model, config), config)
    take_step(x, x, 1e-3)  # compiles
    return take_step, x


# --- a run and its text -------------------------------------------------------------------------


def measure(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train a candidate with one seed; return its loss over the validation text, and its text."""
    values = CANDIDATES[name] | ({"max_iters": options.max_iters} if options.max_iters else {})
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            data=options.data, threads=options.threads, seed=seed, out=folder, plot=False,
            eval_interval=values["max_iters"], **values,
        )  # fmt: skip
        run = new_run(config)
        started = time.perf_counter()
        if status := train(run):
            raise SystemExit(status)  # Ctrl-C
        seconds = time.perf_counter() - started
    training, validation = split_text(load_text(options.data), 0.9)
    nats = score(run.model, run.val_loader.tokens).nats
    return {
        "candidate": name, "seed": seed, "parameters": run.model.num_params(), "steps": config.max_iters,
        "bits_per_character": nats / np.log(2) / len(validation), "seconds": round(seconds, 1),
        "backend": tg.get_backend().name, "texts": {f"{t:g}": read(run, t, training) for t in TEMPERATURES},
    }  # fmt: skip


def read(run: Run, temperature: float, training: str) -> dict[str, Any]:
    """Generate a text, and compare it with the training text."""
    text = "".join(sample(run, CHARACTERS, temperature))[:CHARACTERS]
    return {"known_words": known_words(text, training), "copied": longest_copy(text, training), "text": text}


def known_words(text: str, training: str) -> float:
    """The share of the words of a text that occur in the training text; the last one may be cut, and is left out."""
    words = WORD.findall(text.lower())[:-1]
    known = set(WORD.findall(training.lower()))
    return sum(word in known for word in words) / len(words) if words else 0.0


def longest_copy(text: str, training: str) -> str:
    """The longest run of characters of a text that occurs in the training text."""
    start, longest = 0, ""
    for end in range(1, len(text) + 1):  # a run that ends here begins no earlier than one that ended before
        while start < end and text[start:end] not in training:
            start += 1
        longest = max(longest, text[start:end], key=len)
    return longest


# --- tables -------------------------------------------------------------------------------------


def table_of(runs: list[dict[str, Any]]) -> str:
    return common.table(*cells_of(runs))


def cells_of(runs: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The header, and a row for each candidate: means over its seeds (least), and the longest copy of any text."""
    words = [f"words at {t:g}" for t in TEMPERATURES]
    header = ["candidate", "parameters", "steps", "seeds", "bits per character", *words, "copied"]
    rows = []
    for name in dict.fromkeys(run["candidate"] for run in runs):
        mine = [run for run in runs if run["candidate"] == name]
        bits = sum(run["bits_per_character"] for run in mine) / len(mine)
        copied = max(len(text["copied"]) for run in mine for text in run["texts"].values())
        known = [[run["texts"][f"{t:g}"]["known_words"] for run in mine] for t in TEMPERATURES]
        rows.append([
            name, f"{mine[0]['parameters']:,}", f"{mine[0]['steps']:,}", str(len(mine)), f"{bits:.3f}",
            *(f"{sum(of_seeds) / len(mine):.1%} ({min(of_seeds):.1%})" for of_seeds in known), str(copied),
        ])  # fmt: skip
    return header, rows


def report(runs: list[dict[str, Any]]) -> str:
    """The table and all texts, in Markdown."""
    header, rows = cells_of(runs)
    lines = ["# Candidates for the default run", ""]
    lines += ["Means over the seeds (the least). `python benchmarks/default_run.py` measures it, and says how.", ""]
    lines += [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
    for run in runs:
        for temperature, text in run["texts"].items():
            lines += ["", f"## {run['candidate']}, seed {run['seed']}, temperature {temperature}", ""]
            lines += [f"{run['bits_per_character']:.3f} bits per character, {text['known_words']:.1%} known words."]
            lines += [f"Copied: {text['copied']!r}", "", "```text", text["text"].strip("\n"), "```"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(run_program(main))
