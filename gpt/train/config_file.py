"""Configurations as TOML: `config.toml`, which a run keeps beside its checkpoints, and the files of `--config`."""

import json
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from gpt.checkpoint.files import CONFIG
from gpt.cli import user_errors
from gpt.config import UserError, nearest
from gpt.files import atomic_write
from gpt.train.config import NAMED_CONFIGS, TrainConfig

HEAD = "# The settings of this run; python train.py --config {} starts another one with the same settings.\n"
NANOGPT_NAMES = {  # nanoGPT's names for our settings
    "learning_rate": "lr",
    "gradient_accumulation_steps": "grad_accum",
    "out_dir": "out",
}


def read_config(name: str) -> dict[str, Any]:
    """Return the values of a named configuration or of a TOML file, by the names of TrainConfig's fields.

    Raises UserError for an unknown name or key, with the closest known one.
    """
    if name in NAMED_CONFIGS:
        return dict(NAMED_CONFIGS[name])
    path = Path(name)
    if path.suffix != ".toml" and not path.is_file():
        names = f": give a .toml file, or one of {', '.join(NAMED_CONFIGS)}"
        raise UserError(f"unknown configuration {name!r}{nearest(name, NAMED_CONFIGS) or names}")
    with user_errors(ValueError, about=name):  # of TOML, of UTF-8, and of TrainConfig
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        values = {NANOGPT_NAMES.get(k := key.replace("-", "_"), k): v for key, v in values.items()}
        TrainConfig.from_dict(values)  # so that an error in the file is reported with its name
    return values


def to_toml(config: TrainConfig) -> str:
    """Return every setting as a line of TOML, under the headings of `--help`.

    A setting that is None, which TOML does not have, becomes a comment. `out` is left out: another run cannot use the
    folder of this one.
    """
    lines = []
    group = None
    for field in fields(config):
        value = getattr(config, field.name)
        if field.metadata["group"] != group:
            group = field.metadata["group"]
            lines.append(f"\n# {group}")
        if field.name != "out":
            lines.append(f"{field.name} = {_value(value)}" if value is not None else f"# {field.name} is not set")
    return "\n".join(lines).lstrip() + "\n"


def write_config(folder: Path, config: TrainConfig) -> None:
    """Write `folder/config.toml`."""
    with atomic_write(folder / CONFIG) as file:
        file.write((HEAD.format(CONFIG) + "\n" + to_toml(config)).encode())


def describe(config: TrainConfig, indent: str, width: int = 100) -> Iterator[str]:
    """Yield lines with every setting, group by group."""
    groups: dict[str, list[str]] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if value is not None and field.name != "out":
            groups.setdefault(field.metadata["group"], []).append(f"{field.name} {value}")
    for group, settings in groups.items():
        text = f"{group}: {', '.join(settings)}"
        yield from textwrap.wrap(
            text, width, initial_indent=indent, subsequent_indent=indent + "  ", break_long_words=False
        )


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON's strings are TOML's, except for one character that JSON does not escape.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)  # TOML writes numbers as Python does
