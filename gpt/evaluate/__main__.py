"""`python -m gpt evaluate CHECKPOINT --data SOURCE`: the loss of a model over a whole text."""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt.cli import ArgumentParser, one_of, use_backend, user_errors
from gpt.cli import run as run_program
from gpt.config import BACKENDS, ENCODING_ERRORS, UserError
from gpt.data import load_text, split_text, tokenize
from gpt.data.documents import describe_files
from gpt.data.loaders import Array, Tokens
from gpt.data.shards import is_prepared, load_prepared
from gpt.evaluate import Score, score
from gpt.heartbeat import Heartbeat, progress_bar
from gpt.tokenizer import Tokenizer, TokenizerError
from gpt.weights import Model
from gpt.weights.arrays import QUANTIZE, QUANTIZE_HELP
from gpt.weights.initial import MODEL_HELP, load_initial
from tensorgrad.backend.quantization import FORMATS
from tensorgrad.memory import keep_freed_memory

SPLITS = ("val", "train", "all")
MAX_WINDOW = 1024  # unless --block-size is given
LOGITS_BYTES = 2**28  # of a batch; with a vocabulary of 50,000, logits are the largest array
EXAMPLES = """examples:
  python -m gpt evaluate checkpoints/shakespeare-char --data shakespeare
  python -m gpt evaluate gpt2/model.safetensors --data data/books --split all --stride 512 --json
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Load the model and the data, score every part, and print the result."""
    keep_freed_memory()
    args = build_parser().parse_args(argv)
    if args.batch_size is not None and args.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, not {args.batch_size}")
    with Heartbeat("loading model and data"):
        backend = use_backend(args.backend, args.threads)
        weights = load_initial(args.checkpoint, args.n_head, args.quantize)
        model = weights.build_model()
        parts = open_tokens(args, weights.tokenizer)
    block_size = args.block_size or min(model.config.block_size, MAX_WINDOW)
    if not 1 <= block_size <= model.config.block_size:
        raise UserError(f"--block-size must be at least 1 and at most {model.config.block_size}, not {block_size}")
    stride = block_size if args.stride is None else args.stride
    if not 1 <= stride <= block_size:
        raise UserError(f"--stride must be at least 1 and at most the window, {block_size}, not {stride}")
    started = time.perf_counter()
    options = block_size, stride, args.batch_size, bytes_per_token(weights.tokenizer)
    result = score_parts(model, parts, *options)
    seconds = time.perf_counter() - started
    if not math.isfinite(result.loss):
        raise UserError(f"{args.checkpoint}: the loss is {result.loss}, so the weights are not usable")
    exact = None
    if args.quantize in FORMATS:
        with Heartbeat("loading the model in float32"):
            model = load_initial(args.checkpoint, args.n_head, "none").build_model()
        exact = score_parts(model, parts, *options)
    metrics = {
        "checkpoint": args.checkpoint, "data": args.data, "split": args.split, "tokens": result.n_tokens,
        "bytes": result.n_bytes, "loss": result.loss, "perplexity": result.perplexity,
        "bits_per_byte": None if math.isnan(result.bits_per_byte) else result.bits_per_byte,
        "float32_perplexity": None if exact is None else exact.perplexity,
        "files": describe_files(args.data),
        "tokens_per_s": round(result.n_tokens / seconds), "block_size": block_size, "stride": stride,
        "parameters": model.config.count_parameters().total, "tokenizer": weights.tokenizer.type_name,
        "backend": backend,
    }  # fmt: skip
    print(json.dumps(metrics) if args.json else format_metrics(metrics))
    return 0


def build_parser() -> ArgumentParser:
    """Return the flags of this program."""
    parser = ArgumentParser(
        prog="python -m gpt evaluate", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measure the loss over a whole text. Every token but the first is predicted once.",
    )  # fmt: skip
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help=MODEL_HELP)
    add("--data", required=True, metavar="SOURCE", help="a corpus, file, folder, pattern, or prepared data")
    add("--split", type=one_of(*SPLITS), default="val", metavar="NAME",
        help="val (default), train, or all: as train.py splits a text, and as prepared data was split")
    add("--block-size", type=int, metavar="N", help=f"tokens in a window (default: the model's, at most {MAX_WINDOW})")
    add("--stride", type=int, metavar="N",
        help="tokens from one window to the next (default: a whole window); fewer give each token more context")
    add("--batch-size", type=int, metavar="N", help="windows at a time (default: as many as fit 256 MiB of logits)")
    add("--encoding-errors", type=one_of(*ENCODING_ERRORS), default="strict", metavar="NAME",
        help="bytes that are not UTF-8: strict (an error, the default), replace or ignore")
    add("--normalize-whitespace", action="store_true", help="as train.py --normalize-whitespace")
    add("--allow-special", action="store_true", help="as train.py --allow-special")
    add("--quantize", type=one_of(*QUANTIZE), default="file", metavar="NAME",
        help=f"{QUANTIZE_HELP}; what q8_0, q4_0 and q4_1 cost is shown beside float32")
    add("--n-head", type=int, metavar="N", help="of a GPT-2 without config.json whose heads are not 64 wide")
    add("--backend", type=one_of(*BACKENDS), default="auto", metavar="NAME",
        help="numpy, numba, cupy or auto (default)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: every core)")
    add("--json", action="store_true", help="print one line of JSON")
    return parser  # fmt: skip


def open_tokens(args: argparse.Namespace, tokenizer: Tokenizer) -> list[Tokens]:
    """Return the parts to score; no window spans two of them."""
    if is_prepared(args.data):
        data = load_prepared(args.data)
        if data.tokenizer.to_dict() != tokenizer.to_dict():
            raise UserError(f"data {args.data!r} was prepared with another tokenizer than {args.checkpoint} has")
        parts: list[Tokens] = [getattr(data, name) for name in ("train", "val") if args.split in (name, "all")]
    else:
        text = load_text(args.data, normalize=args.normalize_whitespace, errors=args.encoding_errors)
        train, val = split_text(text)
        with user_errors(TokenizerError, about=f"data {args.data!r}"):
            chosen = {"train": train, "val": val, "all": text}[args.split]
            parts = [tokenize(chosen, tokenizer, allow_special=args.allow_special)]
    parts = [part for part in parts if len(part) or args.split != "all"]
    for part in parts:
        if len(part) < 2:
            raise UserError(f"data {args.data!r}, {args.split}: {len(part)} tokens; at least 2 are needed")
    return parts


def score_parts(
    model: Model, parts: Sequence[Tokens], block_size: int, stride: int, batch_size: int | None, token_bytes: Array
) -> Score:
    """Return the score of all parts together, and show the progress."""
    window_bytes = 4 * block_size * model.config.vocab_size
    batch = batch_size or max(1, min(64, LOGITS_BYTES // window_bytes))
    total = Score()
    options: dict[str, Any] = {"stride": stride, "batch_size": batch, "token_bytes": token_bytes}
    with progress_bar("evaluating", sum(len(part) - 1 for part in parts), " tokens") as advance:
        for part in parts:
            total += score(model, part, block_size=block_size, advance=advance, **options)
    return total


def bytes_per_token(tokenizer: Tokenizer) -> Array:
    """Return how many bytes of text each token encodes, (V,); end of text encodes none."""
    sizes = np.array([len(tokenizer.decode_bytes([i])) for i in range(tokenizer.vocab_size)], np.int64)
    if tokenizer.eot is not None:
        sizes[tokenizer.eot] = 0
    return sizes


def format_metrics(metrics: dict[str, Any]) -> str:
    """Return the metrics as a table."""
    bits, exact = metrics["bits_per_byte"], metrics["float32_perplexity"]
    cost = "" if exact is None else f" ({metrics['perplexity'] / exact - 1:+.2%} beside float32, {exact:.3f})"
    digits = 2 if exact is None else 3
    rows = [
        ("checkpoint", f"{metrics['checkpoint']}, {metrics['parameters']:,} parameters"),
        ("data", f"{metrics['data']}, {metrics['split']}: {metrics['tokens']:,} tokens, {metrics['bytes']:,} bytes"),
        *([("", f"in {metrics['files']}")] if metrics["files"] else []),
        ("windows", f"of {metrics['block_size']} tokens, every {metrics['stride']}"),
        ("loss", f"{metrics['loss']:.4f}"),
        ("perplexity", f"{metrics['perplexity']:.{digits}f}{cost}"),
        ("bits/byte", "-" if bits is None else f"{bits:.4f}"),
        ("speed", f"{metrics['tokens_per_s']:,} tokens/s ({metrics['backend']})"),
    ]
    return "\n".join(f"{name:<11} {value}" for name, value in rows)


if __name__ == "__main__":
    sys.exit(run_program(main, prog="python -m gpt evaluate"))
