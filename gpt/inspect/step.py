"""`python -m gpt inspect step MODEL --text TEXT --out FILE.html`: a training step, op by op, as a page."""

import argparse
import sys
from collections.abc import Sequence

import numpy as np

import tensorgrad as tg
from gpt.cli import ArgumentParser, one_of, use_backend, user_errors
from gpt.cli import run as run_program
from gpt.config import BACKENDS, UserError
from gpt.files import atomic_write
from gpt.heartbeat import Heartbeat
from gpt.inspect.explorer import page_file, token_text
from gpt.tokenizer import TokenizerError
from gpt.weights.initial import MODEL_HELP, load_initial


def main(argv: Sequence[str] | None = None) -> int:
    """Load the model, record the loss of the text and its backward, and write the page."""
    args = build_parser().parse_args(argv)
    if args.confirm < 0:
        raise UserError(f"--confirm: {args.confirm} is negative; 0 confirms no gradient")
    out = page_file(args.out)
    use_backend(args.backend, args.threads)
    with Heartbeat("loading the model"):
        weights = load_initial(args.model, quantize="none")
        model = weights.build_model(plain=not args.fused)
    with user_errors(TokenizerError, about="--text"):
        tokens = np.array([weights.tokenizer.encode(args.text)], dtype=np.int64)
    n, window = tokens.shape[1], model.config.block_size
    if n < 2:
        raise UserError(f"--text: {n} token{'' if n == 1 else 's'}: at least 2 are needed, one to predict the other")
    if n > window + 1:
        limit = f"at most {window + 1} fit {args.model}, its block_size {window} and the one predicted last"
        raise UserError(f"--text: {n} tokens: {limit}")
    texts = [[token_text(weights.tokenizer, token) for token in tokens[0, :-1].tolist()]]
    with Heartbeat("recording the step"), tg.record(model, texts=texts) as steps:
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    with Heartbeat("explaining the gradients"):
        page = steps.page(f"A training step of {args.model} on {args.text!r}", confirm=args.confirm)
    with atomic_write(out) as file:
        file.write(page.encode())
    print(f"{len(steps.steps)} steps, {len(page) / 1e6:.1f} MB, in {args.out}: open it in a browser")
    return 0


def build_parser() -> ArgumentParser:
    """Return the flags of this program."""
    text = "Show a training step as a page: every op, forward and backward, with its values and gradients."
    formatter = argparse.HelpFormatter
    parser = ArgumentParser(prog="python -m gpt inspect step", description=text, formatter_class=formatter)
    add = parser.add_argument
    add("model", metavar="MODEL", help=MODEL_HELP)
    add("--text", required=True, metavar="TEXT", help="what to learn: every token is predicted from those before it")
    add("--out", default="step.html", metavar="FILE.html", help="the page (default: step.html)")
    add("--confirm", type=int, default=10, metavar="N",
        help="confirm the N largest gradients by finite differences (default: 10)")
    add("--fused", action="store_true", help="with the fused ops that training uses, in place of plain ones")
    add("--backend", type=one_of(*BACKENDS), default="auto", metavar="NAME",
        help="numpy, numba, cupy or auto (default)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: every core)")
    return parser


if __name__ == "__main__":
    sys.exit(run_program(main, prog="python -m gpt inspect step"))
