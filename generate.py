"""Write text with a trained model: `python generate.py`, or `--help` for all that can be set."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from gpt.checkpoint import Checkpoint, load_checkpoint
from gpt.checkpoint.step_folders import newest_checkpoint
from gpt.cli import ArgumentParser, one_of, run, use_backend, user_errors
from gpt.config import BACKENDS, UserError
from gpt.generate import stream_text
from gpt.model import GPT

ROOT = Path("checkpoints")


def build_parser() -> ArgumentParser:
    """Return the flags of this program."""
    parser = ArgumentParser(prog="generate.py", description="Write text with a trained model.")
    add = parser.add_argument
    add("--checkpoint", type=Path, help="a run, or one step of it (default: the newest of all)")
    add("--prompt", default="", help="what to continue; FILE:path takes it from a file")
    add("--max-new-tokens", type=int, default=500, help="tokens to write")
    add("--temperature", type=float, default=0.8, help="0: always the likeliest token; 1: as learnt")
    add("--top-k", type=int, default=200, help="choose among the k likeliest tokens")
    add("--top-p", type=float, default=1.0, help="choose among the likeliest of this total share")
    add("--repetition-penalty", type=float, default=1.0, help="above 1: avoid what was there before")
    add("--seed", type=int, default=1337, help="the same seed gives the same text")
    add("--num-samples", type=int, default=1, help="texts to write; each has a seed of its own")
    add("--stop", action="append", default=[], help="end before this text; may be given repeatedly")
    add("--backend", type=one_of(*BACKENDS), default="auto", help="what computes")
    add("--threads", type=int, default=None, help="CPU threads for everything (default: every core)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, load, write; return the exit status."""
    args = build_parser().parse_args(argv)
    if args.num_samples < 1:
        raise UserError(f"--num-samples must be at least 1, not {args.num_samples}")
    note(use_backend(args.backend, args.threads))
    checkpoint = open_checkpoint(args.checkpoint)
    model, prompt = checkpoint.build_model(), read_prompt(args.prompt)
    note(f"{checkpoint.path}, {model.num_params():,} parameters")
    with user_errors():  # a setting out of range, a character that the tokenizer has never seen
        samples = [sample(args, model, checkpoint, prompt, i) for i in range(args.num_samples)]
    with user_errors(FloatingPointError, about=str(checkpoint.path)):
        for pieces in samples:
            write(prompt, pieces)
            print("\n---------------" if len(samples) > 1 else "")
    return 0


def open_checkpoint(path: Path | None) -> Checkpoint:
    """Read the checkpoint at `path`, or the newest there is; UserError when there is none."""
    if path is None:
        try:
            path = newest_checkpoint(ROOT)
        except UserError:
            raise UserError(f"no checkpoint under {ROOT} yet: run train.py first") from None
    return load_checkpoint(path, optimizer=False)


def read_prompt(prompt: str) -> str:
    """Return the prompt, or the text of the file that `FILE:path` names."""
    if not prompt.startswith("FILE:"):
        return prompt
    path = Path(prompt.removeprefix("FILE:"))
    with user_errors(UnicodeDecodeError, about=f"{path} is not UTF-8 text"):
        return path.read_text(encoding="utf-8")


def sample(args: Namespace, model: GPT, checkpoint: Checkpoint, prompt: str, number: int) -> Iterator[str]:
    """Return the pieces of one text."""
    tokenizer, window = checkpoint.tokenizer, model.config.block_size
    n_prompt = len(tokenizer.encode(prompt))
    if n_prompt > window and number == 0:
        note(f"the prompt has {n_prompt} tokens and the window {window}: the last {window} count")
    return stream_text(
        model,
        tokenizer,
        prompt,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed + number,
        stop=args.stop,
    )


def write(prompt: str, pieces: Iterator[str]) -> None:
    """Show the prompt and then each piece as it comes."""
    sys.stdout.write(prompt)
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()


def note(text: str) -> None:
    """Tell the user, on stderr: stdout is the text alone."""
    print(f"generate.py: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run(main, prog="generate.py"))
