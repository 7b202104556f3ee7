#!/usr/bin/env python3
"""Time SmolLM2 from GGUF files: tensorgrad beside llama.cpp and transformers.

    python benchmarks/published.py                        float32, q8_0, q4_0 and q4_1, made from the published file
    python benchmarks/published.py --types q8_0           one of them
    python benchmarks/published.py --files a.gguf         other files
    python benchmarks/published.py --model gpt2-124m      the shape of GPT-2, with random weights
    python benchmarks/published.py --rivals-python PATH   llama.cpp and transformers from another environment

Prefill reads a prompt of 448 tokens; decoding adds 64 tokens after a prompt of 64, one at a time. The tokens are given
and the same for all. Contenders are timed only if their logits agree: to 1e-2 of their spread in float32, since
llama.cpp's cache is float16. Quantised, it rounds activations to 8 bits, which changes logits by 0.05 of their spread,
after some prompts by 0.2, and 0.3 is allowed. Every contender is a process of its own; only one works at a time.
"""

import argparse
import math
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it works without installation

from benchmarks import common
from benchmarks.workers import Unavailable, Worker, alternate, idle_warning, wait_until_quiet
from gpt.cli import ArgumentParser, one_of
from gpt.cli import run as run_program
from gpt.config import UserError

TYPES = ("f32", "q8_0", "q4_0", "q4_1")
TOLERANCE, QUANTIZED_TOLERANCE = 1e-2, 0.3
RIVALS = {"llama.cpp": "LlamaCpp", "transformers": "Transformers"}
RANDOM_GPT2 = "gpt2-124m"  # the shape of GPT-2, with random weights

Result = dict[str, Any]


def main() -> int:
    options = parse()
    env = common.environment(options.threads, ("numpy", "numba"))
    print(common.environment_line(env))
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for file in files(options, Path(folder)):
            results[file.stem] = rows = measure(file, options)
            print_rows(file.stem, rows)
    path = common.result_path("published", options.out)
    sizes = {"prompt": options.prompt, "new": options.new, "prefill": options.prefill}
    common.write_json(path, {"program": "published", "environment": env, **sizes, "results": results})
    return 0


def parse() -> argparse.Namespace:
    parser = ArgumentParser(description="Time a published model: tensorgrad, llama.cpp and transformers, side by side.")
    model = f"what the files are made from: a model by name, a GGUF file, or {RANDOM_GPT2}, with random weights"
    parser.add_argument("--model", default="smollm2", help=model)
    parser.add_argument("--types", type=one_of(*TYPES), nargs="+", default=[*TYPES], help="of the files made from it")
    parser.add_argument("--files", nargs="+", type=Path, help="GGUF files to measure in place of these")
    parser.add_argument("--prompt", type=common.at_least(1), default=64, help="tokens before decoding")
    parser.add_argument("--new", type=common.at_least(1), default=64, help="tokens that are decoded")
    parser.add_argument("--prefill", type=common.at_least(1), default=448, help="tokens of a prompt to read")
    parser.add_argument("--first-token", type=common.at_least(0), default=1000, help="the text is a run of tokens")
    parser.add_argument("--rivals", type=one_of(*RIVALS), nargs="*", default=[*RIVALS], help="the others")
    parser.add_argument("--rivals-python", default=sys.executable, help="the Python that has them")
    parser.add_argument("--backends", type=one_of("numba", "numpy"), nargs="+", default=["numba"], help="ours")
    common.add_common_flags(parser, rounds=5)
    return parser.parse_args()


def files(options: argparse.Namespace, folder: Path) -> list[Path]:
    """The files that were given; or one of each type, written from the model in float32."""
    if options.files:
        return [file.resolve() for file in options.files]
    from gpt.weights import gguf  # not needed to measure other files

    made = []
    for type in options.types:
        common.progress(f"writing {type}")
        made.append(folder / f"{type}.gguf")
        gguf.write_model(made[-1], *model_of(options.model), type)
    return made


def model_of(name: str) -> tuple[Any, Any, Any]:
    """The configuration, the weights in float32 and the tokenizer."""
    from gpt.config import GPT_CONFIG_124M, GPTConfig
    from gpt.model import GPT
    from gpt.tokenizer import GPT2Tokenizer
    from gpt.weights.initial import load_initial

    if name != RANDOM_GPT2:
        initial = load_initial(name, quantize="none")
        return initial.config, initial.weights, initial.tokenizer
    model = GPT(GPTConfig.from_dict(GPT_CONFIG_124M))
    return model.config, model.state_dict(), GPT2Tokenizer()


def measure(file: Path, options: argparse.Namespace) -> dict[str, Result]:
    """Start all contenders on one file, compare their logits, and time them in turns."""
    n_tokens = options.prompt + options.new
    tokens = [options.first_token + i for i in range(max(n_tokens, options.prefill))]
    spec = {"file": str(file), "threads": options.threads, "window": len(tokens) + 1}
    with ExitStack() as stack:
        workers, logits = [], {}
        ours = [(name, "Ours", {**spec, "backend": name}, sys.executable) for name in options.backends]
        rivals = [(name, RIVALS[name], spec, options.rivals_python) for name in options.rivals]
        for name, factory, given, python in [*ours, *rivals]:
            try:
                common.progress(f"starting {name}")
                factory = f"benchmarks.published_models:{factory}"
                worker = stack.enter_context(Worker(name, factory, given, options.threads, python=python))
                logits[name] = worker.call("logits", tokens=tokens[:n_tokens], n_prompt=options.prompt)
                workers.append(worker)
            except Unavailable as reason:
                if not workers:
                    raise UserError(f"{name} cannot run: {reason}") from None
                print(f"left out: {name}: {reason}")
        differences = compare(logits, TOLERANCE if file.stem == "f32" else QUANTIZED_TOLERANCE)
        common.progress(f"timing {', '.join(worker.name for worker in workers)}")
        given = {"tokens": tokens[:n_tokens], "n_prompt": options.prompt}
        decoded, idle = alternate(workers, options.rounds, lambda worker: worker.call("decode", **given))
        wait_until_quiet(workers)
        read, _ = alternate(
            workers, options.rounds, lambda worker: worker.call("prefill", tokens=tokens[: options.prefill])
        )
        versions = {worker.name: worker.call("version") for worker in workers}
        peaks = {worker.name: worker.call("memory") for worker in workers}
    if warning := idle_warning(idle):
        print(warning)
    rows = {
        name: {
            "decode_tokens_per_s": 1 / common.median([s for turn in turns for s in turn]),
            "decode_spread": common.spread([common.median(turn) for turn in turns]),
            "prefill_tokens_per_s": options.prefill / common.median(read[name]),
            "prefill_spread": common.spread(read[name]),
            "difference": differences[name],
            "peak_mb": peaks[name],
            "version": versions[name],
        }
        for name, turns in decoded.items()
    }
    first = next(iter(rows.values()))
    for row in rows.values():
        for what in ("decode", "prefill"):
            row[f"{what}_ratio"] = first[f"{what}_tokens_per_s"] / row[f"{what}_tokens_per_s"]
    return rows


def compare(logits: dict[str, list[float]], tolerance: float) -> dict[str, float]:
    """The root mean square of the difference of each one's logits from the first one's, over their spread.

    Raises UserError where one is not within the tolerance.
    """
    first, expected = next(iter(logits.items()))
    mean = sum(expected) / len(expected)
    variance = sum((x - mean) ** 2 for x in expected)
    differences = {}
    for name, values in logits.items():
        squares = sum((a - b) ** 2 for a, b in zip(values, expected, strict=True))
        differences[name] = math.sqrt(squares / variance)
        if not differences[name] <= tolerance:
            raise UserError(
                f"not timed: the logits of {name} and {first} differ by {differences[name]:.2g} of their spread, "
                f"more than {tolerance:g}: they do not compute the same"
            )
    return differences


def print_rows(file: str, rows: dict[str, Result]) -> None:
    header = [file, "decode tokens/s", "+-", "ours / it", "prefill tokens/s", "+-", "ours / it", "logits", "peak MB"]
    cells = [
        [
            f"{name} {row['version']}".strip(),
            f"{row['decode_tokens_per_s']:.1f}", f"{row['decode_spread']:.1%}", f"{row['decode_ratio']:.2f}",
            f"{row['prefill_tokens_per_s']:.0f}", f"{row['prefill_spread']:.1%}", f"{row['prefill_ratio']:.2f}",
            f"{row['difference']:.1e}", f"{row['peak_mb']:,.0f}",
        ]
        for name, row in rows.items()
    ]  # fmt: skip
    print()
    print(common.table(header, cells))


if __name__ == "__main__":
    sys.exit(run_program(main))
