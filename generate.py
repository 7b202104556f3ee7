"""Generate text with a trained model: `python generate.py`, or `python generate.py --help` for all settings."""

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from gpt.checkpoint import Checkpoint, load_checkpoint
from gpt.checkpoint.steps import newest_checkpoint
from gpt.cli import ArgumentParser, one_of, run, use_backend, user_errors
from gpt.config import BACKENDS, UserError
from gpt.generate import stream_text
from gpt.model import GPT
from tensorgrad.memory import keep_freed_memory

ROOT = Path("checkpoints")


def build_parser() -> ArgumentParser:
    """Return the flags of this program."""
    parser = ArgumentParser(prog="generate.py", description="Generate text with a trained model.")
    add = parser.add_argument
    add("--checkpoint", type=Path, help="a run, or one step of it (default: the newest of all runs)")
    add("--prompt", default="", help="text to continue; FILE:path reads it from a file")
    add("--max-new-tokens", type=int, default=500, help="tokens to generate")
    add("--temperature", type=float, default=0.8, help="0: always the most likely token; 1: as the model predicts")
    add("--top-k", type=int, default=200, help="sample among the k most likely tokens")
    add("--top-p", type=float, default=1.0, help="sample among the most likely tokens of this total probability")
    add("--repetition-penalty", type=float, default=1.0, help="above 1: avoid tokens of the context")
    add("--seed", type=int, default=1337, help="the same seed gives the same text")
    add("--num-samples", type=int, default=1, help="texts to generate, each with its own seed")
    add("--stop", action="append", default=[], help="end before this text; may be given several times")
    add("--plain", action="store_true", help="use gpt/model.py as it is written, without fused operations: slower")
    add("--backend", type=one_of(*BACKENDS), default="auto", help="numpy, numba, cupy or auto")
    add("--threads", type=int, default=None, help="CPU threads for everything (default: every core)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the flags, load the checkpoint, and print the texts; return the exit status."""
    keep_freed_memory()
    args = build_parser().parse_args(argv)
    if args.num_samples < 1:
        raise UserError(f"--num-samples must be at least 1, not {args.num_samples}")
    note(use_backend(args.backend, args.threads))
    checkpoint = open_checkpoint(args.checkpoint)
    model, prompt = checkpoint.build_model(plain=args.plain), read_prompt(args.prompt)
    note(f"{checkpoint.path}, {model.num_params():,} parameters")
    with user_errors():  # for options out of range, and unknown characters
        samples = [sample(args, model, checkpoint, prompt, i) for i in range(args.num_samples)]
    with user_errors(FloatingPointError, about=str(checkpoint.path)):
        for pieces in samples:
            write(prompt, pieces)
            print("\n---------------" if len(samples) > 1 else "")
    return 0


def open_checkpoint(path: Path | None) -> Checkpoint:
    """Read the checkpoint at `path`, by default the newest of all runs; UserError where there is none."""
    if path is None:
        try:
            path = newest_checkpoint(ROOT)
        except UserError:
            raise UserError(f"no checkpoint under {ROOT} yet: run train.py first") from None
    return load_checkpoint(path, optimizer=False)


def read_prompt(prompt: str) -> str:
    """Return the prompt, or with `FILE:path` the text of that file."""
    if not prompt.startswith("FILE:"):
        return prompt
    path = Path(prompt.removeprefix("FILE:"))
    with user_errors(UnicodeDecodeError, about=f"{path} is not UTF-8 text"):
        return path.read_text(encoding="utf-8")


def sample(args: Namespace, model: GPT, checkpoint: Checkpoint, prompt: str, number: int) -> Iterator[str]:
    """Return an iterator over the pieces of one text."""
    tokenizer, window = checkpoint.tokenizer, model.config.block_size
    n_prompt = len(tokenizer.encode(prompt))
    if n_prompt > window and number == 0:
        note(f"the prompt has {n_prompt} tokens and the window {window}: the model sees the last {window}")
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
    """Print the prompt, and then each piece as it is generated."""
    sys.stdout.write(prompt)
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()


def note(text: str) -> None:
    """Print a note on stderr: stdout has only the text."""
    print(f"generate.py: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run(main, prog="generate.py"))
