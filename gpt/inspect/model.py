"""`python -m gpt inspect model MODEL --prompt TEXT --out FILE.html`: the explorer of a model, of two, or of a run."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gpt.checkpoint.steps import newest_checkpoint, step_folders, step_of
from gpt.cli import ArgumentParser, one_of, use_backend, user_errors
from gpt.cli import run as run_program
from gpt.config import BACKENDS, UserError
from gpt.heartbeat import Heartbeat
from gpt.inspect.explore import explore
from gpt.inspect.explorer import Explored, explorer_page, page_file, prompt_ids
from gpt.tokenizer import TokenizerError
from gpt.weights.arrays import QUANTIZE, QUANTIZE_HELP
from gpt.weights.initial import MODEL_HELP, load_initial
from tensorgrad.memory import keep_freed_memory

EXAMPLES = """examples:
  python -m gpt inspect model smollm2 --prompt "The capital of France is" --out france.html
  python -m gpt inspect model checkpoints/RUN checkpoints/OTHER --prompt "ROMEO: My" --out both.html
  python -m gpt inspect model checkpoints/RUN --movie --prompt "ROMEO: My" --out movie.html
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the model or models on the prompt, and write the page."""
    keep_freed_memory()
    args = build_parser().parse_args(argv)
    if len(args.model) > 2:
        raise UserError(f"inspect model shows one model, or two side by side, not {len(args.model)}")
    if args.movie and len(args.model) > 1:
        raise UserError("--movie shows one run: give one")
    out = page_file(args.out)
    with Heartbeat("running the model"):
        use_backend(args.backend, args.threads)
        explored = [explore_path(path, args) for path in args.model]
        page = explorer_page(explored)
        page.save(out)
    n_tokens = len(explored[0].frames[0][1].ids)
    steps = f" at {len(explored[0].frames)} steps" if args.movie else ""
    print(f"{out}: {n_tokens} tokens{steps}, {len(page.html) / 1e6:.1f} MB; open it in a browser")
    return 0


def build_parser() -> ArgumentParser:
    """Return the flags of this program."""
    parser = ArgumentParser(
        prog="python -m gpt inspect model", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Write a page that shows what a model computes for a prompt: predictions, attention, every layer.",
    )  # fmt: skip
    add = parser.add_argument
    add("model", nargs="+", metavar="MODEL", help=f"{MODEL_HELP}; two are shown side by side")
    add("--prompt", required=True, metavar="TEXT", help="what the model reads")
    add("--out", default="model.html", metavar="FILE.html", help="the page (default: model.html)")
    add("--movie", action="store_true", help="of a run: one frame for each of its checkpoints")
    add("--allow-special", action="store_true", help="read <|endoftext|> in the prompt as that token")
    add("--quantize", type=one_of(*QUANTIZE), default="none", metavar="NAME",
        help=f"{QUANTIZE_HELP} (default: none, since products with quantised weights may round activations)")
    add("--n-head", type=int, metavar="N", help="of a GPT-2 without config.json whose heads are not 64 wide")
    add("--backend", type=one_of(*BACKENDS), default="numpy", metavar="NAME",
        help="numpy (default, which has nothing to compile), numba, cupy or auto")
    add("--threads", type=int, metavar="N", help="CPU threads (default: every core)")
    return parser  # fmt: skip


def explore_path(path: str, args: argparse.Namespace) -> Explored:
    """Return what the model of a path computes; with --movie, at every checkpoint of the run."""
    steps: list[tuple[int | None, str]] = [(None, path)]
    if args.movie:
        steps = [(step, str(folder)) for step, folder in checkpoints(path)]
    frames, first = [], None
    for step, place in steps:
        weights = load_initial(place, args.n_head, args.quantize)
        first = first or weights
        with user_errors(ValueError, TokenizerError, about=path):
            ids = prompt_ids(weights.tokenizer, args.prompt, weights.config, len(steps), args.allow_special)
            frames.append((step, explore(weights.build_model(plain=True), ids)))
    assert first is not None
    return Explored(path, first.config, first.tokenizer, frames)


def checkpoints(path: str) -> list[tuple[int, Path]]:
    """Return the steps of a run and their folders; UserError where there are not two."""
    run = Path(path).expanduser()
    if not run.is_dir():
        raise UserError(f"--movie: {path} is not the folder of a run")
    if step_of(run) is not None:
        raise UserError(f"--movie: {path} is one checkpoint; give the folder of the run, which has several")
    found = step_folders(newest_checkpoint(run).parent)
    if len(found) < 2:
        more = "train with --keep-checkpoints 20 --checkpoint-interval 100, say"
        raise UserError(f"--movie: {path} has {len(found)} checkpoint; at least two are needed: {more}")
    return found


if __name__ == "__main__":
    sys.exit(run_program(main, prog="python -m gpt inspect model"))
