"""`python -m gpt.evaluate CHECKPOINT --data SOURCE`: what a model makes of a whole text."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from gpt.cli import ArgumentParser, one_of, use_backend, user_errors
from gpt.cli import run as run_program
from gpt.config import BACKENDS, ENCODING_ERRORS, UserError
from gpt.data import load_text, split_text, tokenize
from gpt.data.loaders import Array, Tokens
from gpt.data.shards import is_prepared, load_prepared
from gpt.evaluate import Score, score
from gpt.fused import FusedGPT
from gpt.model import GPT
from gpt.tokenizer import Tokenizer, TokenizerError
from gpt.weights.initial import load_initial

SPLITS = ("val", "train", "all")
LOGITS_BYTES = 2**28  # of a batch; a vocabulary of 50,000 makes them the largest array of all
EXAMPLES = """examples:
  python -m gpt.evaluate checkpoints/shakespeare-char --data shakespeare
  python -m gpt.evaluate gpt2/model.safetensors --data data/books --split all --stride 512 --json
"""


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.batch_size is not None and args.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, not {args.batch_size}")
    backend = use_backend(args.backend, args.threads)
    weights = load_initial(args.checkpoint, args.n_head)
    model = FusedGPT(weights.config)
    weights.load_into(model)
    parts = open_tokens(args, weights.tokenizer)
    block_size, result = model.config.block_size, Score()
    stride = block_size if args.stride is None else args.stride
    if not 1 <= stride <= block_size:
        raise UserError(f"--stride must be at least 1 and at most the window, {block_size}, not {stride}")
    started = time.perf_counter()
    with tqdm(total=sum(len(part) - 1 for part in parts), unit=" tokens", disable=None, dynamic_ncols=True) as bar:
        for part in parts:
            result += score(
                model, part, stride=stride, batch_size=args.batch_size or batch_size_for(model),
                token_bytes=bytes_of_tokens(weights.tokenizer), advance=bar.update,
            )  # fmt: skip
    seconds = time.perf_counter() - started
    if not math.isfinite(result.loss):
        raise UserError(f"{args.checkpoint}: the loss is {result.loss}: its weights are of no use")
    figures = {
        "checkpoint": args.checkpoint, "data": args.data, "split": args.split, "tokens": result.n_tokens,
        "bytes": result.n_bytes, "loss": result.loss, "perplexity": result.perplexity,
        "bits_per_byte": None if math.isnan(result.bits_per_byte) else result.bits_per_byte,
        "tokens_per_s": round(result.n_tokens / seconds), "block_size": block_size, "stride": stride,
        "parameters": model.num_params(), "tokenizer": weights.tokenizer.type_name, "backend": backend,
    }  # fmt: skip
    print(json.dumps(figures) if args.json else text_of(figures))
    return 0


def build_parser() -> ArgumentParser:
    """Return the flags of this program."""
    parser = ArgumentParser(
        prog="python -m gpt.evaluate", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measure the loss over a whole text. Every token but the first is predicted once.",
    )  # fmt: skip
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a run, one step of it, or model.safetensors of a Hugging Face GPT-2")
    add("--data", required=True, metavar="SOURCE", help="a corpus, file, folder, pattern, or what gpt.data prepared")
    add(
        "--split",
        type=one_of(*SPLITS),
        default="val",
        metavar="NAME",
        help="val (default), train, or all: as train.py splits a text, and as prepared data was split",
    )
    add(
        "--stride",
        type=int,
        metavar="N",
        help="tokens from one window to the next (default: a whole window); fewer give each token more context",
    )
    add("--batch-size", type=int, metavar="N", help="windows at a time (default: what fits a quarter of a gigabyte)")
    add(
        "--encoding-errors",
        type=one_of(*ENCODING_ERRORS),
        default="strict",
        metavar="NAME",
        help="what is not UTF-8: strict (an error, the default), replace or ignore",
    )
    add("--n-head", type=int, metavar="N", help="of a GPT-2 whose heads are not 64 wide")
    add(
        "--backend", type=one_of(*BACKENDS), default="auto", metavar="NAME", help="numpy, numba, cupy or auto (default)"
    )
    add("--threads", type=int, metavar="N", help="CPU threads (default: every core)")
    add("--json", action="store_true", help="print one line of JSON")
    return parser  # fmt: skip


def open_tokens(args: argparse.Namespace, tokenizer: Tokenizer) -> list[Tokens]:
    """Return the parts to be scored, none of which is context for another."""
    if is_prepared(args.data):
        data = load_prepared(args.data)
        if data.tokenizer.to_dict() != tokenizer.to_dict():
            raise UserError(f"data {args.data!r} was prepared with another tokenizer than {args.checkpoint} has")
        parts: list[Tokens] = [part for name, part in (("train", data.train), ("val", data.val)) if chosen(args, name)]
    else:
        text = load_text(args.data, errors=args.encoding_errors)
        train, val = split_text(text)
        with user_errors(TokenizerError, about=f"data {args.data!r}"):
            parts = [tokenize({"train": train, "val": val, "all": text}[args.split], tokenizer)]
    parts = [part for part in parts if len(part) or args.split != "all"]
    for part in parts:
        if len(part) < 2:
            raise UserError(f"data {args.data!r}, {args.split}: {len(part)} tokens; at least 2 are needed")
    return parts


def chosen(args: argparse.Namespace, split: str) -> bool:
    """Whether a split is to be scored."""
    return args.split in (split, "all")


def batch_size_for(model: GPT) -> int:
    """How many windows have logits of LOGITS_BYTES."""
    return max(1, min(64, LOGITS_BYTES // (4 * model.config.block_size * model.config.vocab_size)))


def bytes_of_tokens(tokenizer: Tokenizer) -> Array:
    """Return how many bytes of text each token stands for, (V,); end of text is none of it."""
    sizes = np.array([len(tokenizer.decode_bytes([i])) for i in range(tokenizer.vocab_size)], np.int64)
    if tokenizer.eot is not None:
        sizes[tokenizer.eot] = 0
    return sizes


def text_of(figures: dict[str, Any]) -> str:
    """The figures for people."""
    bits = figures["bits_per_byte"]
    rows: list[tuple[str, str]] = [
        ("checkpoint", f"{figures['checkpoint']}, {figures['parameters']:,} parameters"),
        ("data", f"{figures['data']}, {figures['split']}: {figures['tokens']:,} tokens, {figures['bytes']:,} bytes"),
        ("windows", f"of {figures['block_size']} tokens, every {figures['stride']}"),
        ("loss", f"{figures['loss']:.4f}"),
        ("perplexity", f"{figures['perplexity']:.2f}"),
        ("bits/byte", "-" if bits is None else f"{bits:.4f}"),
        ("speed", f"{figures['tokens_per_s']:,} tokens/s ({figures['backend']})"),
    ]
    return "\n".join(f"{name:<11} {value}" for name, value in rows)


if __name__ == "__main__":
    sys.exit(run_program(main, prog="python -m gpt.evaluate"))
