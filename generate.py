"""Generate text with a trained model: `python generate.py`, or `python generate.py --help` for all settings."""

import os
import re
import shlex
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from gpt.checkpoint.runs import summarize_runs
from gpt.checkpoint.steps import newest_checkpoint
from gpt.cli import ArgumentParser, cpu_backend, one_of, run, use_backend, user_errors
from gpt.config import BACKENDS, UserError
from gpt.generate import stream_text
from gpt.generate.chat import Conversation
from gpt.generate.sampling import SamplingOptions
from gpt.generate.terminal import Terminal
from gpt.heartbeat import Heartbeat, until_first
from gpt.tokenizer import Tokenizer
from gpt.weights import Model
from gpt.weights.arrays import QUANTIZE, QUANTIZE_HELP
from gpt.weights.initial import MODEL_HELP, load_initial
from tensorgrad.memory import keep_freed_memory

ROOT = Path("checkpoints")
ALL_TOKENS = ("0", "none", "off", "all")  # of --top-k
# SmolLM2's card recommends a temperature of 0.2 and a top-p of 0.9, with which it answers a third of the questions for
# France's capital in broken French; with 0.5, with "Paris".
CHAT_DEFAULTS = {"temperature": 0.2, "top_p": 0.5}
NANOGPT_NAMES = {"out_dir": "model", "start": "prompt"}  # nanoGPT's names for our flags
NANOGPT_WITHOUT_EFFECT = ("--compile=False", "--init_from=resume")


def build_parser() -> ArgumentParser:
    """Return the flags of this program."""
    parser = ArgumentParser(prog="generate.py", description="Generate text with a trained model.")
    add = parser.add_argument
    add("--model", "--checkpoint", help=f"{MODEL_HELP} (default: the newest of all runs)")
    add("--adapter", help="adapters beside that model: a folder of PEFT, or a run with LoRA (--model: its base)")
    add("--list", action="store_true", help=f"list the runs under {ROOT}, the newest last, and exit")
    add("--prompt", default="", help="text to continue; FILE:path reads it from a file, and - from the standard input")
    add("--chat", action="store_true", help="talk to the model: every line of the standard input is a message; unless "
        "given, temperature is {temperature} and top-p {top_p}".format(**CHAT_DEFAULTS))
    add("--allow-special", action="store_true", help="read <|endoftext|> in the prompt as that token")
    add("--max-new-tokens", type=int, default=500, help="tokens to generate")
    add("--temperature", type=float, default=0.8, help="0: always the most likely token; 1: as the model predicts")
    add("--top-k", type=top_k, default=200, help="sample among the k most likely tokens; 0: among all")
    add("--top-p", type=float, default=1.0, help="sample among the most likely tokens of this total probability")
    add("--repetition-penalty", type=float, default=1.0, help="above 1: avoid tokens of the context")
    add("--seed", type=int, default=1337, help="the same seed gives the same text")
    add("--num-samples", type=int, default=1, help="texts to generate, each with its own seed")
    add("--stop", type=unescape, action="append", default=[],
        help="end before this text, in which \\n is a line break; may be given several times")
    add("--quantize", type=one_of(*QUANTIZE), default="file", help=QUANTIZE_HELP)
    add("--n-head", type=int, help="of a GPT-2 without config.json whose heads are not 64 wide")
    add("--plain", action="store_true", help="use gpt/model.py as it is written, without fused operations: slower")
    add("--backend", type=one_of(*BACKENDS), default="auto", help="numpy, numba, cupy or auto")
    add("--threads", type=int, default=None, help="CPU threads for everything (default: every core)")
    return parser  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the flags, load the checkpoint, and print the texts; return the exit status."""
    keep_freed_memory()
    words = [new for word in (sys.argv[1:] if argv is None else argv) for new in translate_nanogpt(word)]
    parser = build_parser()
    if "--chat" in words:
        parser.set_defaults(**CHAT_DEFAULTS)
    args = parser.parse_args(words)
    if args.num_samples < 1:
        raise UserError(f"--num-samples must be at least 1, not {args.num_samples}")
    if args.chat and (args.prompt or args.stop or args.allow_special or args.num_samples > 1):
        raise UserError("--chat takes its messages from the standard input: leave out --prompt, --stop, "
                        "--allow-special and --num-samples")  # fmt: skip
    if args.list:
        lines = list(map(str, summarize_runs(ROOT)))
        print("\n".join(lines) or f"no run under {ROOT} yet")
        return 0
    with Heartbeat("loading the model"):
        note(use_backend(args.backend, args.threads))
        path = args.model or (None if args.adapter else str(newest_model()))
        weights = load_initial(path, args.n_head, args.quantize, args.adapter)
        path = weights.path if args.adapter is None else f"{weights.path} with {args.adapter}"
        model = weights.build_model(plain=args.plain)
    if args.chat:
        chat(args, model, weights.tokenizer, path)
        return 0
    prompt = read_prompt(args.prompt)
    note(f"{path}, {model.config.count_parameters().total:,} parameters")
    for number in range(args.num_samples):
        with user_errors():  # for options out of range, and unknown characters
            pieces = sample(args, model, weights.tokenizer, prompt, number)
        with user_errors(FloatingPointError, about=path):
            write(prompt, pieces)
        print("\n---------------" if args.num_samples > 1 else "")
    return 0


def translate_nanogpt(word: str) -> list[str]:
    """Return our flags for a word of the command line of nanoGPT's sample.py; any other word unchanged."""
    name, equals, value = word.partition("=")
    if word in NANOGPT_WITHOUT_EFFECT or name == "--dtype" and equals:
        return []
    if name == "--device" and value in ("cpu", "cuda"):
        return [f"--backend={cpu_backend() if value == 'cpu' else 'cupy'}"]
    ours = NANOGPT_NAMES.get(name.removeprefix("--"))
    return [f"--{ours}{equals}{value}" if ours and name.startswith("--") else word]


def top_k(text: str) -> int | None:
    """Parse --top-k; None: all tokens."""
    if text.lower() in ALL_TOKENS:
        return None
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text!r} is not a whole number of at least 1, or 0 for all tokens")
    return int(text)


def unescape(text: str) -> str:
    r"""Return the text with `\n`, `\t` and `\\` as a line break, a tab and a backslash."""
    return re.sub(r"\\([nt\\])", lambda match: {"n": "\n", "t": "\t", "\\": "\\"}[match[1]], text)


def newest_model() -> Path:
    """Return the newest checkpoint of the newest run."""
    try:
        path = newest_checkpoint(ROOT)
    except UserError:
        raise UserError(f"no checkpoint under {ROOT} yet: run train.py first") from None
    newest = summarize_runs(ROOT)[-1]
    if newest.folder != path.parent:
        note(f"{newest.folder} is newer, but has no checkpoint yet")
    elif newest.step < newest.max_iters:
        command = f"python train.py --resume {shlex.quote(str(newest.folder))}"
        note(f"{newest.folder} is unfinished, at step {newest.step} of {newest.max_iters}: {command} continues it")
    return path


def read_prompt(prompt: str) -> str:
    """Return the prompt, or the text of the file that `FILE:path` names, or with `-` that of the standard input."""
    if prompt == "-":
        with user_errors(UnicodeDecodeError, about="the standard input is not UTF-8 text"):
            return sys.stdin.buffer.read().decode("utf-8-sig")
    if not prompt.startswith("FILE:"):
        return prompt
    path = Path(os.path.expanduser(prompt.removeprefix("FILE:")))
    with user_errors(UnicodeDecodeError, about=f"{path} is not UTF-8 text"):
        return path.read_text(encoding="utf-8-sig")


def sample(args: Namespace, model: Model, tokenizer: Tokenizer, prompt: str, number: int) -> Iterator[str]:
    """Return an iterator over the pieces of one text."""
    window = model.config.block_size
    n_prompt = len(tokenizer.encode(prompt, allow_special=args.allow_special))
    if n_prompt > window and number == 0:
        note(f"the prompt has {n_prompt} tokens and the window {window}: the model sees the last {window}")
    return stream_text(
        model,
        tokenizer,
        prompt,
        allow_special=args.allow_special,
        max_new_tokens=args.max_new_tokens,
        stop=args.stop,
        **sampling(args, args.seed + number),
    )


def sampling(args: Namespace, seed: int) -> SamplingOptions:
    """Return how tokens are chosen."""
    names = ("temperature", "top_k", "top_p", "repetition_penalty")
    return cast(SamplingOptions, {**{name: getattr(args, name) for name in names}, "seed": seed})


def chat(args: Namespace, model: Model, tokenizer: Tokenizer, path: str) -> None:
    """Talk until the input ends."""
    with user_errors():  # for options out of range, and a model without a chat template
        options = sampling(args, args.seed)
        conversation = Conversation(model, tokenizer, max_new_tokens=args.max_new_tokens, **options)
    note(f"{path}, {model.config.count_parameters().total:,} parameters; /help lists the commands")
    with user_errors(FloatingPointError, about=path):
        Terminal(conversation).run()


def write(prompt: str, pieces: Iterator[str]) -> None:
    """Print the prompt, and then each piece as it is generated."""
    sys.stdout.write(prompt)
    for piece in until_first("generating", pieces):
        sys.stdout.write(piece)
        sys.stdout.flush()


def note(text: str) -> None:
    """Print a note on stderr: stdout has only the text."""
    print(f"generate.py: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run(main, prog="generate.py"))
