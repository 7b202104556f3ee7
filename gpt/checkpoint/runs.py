"""The runs in a folder, such as checkpoints/, and how far each of them is."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpt.checkpoint.files import MAX_JSON_BYTES, METRICS, STATE
from gpt.checkpoint.steps import step_folders
from gpt.files import read_json


@dataclass(frozen=True)
class RunSummary:
    """A run, by its newest checkpoint."""

    folder: Path
    time: int  # at which it was last saved or, without a checkpoint, was last trained
    step: int = 0  # 0: without a checkpoint
    max_iters: int = 0  # 0: the checkpoint cannot be read
    best_val_loss: float | None = None

    def __str__(self) -> str:
        if not self.step:
            return f"{self.folder}  no checkpoint yet"
        if not self.max_iters:
            return f"{self.folder}  step {self.step}, damaged"
        loss = "" if self.best_val_loss is None else f", best validation loss {self.best_val_loss:.4f}"
        unfinished = ", unfinished" if self.step < self.max_iters else ""
        return f"{self.folder}  step {self.step} of {self.max_iters}{loss}{unfinished}"


def summarize_runs(root: Path) -> list[RunSummary]:
    """Return every run in a folder, the newest last."""
    folders = root.iterdir() if root.is_dir() else ()
    return sorted((run for folder in folders for run in _summarize(folder)), key=lambda run: (run.time, run.folder))


def _summarize(folder: Path) -> Iterator[RunSummary]:
    steps = step_folders(folder) if folder.is_dir() else []
    if not steps:
        if (metrics := folder / METRICS).is_file():
            yield RunSummary(folder, metrics.stat().st_mtime_ns)
        return
    step, newest = steps[-1]
    time = newest.stat().st_mtime_ns
    try:
        state = read_json(newest / STATE, MAX_JSON_BYTES)
        yield RunSummary(folder, time, step, int(state["train_config"]["max_iters"]), state["best_val_loss"])
    except (OSError, ValueError, KeyError, TypeError):
        yield RunSummary(folder, time, step)
