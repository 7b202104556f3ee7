"""`python -m gpt weights`: models written for other programs, and with quantised weights."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gpt.cli import ArgumentParser, one_of, user_errors
from gpt.cli import run as run_program
from gpt.config import UserError
from gpt.heartbeat import Heartbeat
from gpt.tokenizer import TokenizerError
from gpt.weights import gguf, huggingface
from gpt.weights.initial import MODEL_HELP, load_initial
from tensorgrad.backend.quantization import FORMATS

EXAMPLES = """examples:
  python -m gpt weights export checkpoints/llama-char --to hf --out llama
  python -m gpt weights export checkpoints/bpe --to gguf --type f16 --out bpe.gguf
  python -m gpt weights quantize smollm2 --type q8_0 --out smollm2-q8_0.gguf
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Load the model, and write it in another form."""
    args = build_parser().parse_args(argv)
    path, to = Path(args.out).expanduser(), getattr(args, "to", "gguf")
    if path.exists():
        raise UserError(f"--out {path} exists: give another one")
    if to == "hf" and args.type not in huggingface.TYPES:
        raise UserError(f"--type {args.type} is for --to gguf; --to hf writes {' or '.join(huggingface.TYPES)}")
    with Heartbeat("writing the model"):
        model = load_initial(args.model, args.n_head)
        write = huggingface.write_folder if to == "hf" else gguf.write_model
        with user_errors(ValueError, TokenizerError, about=args.model):
            write(path, model.config, model.weights, model.tokenizer, args.type)
    n_bytes = sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))
    print(f"{path}: {model.config.count_parameters().total:,} parameters, {n_bytes:,} bytes")
    return 0


def build_parser() -> ArgumentParser:
    """Return the flags of this program."""
    parser = ArgumentParser(
        prog="python -m gpt weights", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Write a model for transformers or llama.cpp.",
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    export = commands.add_parser("export", help="a Hugging Face folder, or a GGUF file", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    export.add_argument("--to", type=one_of("hf", "gguf"), required=True, metavar="NAME", help="hf or gguf")
    quantize = commands.add_parser("quantize", help="a GGUF file with quantised weights", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    for command, types, default in ((export, gguf.TYPES, "f32"), (quantize, tuple(FORMATS), "q8_0")):
        command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
        command.add_argument("--type", type=one_of(*types), default=default, metavar="NAME",
            help=f"of the matrices: {', '.join(types)} (default: {default})")  # fmt: skip
        command.add_argument("--out", required=True, metavar="PATH", help="the new folder or file")
        command.add_argument("--n-head", type=int, metavar="N", help="of a GPT-2 without config.json")
    return parser


if __name__ == "__main__":
    sys.exit(run_program(main, prog="python -m gpt weights"))
