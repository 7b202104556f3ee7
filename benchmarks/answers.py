#!/usr/bin/env python3
"""Finetune a model to answer, on chatterbot-corpus' exchanges in English, with three seeds.

    pip install chatterbot-corpus
    python benchmarks/answers.py [--init-from smollm2] [--epochs 2] [--keep FOLDER]

Prints the loss of held-out answers before and after, and how many short ones are exact. Exits with 1 unless every loss
falls. --keep gives the runs a folder that remains, with ten conversations before and after in each: conversations.txt.
"""

import argparse
import json
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it works without installation

from benchmarks import common
from gpt.cli import ArgumentParser, one_of
from gpt.cli import run as run_program
from gpt.config import BACKENDS, UserError
from gpt.files import find_in_package
from gpt.finetune import instruct


def main() -> int:
    options = parse()
    env = common.environment(options.threads, packages=("numpy", "numba"))
    print(common.environment_line(env))
    with nullcontext(options.keep) if options.keep else tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        data = Path(options.data) if options.data else write_exchanges(folder / "exchanges.jsonl")
        rows = [measure(seed, data, folder, options) for seed in options.seeds]
    print(f"\n{table_of(rows)}")
    passed = all(row["after"]["loss"] < row["before"]["loss"] for row in rows)
    result = {"program": "answers", "environment": env, "init_from": options.init_from, "passed": passed, "runs": rows}
    common.write_json(common.result_path("answers", options.out), result)
    return 0 if passed else 1


def parse() -> argparse.Namespace:
    parser = ArgumentParser(description="Finetune a model to answer, and measure it before and after.")
    parser.add_argument("--data", help="a file of conversations instead")
    parser.add_argument("--init-from", default="smollm2", help="the model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1337, 1, 2], help="one run each")
    parser.add_argument("--epochs", type=common.at_least(1), default=2, help="times that each answer is seen")
    parser.add_argument("--block-size", type=common.at_least(1), default=256, help="tokens of a row")
    parser.add_argument("--backend", type=one_of(*BACKENDS), default="auto", help="the kernels")
    cores = common.available_threads()
    parser.add_argument("--threads", type=common.at_least(1, cores), default=cores, help="CPU threads")
    parser.add_argument("--keep", help="the folder of the runs (default: a temporary one)")
    parser.add_argument("--out", help="the JSON file (default: a new one in results/)")
    return parser.parse_args()


def write_exchanges(path: Path) -> Path:
    """Write the exchanges of the package as messages: what is said first is the user's, and then they take turns."""
    source = find_in_package("chatterbot_corpus", "data/english")
    if source is None:
        raise UserError("the exchanges are in a package: pip install chatterbot-corpus; or give --data")
    import yaml  # which that package needs, too

    with path.open("w", encoding="utf-8") as file:
        for corpus in sorted(source.glob("*.yml")):
            for exchange in yaml.safe_load(corpus.read_text(encoding="utf-8"))["conversations"]:
                turns = [str(turn) for turn in exchange[: len(exchange) // 2 * 2] if str(turn).strip()]
                if turns and len(turns) % 2 == 0:
                    roles = ("user", "assistant") * (len(turns) // 2)
                    messages = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=True)]
                    file.write(json.dumps({"messages": messages}) + "\n")
    return path


def measure(seed: int, data: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train with one seed; return the loss and the exact answers before and after."""
    out = folder / f"seed-{seed}"
    status = instruct.main([
        f"--data={data}", f"--init-from={options.init_from}", f"--seed={seed}", f"--epochs={options.epochs}",
        f"--block-size={options.block_size}", f"--backend={options.backend}", f"--threads={options.threads}",
        "--plot=False", f"--out={out}",
    ])  # fmt: skip
    if status:
        raise SystemExit(status)  # Ctrl-C
    results = json.loads((out / instruct.RESULTS).read_text(encoding="utf-8"))
    return {"seed": seed, "before": results["before"], "after": results["after"]}


def table_of(rows: list[dict[str, Any]]) -> str:
    header = ["seed", "loss before", "after", "exact before", "after", "of"]
    cells = [
        [str(row["seed"]), *(f"{row[when]['loss']:.4f}" for when in ("before", "after")),
         *(str(row[when]["n_exact"]) for when in ("before", "after")), str(row["after"]["n_short"])]
        for row in rows
    ]  # fmt: skip
    return common.table(header, cells)


if __name__ == "__main__":
    sys.exit(run_program(main))
