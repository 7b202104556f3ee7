"""The folder of a run: choosing or creating it without overwriting anything, and rewinding its files on resume."""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path

from gpt.checkpoint.files import BEFORE, METRICS, SAMPLE_HEADING, SAMPLES, TIMING
from gpt.checkpoint.steps import steps_after
from gpt.config import UserError
from gpt.files import atomic_write
from gpt.train.config import TrainConfig

CHECKPOINTS = "checkpoints"

Damaged = list[tuple[Path, UserError]]  # checkpoints that cannot be loaded, and why


def require_unused(folder: Path) -> None:
    """Raise UserError for a folder that holds a run, and for a file."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out {folder} is a file; a run needs a folder")
    if folder.is_dir() and steps_after(folder, -1):
        raise UserError(f"out {folder} has a run in it: give another --out, or --resume to continue it")


def later_steps(folder: Path, step: int, damaged: Damaged) -> list[Path]:
    """Return the checkpoints after a step, without the damaged ones."""
    names = {path.name for path, _ in damaged}
    return [later for later in steps_after(folder, step) if later.name not in names]


def rename_damaged(damaged: Damaged) -> None:
    """Rename damaged checkpoints to *.broken, so that none is taken for the newest."""
    for folder, _ in damaged:
        folder.rename(_free_name(folder, ".broken"))


def rename_metrics(folder: Path) -> None:
    """Rename what a run left that ended before its first checkpoint to *.before, so that nothing is overwritten."""
    for name in (METRICS, TIMING, SAMPLES):
        if (folder / name).exists():
            (folder / name).rename(_free_name(folder / name, ".before"))


def _free_name(path: Path, suffix: str) -> Path:
    names = (path.with_name(path.name + suffix + f"-{i}" * (i > 1)) for i in count(1))
    return next(name for name in names if not name.exists())


def is_same(a: Path, b: Path) -> bool:
    """Whether two paths lead to the same folder."""
    return a.resolve() == b.resolve()


def require_writable(folder: Path) -> None:
    """Raise UserError where a run could not write its folder, before an hour of tokenizing; create nothing."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"out {folder} cannot be created: {existing} is not a folder that can be written")


def make_folder(folder: Path, *, exist_ok: bool = True) -> Path:
    """Create the folder; UserError where that fails, FileExistsError where it may not exist but does."""
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
    except OSError as error:
        if isinstance(error, FileExistsError) and not exist_ok:
            raise
        raise UserError(f"out {folder} cannot be created: {error.strerror}") from error
    return folder


def make_unique_folder(config: TrainConfig) -> Path:
    """Create checkpoints/<data>-<tokenizer>, or -2, -3 ... where that name is taken."""
    name = re.sub(r"[^\w.-]+", "-", Path(config.data).stem).strip(".-") or "run"
    for i in count(1):
        try:
            return make_folder(Path(CHECKPOINTS, f"{name}-{config.tokenizer}" + f"-{i}" * (i > 1)), exist_ok=False)
        except FileExistsError:
            continue  # taken, perhaps a moment ago
    raise AssertionError("unreachable")


def rewind_metrics(source: Path, target: Path, step: int) -> None:
    """Copy metrics.jsonl, timing.jsonl and samples.txt up to a step from one folder to another, or to itself.

    Later lines, and half a line at the end, are dropped: those steps are taken again. What the model wrote before its
    first step is copied as it is. Raises UserError where the disk is full; the files are then unchanged.
    """
    for name in (METRICS, TIMING):
        _copy(source / name, target / name, lambda lines: (line for line in lines if _step_of(line) <= step))
    if (source / SAMPLES).exists():
        _copy(source / SAMPLES, target / SAMPLES, lambda lines: _samples_up_to(step, lines))
    if (source / BEFORE).exists():
        _copy(source / BEFORE, target / BEFORE, lambda lines: lines)


def _copy(source: Path, target: Path, choose: Callable[[Iterable[str]], Iterable[str]]) -> None:
    try:
        with atomic_write(target) as kept:
            if source.exists():
                with source.open(encoding="utf-8", errors="replace") as lines:
                    kept.writelines(line.encode() for line in choose(lines))
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror}") from error


def _samples_up_to(step: int, lines: Iterable[str]) -> Iterator[str]:
    heading = re.compile(re.escape(SAMPLE_HEADING).replace(re.escape("{}"), r"(\d+)") + "\n?")
    for line in lines:
        if (found := heading.fullmatch(line)) and int(found[1]) > step:
            return
        yield line


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return float("inf")  # not a complete line
