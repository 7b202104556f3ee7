"""`python -m gpt.data prepare SOURCE... --out DIR`, and `verify DIR`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from gpt.cli import ArgumentParser, one_of
from gpt.cli import run as run_program
from gpt.config import ENCODING_ERRORS, UserError
from gpt.data.prepare import BPE_VOCAB_SIZE, SHARD_TOKENS, SPLIT_BY, Preparation, prepare
from gpt.data.shards import load_prepared

USAGE = """usage: python -m gpt.data prepare SOURCE... --out DIR   text to shards of tokens, for train.py --data DIR
       python -m gpt.data verify DIR                  hold every shard against its sha256
"""
EXAMPLES = """examples:
  python -m gpt.data prepare books/ --tokenizer bpe --vocab-size 8192 --out data/books
  python -m gpt.data prepare 'crawl/*.jsonl.gz' --field content --split-by document --out data/crawl
Interrupted, the same command goes on where it was.
"""


def main() -> int:
    commands = {"prepare": prepare_command, "verify": verify_command}
    command, *rest = sys.argv[1:] or [""]
    if command in ("", "-h", "--help"):
        print(USAGE, end="")
        return 0 if command else 2
    if command not in commands:
        raise UserError(f"unknown command {command!r}: prepare or verify")
    return commands[command](rest)


def prepare_command(argv: Sequence[str]) -> int:
    """Prepare, and say what came out."""
    flags = vars(build_parser().parse_args(argv))
    workers = flags.pop("workers")
    if workers < 1:
        raise UserError(f"workers must be at least 1, not {workers}")
    started = time.perf_counter()
    try:
        manifest = prepare(Preparation(**flags), workers=workers, show=True)
    except KeyboardInterrupt:
        print(f"\nStopped. What is done is kept in {flags['out']}: the same command goes on.", file=sys.stderr)
        raise
    describe(manifest)
    print(f"Prepared in {time.perf_counter() - started:.1f} s. To train on it: python train.py --data {flags['out']}")
    return 0


def build_parser() -> ArgumentParser:
    """Return the parser of `prepare`."""
    parser = ArgumentParser(
        prog="python -m gpt.data prepare", epilog=EXAMPLES, formatter_class=_HelpFormatter,
        description="Tokenise sources of any size into shards that training reads without loading them.",
    )  # fmt: skip
    add = parser.add_argument
    add(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a corpus (shakespeare, kjv, ...), file, folder or pattern; .jsonl: a document a line; .gz of either",
    )
    add(
        "--out",
        required=True,
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="folder for the shards; an unfinished one is gone on with",
    )
    add(
        "--tokenizer",
        default="gpt2",
        metavar="NAME",
        help="char, bpe (both learnt from the sources), gpt2, or the path of a tokenizer.json",
    )
    add(
        "--vocab-size",
        type=int,
        default=argparse.SUPPRESS,
        metavar="N",
        help=f"what --tokenizer bpe learns (default: {BPE_VOCAB_SIZE})",
    )
    add("--field", default="text", metavar="NAME", help="of a line of .jsonl, the text")
    add("--val-fraction", type=float, default=0.1, metavar="X", help="share that is held back for validation")
    add(
        "--split-by",
        type=one_of(*SPLIT_BY),
        default="end",
        metavar="NAME",
        help="end: the last of all the text validates; document: whole documents, drawn by --seed",
    )
    add(
        "--encoding-errors",
        type=one_of(*ENCODING_ERRORS),
        default="strict",
        metavar="NAME",
        help="what is not UTF-8: strict is an error, replace makes U+FFFD of it, ignore leaves it out",
    )
    add("--seed", type=int, default=1337, metavar="N", help="of --split-by document")
    add("--shard-tokens", type=int, default=SHARD_TOKENS, metavar="N", help="tokens in a shard")
    add("--workers", type=int, default=cores(), metavar="N", help="processes; the result is the same for any number")
    return parser  # fmt: skip


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def verify_command(argv: Sequence[str]) -> int:
    """Check all hashes, and say what is there."""
    parser = ArgumentParser(prog="python -m gpt.data verify", description="Hold prepared data against its manifest.")
    parser.add_argument("folder", metavar="DIR", help="what prepare wrote")
    folder = parser.parse_args(argv).folder
    describe(load_prepared(folder, hashes=True).manifest)
    print("Every file is as it was written.")
    return 0


def describe(manifest: dict[str, Any]) -> None:
    """Print what prepared data is."""
    sources, tokenizer, splits = manifest["plan"]["sources"], manifest["tokenizer"], manifest["splits"]
    megabytes = sum(source["n_bytes"] for source in sources) / 1e6
    learnt = f", learnt from {tokenizer['learnt_from']}" if tokenizer["learnt_from"] else ""
    print(f"sources  {len(sources):,}, {megabytes:,.1f} MB")
    print(f"tokens   {tokenizer['type']}, {tokenizer['vocab_size']:,} different ones{learnt}")
    for name, split in splits.items():
        documents, shards = counted(split["documents"], "document"), counted(len(split["shards"]), "shard")
        print(f"{name:<8} {split['tokens']:,} tokens, {documents}, {shards} of {manifest['dtype']}")
    print(f"split    {manifest['split']}")
    if manifest["empty_documents"]:
        print(f"skipped  {counted(manifest['empty_documents'], 'empty document')}")


def counted(n: int, what: str) -> str:
    """Return `1 shard`, `2 shards`."""
    return f"{n:,} {what}" + "s" * (n != 1)


if __name__ == "__main__":
    sys.exit(run_program(main, prog="python -m gpt.data"))
