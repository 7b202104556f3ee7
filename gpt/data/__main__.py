"""`python -m gpt data prepare SOURCE... --out DIR`, and `verify DIR`."""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any

from gpt.cli import ArgumentParser, HelpFormatter, one_of
from gpt.cli import run as run_program
from gpt.config import BPE_VOCAB_SIZE, ENCODING_ERRORS, UserError
from gpt.data.documents import FIELD, first_few
from gpt.data.prepare import SHARD_TOKENS, SPLIT_BY, Preparation, prepare
from gpt.data.shards import load_prepared
from gpt.heartbeat import Heartbeat

MAX_WORKERS = 512
USAGE = """usage: python -m gpt data prepare SOURCE... --out DIR   text to shards of tokens, for train.py --data DIR
       python -m gpt data verify DIR                  check every shard against its sha256
"""
EXAMPLES = """examples:
  python -m gpt data prepare books/ --tokenizer bpe --vocab-size 8192 --out data/books
  python -m gpt data prepare 'crawl/*.jsonl.gz' --field content --split-by document --out data/crawl
After an interruption, the same command continues.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `prepare` or `verify`; without either, print the usage."""
    commands = {"prepare": prepare_command, "verify": verify_command}
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if command not in commands:
        raise UserError(f"unknown command {command!r}: prepare or verify")
    return commands[command](rest)


def prepare_command(argv: Sequence[str]) -> int:
    """Prepare the sources and describe the result."""
    flags = vars(build_parser().parse_args(argv))
    workers = flags.pop("workers")
    if not 1 <= workers <= MAX_WORKERS:
        raise UserError(f"workers must be at least 1 and at most {MAX_WORKERS}, not {workers}")
    started = time.perf_counter()
    try:
        manifest = prepare(Preparation(**flags), workers=workers, show=True)
    except KeyboardInterrupt:
        print(f"\nStopped. What is done is kept in {flags['out']}: the same command continues.", file=sys.stderr)
        raise
    describe(manifest)
    command = f"python train.py --data {shlex.quote(flags['out'])}"
    print(f"Prepared in {time.perf_counter() - started:.1f} s. To train on it: {command}")
    return 0


def build_parser() -> ArgumentParser:
    """Return the parser of `prepare`."""
    parser = ArgumentParser(
        prog="python -m gpt data prepare", epilog=EXAMPLES, formatter_class=_HelpFormatter,
        description="Tokenize sources of any size into shards, which training reads without loading them.",
    )  # fmt: skip
    add = parser.add_argument
    absent: dict[str, Any] = {"default": argparse.SUPPRESS}  # --help shows no default
    add("sources", nargs="+", metavar="SOURCE",
        help="a corpus (shakespeare, kjv, ...), file, folder or pattern; .jsonl: one document per line; .gz of either")
    add("--out", required=True, **absent, metavar="DIR", help="folder for the shards; an unfinished one is continued")
    add("--tokenizer", default="gpt2", metavar="NAME",
        help="char, bpe (both trained on the sources), gpt2, or the path of a tokenizer.json")
    add("--vocab-size", type=int, **absent, metavar="N", help=f"of --tokenizer bpe (default: {BPE_VOCAB_SIZE})")
    add("--field", default=FIELD, metavar="NAME", help="of a line of .jsonl that holds the text")
    add("--val-fraction", type=float, default=0.1, metavar="X", help="share of the data for validation")
    add("--split-by", type=one_of(*SPLIT_BY), default="end", metavar="NAME",
        help="end: the end of all the text is for validation; document: whole documents, drawn with --seed")
    add("--encoding-errors", type=one_of(*ENCODING_ERRORS), default="strict", metavar="NAME",
        help="bytes that are not UTF-8: strict is an error, replace makes them U+FFFD, ignore leaves them out")
    add("--normalize-whitespace", action="store_true", help="remove white space at line ends, and repeated blank lines")
    add("--allow-special", action="store_true", help="read <|endoftext|> in the text as that token")
    add("--seed", type=int, default=1337, metavar="N", help="of --split-by document")
    add("--shard-tokens", type=int, default=SHARD_TOKENS, metavar="N", help="tokens in a shard")
    add("--workers", type=int, default=cores(), metavar="N", help="processes; the result is the same for any number")
    return parser  # fmt: skip


class _HelpFormatter(HelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def verify_command(argv: Sequence[str]) -> int:
    """Check all hashes, and describe the data."""
    parser = ArgumentParser(prog="python -m gpt data verify", description="Check prepared data against its manifest.")
    parser.add_argument("folder", metavar="DIR", help="folder of prepared data")
    folder = parser.parse_args(argv).folder
    with Heartbeat(f"checking {folder}"):
        manifest = load_prepared(folder, hashes=True).manifest
    describe(manifest)
    print("Every file is unchanged.")
    return 0


def describe(manifest: dict[str, Any]) -> None:
    """Print a description of prepared data."""
    sources, tokenizer, splits = manifest["plan"]["sources"], manifest["tokenizer"], manifest["splits"]
    megabytes = sum(source["n_bytes"] for source in sources) / 1e6
    learned = f", trained on {tokenizer['learnt_from']}" if tokenizer["learnt_from"] else ""
    print(f"sources  {len(sources):,}, {megabytes:,.1f} MB: {first_few(source['name'] for source in sources)}")
    print(f"tokens   {tokenizer['type']}, {tokenizer['vocab_size']:,} different ones{learned}")
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
    sys.exit(run_program(main, prog="python -m gpt data"))
