"""The folders of a run, step-000500, step-001000 ...: which there are, and removing what is not kept."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from gpt.checkpoint.metrics import METRICS
from gpt.config import UserError

_STEP_FOLDER = re.compile(r"step-(\d{6,18})")
_WRITING, _REMOVING = ".writing", ".removing"  # endings of hidden names


def step_folder(run_dir: Path, step: int) -> Path:
    """Return where the checkpoint of a step is, or would be."""
    return run_dir / f"step-{step:06d}"


def step_of(folder: Path) -> int | None:
    """Return the step that a folder's name stands for; None for any other name."""
    match = _STEP_FOLDER.fullmatch(folder.name)
    return int(match[1]) if match else None


def step_folders(run_dir: str | Path) -> list[tuple[int, Path]]:
    """Return (step, folder) for every checkpoint of a run, the oldest first."""
    found = ((step_of(folder), folder) for folder in Path(run_dir).iterdir() if folder.is_dir())
    return sorted((step, folder) for step, folder in found if step is not None)


def steps_after(run_dir: str | Path, step: int) -> list[Path]:
    """Return the checkpoints of a run that are further than this step."""
    return [folder for number, folder in step_folders(run_dir) if number > step]


def newest_checkpoint(root: str | Path = "checkpoints") -> Path:
    """Return the newest step folder of a run, or of the run saved last when `root` holds many.

    Raises UserError when there is none.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder, so there is no checkpoint in it")
    if steps := step_folders(root):
        return steps[-1][1]
    of_runs = [steps[-1][1] for run in root.iterdir() if run.is_dir() and (steps := step_folders(run))]
    if not of_runs and (root / METRICS).exists():
        raise UserError(f"{root}: stopped before its first checkpoint: start it again, with the same --out")
    if not of_runs:
        raise UserError(f"{root}: no checkpoint in it; train.py makes them")
    return max(of_runs, key=lambda step: (step.stat().st_mtime_ns, step))


# --------------------------------------------------------------------------------------------------
# Writing and removing: at no moment is there half a checkpoint under its name


def folder_aside(target: Path) -> Path:
    """Return the hidden name under which `target` is written before it gets its own."""
    return target.with_name(f".{target.name}{_WRITING}")


def give_name(aside: Path, target: Path) -> None:
    """Give a folder that is whole and on the disk its name, in the place of one that had it before."""
    remove(target)  # there only when a step is saved again
    aside.rename(target)
    sync(target.parent)


def prune(run_dir: Path, step: int, *, last: int, best: int | None) -> None:
    """Remove all checkpoints up to a step but the last few and the best."""
    steps = [number for number, _ in step_folders(run_dir) if number <= step]
    for number in set(steps[:-last]) - {best}:
        remove(step_folder(run_dir, number))


def remove(folder: Path) -> None:
    """Remove a checkpoint so that a crash half-way does not leave half of one under its name."""
    if folder.exists():
        hidden = folder.with_name(f".{folder.name}{_REMOVING}")
        folder.rename(hidden)
        shutil.rmtree(hidden)


def clear_leftovers(run_dir: Path) -> None:
    """Remove what a kill left of a folder that was being written or removed."""
    for ending in (_WRITING, _REMOVING):
        for folder in run_dir.glob(f".*-*{ending}"):
            shutil.rmtree(folder)


def sync(path: Path) -> None:
    """Wait until the file or the folder is on the disk; Windows has no such call for folders."""
    with suppress(PermissionError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
