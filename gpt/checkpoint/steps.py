"""The checkpoints of a run, in folders step-000500, step-001000 ...: each is complete as long as it has that name."""

import re
import shutil
from pathlib import Path

from gpt.checkpoint.files import METRICS
from gpt.config import UserError
from gpt.files import sync

_STEP_FOLDER = re.compile(r"step-(\d{6,18})")
_WRITING, _REMOVING = ".writing", ".removing"  # suffixes of hidden folders


def step_folder(run_dir: Path, step: int) -> Path:
    """Return where the checkpoint of a step is, or would be."""
    return run_dir / f"step-{step:06d}"


def step_of(folder: Path) -> int | None:
    """Return the step in a folder's name; None for any other name."""
    match = _STEP_FOLDER.fullmatch(folder.name)
    return int(match[1]) if match else None


def step_folders(run_dir: str | Path) -> list[tuple[int, Path]]:
    """Return (step, folder) for every checkpoint of a run, in the order of the steps."""
    found = ((step_of(folder), folder) for folder in Path(run_dir).iterdir() if folder.is_dir())
    return sorted((step, folder) for step, folder in found if step is not None)


def steps_after(run_dir: str | Path, step: int) -> list[Path]:
    """Return the checkpoints of a run after this step."""
    return [folder for number, folder in step_folders(run_dir) if number > step]


def newest_checkpoint(root: str | Path = "checkpoints") -> Path:
    """Return the newest step folder of a run, or of the run saved last of several; UserError where there is none."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder, so there is no checkpoint in it")
    if steps := step_folders(root):
        return steps[-1][1]
    newest = [steps[-1][1] for run in root.iterdir() if run.is_dir() and (steps := step_folders(run))]
    if not newest and (root / METRICS).exists():
        raise UserError(f"{root}: stopped before its first checkpoint: start it again, with the same --out")
    if not newest:
        raise UserError(f"{root}: no checkpoint in it; train.py makes them")
    return max(newest, key=lambda step: (step.stat().st_mtime_ns, step))


def temporary_folder(target: Path) -> Path:
    """Return the hidden name under which the folder `target` is written."""
    return target.with_name(f".{target.name}{_WRITING}")


def publish(temporary: Path, target: Path) -> None:
    """Give a complete folder, already on the disk, its name; an earlier folder of that name is removed."""
    remove(target)  # exists only where a step is saved again
    temporary.rename(target)
    sync(target.parent)


def prune(run_dir: Path, step: int, *, last: int, best: int | None) -> None:
    """Remove all checkpoints up to a step except the last few and the best."""
    steps = [number for number, _ in step_folders(run_dir) if number <= step]
    for number in set(steps[:-last]) - {best}:
        remove(step_folder(run_dir, number))


def remove(folder: Path) -> None:
    """Remove a checkpoint; a crash in the middle leaves no part of it under its name."""
    if folder.exists():
        hidden = folder.with_name(f".{folder.name}{_REMOVING}")
        folder.rename(hidden)
        shutil.rmtree(hidden)


def clear_leftovers(run_dir: Path) -> None:
    """Remove the folders that a killed process was writing or removing."""
    for suffix in (_WRITING, _REMOVING):
        for folder in run_dir.glob(f".*-*{suffix}"):
            shutil.rmtree(folder)
