"""The flags of train.py: one for every field of TrainConfig, also in nanoGPT's spelling."""

import argparse
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from gpt.cli import ArgumentParser, boolean, cpu_backend, one_of, user_errors
from gpt.config import UserError
from gpt.train.config import CHOICES, NAMED_CONFIGS, TrainConfig
from gpt.train.config_file import NANOGPT_NAMES, read_config

GROUPS = ("data", "model", "training", "finetuning", "run")
NEWEST = ""  # the value of --resume without a path

DESCRIPTION = """\
Train a GPT. Without flags: a small one, character by character, on Shakespeare, in a few minutes
on an ordinary CPU. Writes checkpoints/<run>/ and prints a sample at the end."""

EXAMPLES = """\
examples:
  train.py                                         the default model on Shakespeare
  train.py --data notes/                           your own texts, and a tokenizer trained on them
  train.py --config shakespeare-char --n-layer 4   a named configuration, one value changed
  train.py --config run.toml                       flags from a file: lines such as n_layer = 6
  train.py --config gpt2-124m --dry-run            how much memory and time does it take?
  train.py --resume                                continue from the newest checkpoint
Underscores work as well as hyphens (--n_layer=6). --no-plot is the same as --plot False.
Flags take precedence over --config.
"""


@dataclass(frozen=True)
class Arguments:
    """The parsed command line."""

    given: dict[str, Any]  # the values given, by the names of TrainConfig's fields
    resume: str | None  # None: a new run; NEWEST; or the path of a checkpoint
    replay: str | None = None  # the folder of a step to repeat, instead of training
    dry_run: bool = False  # print what training would need, instead of training

    def train_config(self, under: Mapping[str, Any] | None = None) -> TrainConfig:
        """Return the defaults, updated by `under` and then by the given values; UserError for a wrong value."""
        with user_errors():
            return TrainConfig.from_dict({**(under or {}), **self.given})


def parse(argv: Sequence[str]) -> Arguments:
    """Parse the command line; for a mistake, print one line and exit with status 2, or raise UserError."""
    parser = build_parser()
    try:
        words = [new for word in argv for new in translate_nanogpt(word)]
    except UserError as error:
        parser.error(str(error))
    return to_arguments(vars(parser.parse_args(words)))


def to_arguments(flags: dict[str, Any]) -> Arguments:
    """Return the arguments for the flags of build_parser that were given."""
    resume, replay, config = (flags.pop(name, None) for name in ("resume", "replay", "config"))
    resume, replay, config = (path and os.path.expanduser(path) for path in (resume, replay, config))
    dry_run = flags.pop("dry_run", False)
    given = {**(read_config(config) if config else {}), **flags}
    given |= {name: os.path.expanduser(given[name]) for name in ("out", "init_from") if given.get(name)}
    return Arguments(given=given, resume=resume, replay=replay, dry_run=dry_run)


def build_parser(
    prog: str = "train.py", description: str = DESCRIPTION, epilog: str = EXAMPLES, own_help: Mapping[str, str] = {},
) -> ArgumentParser:
    """Return the parser; a flag that is not given is absent from its result. --replay and --dry-run are train.py's.

    own_help: of another program, what it says of settings, by their names, that have another meaning or default.
    """  # fmt: skip
    parser = ArgumentParser(
        prog=prog,
        usage=f"{prog} [flags]",
        description=description,
        epilog=epilog,
        argument_default=argparse.SUPPRESS,
        formatter_class=_HelpFormatter,
    )
    groups = {name: parser.add_argument_group(name) for name in GROUPS}
    for field in fields(TrainConfig):
        flag = "--" + field.name.replace("_", "-")
        shown = "" if field.default is None else f" (default: {field.default})"
        kind = str(field.type).removesuffix(" | None")
        options = {**_KINDS[kind], **_SPECIAL.get(field.name, {})}
        group, text = groups[field.metadata["group"]], own_help.get(field.name, field.metadata["help"] + shown)
        group.add_argument(flag, help=text, **options)
        if kind == "bool":
            group.add_argument(f"--no-{flag[2:]}", dest=field.name, action="store_false", help=argparse.SUPPRESS)
    groups["run"].add_argument("--config", metavar="NAME", help=f"{', '.join(NAMED_CONFIGS)}, or a .toml file of flags")
    groups["run"].add_argument(
        "--resume", metavar="PATH", nargs="?", const=NEWEST,
        help="continue exactly from a checkpoint (default: the newest, in --out if given)",
    )  # fmt: skip
    if prog != "train.py":
        return parser
    groups["run"].add_argument(
        "--dry-run",
        action="store_true",
        help="print how much memory, time and disk it takes, and write nothing",
    )
    groups["run"].add_argument(
        "--replay",
        metavar="PATH",
        help="repeat a saved step that was not finite, also in float64",
    )
    return parser


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        width = min(shutil.get_terminal_size().columns, 100)
        super().__init__(prog, max_help_position=24, width=width)


_KINDS: dict[str, dict[str, Any]] = {
    "int": {"type": int, "metavar": "N"},
    "float": {"type": float, "metavar": "X"},
    "bool": {"type": boolean, "nargs": "?", "const": True, "metavar": "True|False"},
    "str": {"type": str, "metavar": "PATH"},
}
_SPECIAL: dict[str, dict[str, Any]] = {
    **{name: {"type": one_of(*known), "metavar": "NAME"} for name, known in CHOICES.items()},
    "data": {"metavar": "SOURCE"},
    "freeze": {"metavar": "NAMES"},
    "general_data": {"metavar": "SOURCE"},
    "lora_targets": {"metavar": "NAMES"},
}


# Settings of nanoGPT that have no flag here: the flags for some of their values, and the answer to every other value.
_NANOGPT: dict[str, tuple[dict[str, list[str]], str]] = {
    "dataset": (
        {
            "shakespeare_char": ["--data=shakespeare", "--tokenizer=char"],
            "shakespeare": ["--data=shakespeare", "--tokenizer=gpt2"],
        },
        "give the text itself with --data",
    ),
    "init_from": (
        {"scratch": [], "resume": ["--resume"]},
        "with a hyphen, --init-from takes gpt2, smollm2, or the path of a checkpoint",
    ),
    "device": ({"cpu": ["--backend=cpu"], "cuda": ["--backend=cupy"]}, "use --backend"),
    "compile": ({"False": []}, "the kernels of --backend numba are compiled anyway"),
    "decay_lr": ({"True": []}, "give --warmup-iters 0 and --min-lr equal to --lr"),
    "eval_only": ({"False": []}, "python -m gpt evaluate measures the loss of a model"),
    "wandb_log": ({"False": [], "True": ["--logger=wandb"]}, "it must be True or False"),
    # The newest and the best checkpoint are always kept.
    "always_save_checkpoint": ({"True": [], "False": []}, "it must be True or False"),
}
_WITHOUT_EFFECT = ("wandb_project", "wandb_run_name")
_CONFIG_FILES = {"train_shakespeare_char.py": "shakespeare-char", "train_gpt2.py": "gpt2-124m"}


def translate_nanogpt(word: str) -> list[str]:
    """Return our flags for a word of nanoGPT's command line; any other word unchanged.

    Raises UserError for a setting without a counterpart.
    """
    if Path(word).name in _CONFIG_FILES:
        return [f"--config={_CONFIG_FILES[Path(word).name]}"]
    flag, equals, value = word.partition("=")
    name = flag.removeprefix("--")
    if name == flag:  # no flag, but a file or a value
        return [word]
    if ours := NANOGPT_NAMES.get(name.replace("-", "_")):
        return [f"--{ours}{equals}{value}"]
    if not equals:
        return [word]
    if name in _WITHOUT_EFFECT:
        return []
    if name not in _NANOGPT:
        return [word]
    values, otherwise = _NANOGPT[name]
    if name == "init_from" and value not in values and (Path(value).exists() or not value.startswith("gpt2")):
        return [word]  # a path; what begins with gpt2 is downloaded by nanoGPT
    if value not in values:
        raise UserError(f"{word} has no counterpart here: {otherwise}")
    return [flag.replace("=cpu", f"={cpu_backend()}") if flag.endswith("=cpu") else flag for flag in values[value]]
