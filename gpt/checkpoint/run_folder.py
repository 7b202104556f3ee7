"""The folder of a run: found free or made, and nothing that is there ever written over."""

from __future__ import annotations

import os
import re
from itertools import count
from pathlib import Path

from gpt.checkpoint.metrics import METRICS, SAMPLES, TIMING
from gpt.checkpoint.step_folders import steps_after
from gpt.config import TrainConfig, UserError

CHECKPOINTS = "checkpoints"


PassedOver = list[tuple[Path, UserError]]  # checkpoints that are broken, and what is wrong with each


def refuse_used(folder: Path) -> None:
    """Raise UserError for a folder with a run in it, or for what is no folder."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out {folder} is a file; a run needs a folder")
    if folder.is_dir() and steps_after(folder, -1):
        raise UserError(f"out {folder} has a run in it: give another --out, or --resume to go on")


def later_steps(folder: Path, step: int, passed_over: PassedOver) -> list[Path]:
    """Return the checkpoints beyond a step that are not broken."""
    broken = {path.name for path, _ in passed_over}
    return [later for later in steps_after(folder, step) if later.name not in broken]


def set_broken_aside(passed_over: PassedOver) -> None:
    """Give broken checkpoints a name under which nothing takes them for the newest."""
    for folder, _ in passed_over:
        folder.rename(_free_name(folder, ".broken"))


def set_metrics_aside(folder: Path) -> None:
    """A run that ended before its first checkpoint left only these: in nobody's way, and not to be lost either."""
    for name in (METRICS, TIMING, SAMPLES):
        if (folder / name).exists():
            (folder / name).rename(_free_name(folder / name, ".before"))


def _free_name(path: Path, ending: str) -> Path:
    names = (path.with_name(path.name + ending + f"-{i}" * (i > 1)) for i in count(1))
    return next(name for name in names if not name.exists())


def is_same(a: Path, b: Path) -> bool:
    """Whether two paths lead to one folder."""
    return a.resolve() == b.resolve()


def refuse_unwritable(folder: Path) -> None:
    """Find out before an hour of tokenizing, and without making anything."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"out {folder}: nothing can be written into {there}")


def make_folder(folder: Path) -> Path:
    """Make the folder where it is not there yet; UserError where it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out {folder} cannot be made: {error.strerror}") from error
    return folder


def make_unique_folder(config: TrainConfig) -> Path:
    """Make checkpoints/<data>-<tokenizer>, or -2, -3 ... where that is taken."""
    name = re.sub(r"[^\w.-]+", "-", Path(config.data).stem).strip(".-") or "run"
    names = (f"{name}-{config.tokenizer}" + f"-{i}" * (i > 1) for i in count(1))
    for folder in (Path(CHECKPOINTS, name) for name in names):
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue  # taken, perhaps this very moment
        except OSError as error:
            raise UserError(f"out {folder} cannot be made: {error.strerror}") from error
    raise AssertionError("there is no last name")
