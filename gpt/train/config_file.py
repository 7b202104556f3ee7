"""A configuration as TOML: what a run keeps of it beside its checkpoints, to be read, or given to `--config` again."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from gpt.checkpoint.metrics import CONFIG
from gpt.config import TrainConfig

HEAD = "# What this run was made with; python train.py --config {} makes another one like it.\n"


def to_toml(config: TrainConfig) -> str:
    """Return every setting as a line of TOML, under the headings of `--help`.

    A setting that was left open, for which TOML has no word, is a comment. `out` is none of them: it says where this
    run lies, and another one cannot lie there.
    """
    lines = []
    group = None
    for field in fields(config):
        value = getattr(config, field.name)
        if field.metadata["group"] != group:
            group = field.metadata["group"]
            lines.append(f"\n# {group}")
        if field.name != "out":
            lines.append(f"{field.name} = {_value(value)}" if value is not None else f"# {field.name} is left open")
    return "\n".join(lines).lstrip() + "\n"


def write_config(folder: Path, config: TrainConfig) -> None:
    """Write `folder/config.toml`: aside, synced, and then renamed."""
    aside = folder / f".{CONFIG}"
    with aside.open("w", encoding="utf-8") as file:
        file.write(HEAD.format(CONFIG) + "\n" + to_toml(config))
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, folder / CONFIG)


def describe(config: TrainConfig, indent: str, width: int = 100) -> Iterator[str]:
    """Lines with every setting, by its group."""
    names: dict[str, list[str]] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if value is not None and field.name != "out":
            names.setdefault(field.metadata["group"], []).append(f"{field.name} {value}")
    for group, settings in names.items():
        text = f"{group}: {', '.join(settings)}"
        yield from textwrap.wrap(
            text, width, initial_indent=indent, subsequent_indent=indent + "  ", break_long_words=False
        )


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON's strings are TOML's, but for one character that JSON leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)  # as both write numbers
