"""Saving as a run goes: beside the next steps where that is wanted, and what to do when it fails."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np

import tensorgrad as tg
from gpt.checkpoint import RunState, Snapshot, write_checkpoint
from gpt.config import UserError
from gpt.train.progress import Progress
from gpt.train.run import Run


class Saver:
    """Writes the checkpoints of a run, one at a time; use it in a `with`, whose end waits for the last.

    With `async_save` the state is copied and a thread writes the copy while training goes on, which changes nothing
    about the result. What goes wrong there comes up at the next save or at the end: it stops the run, or with
    `on_save_error` "continue" is said and tried again with the next checkpoint, but for the last one of the run.
    """

    def __init__(self, run: Run, progress: Progress) -> None:
        self.run = run
        self.progress = progress
        self._snapshot: Snapshot | None = None  # its memory serves every time
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, *, last: bool = False) -> None:
        """Save where the run stands. The last checkpoint of a run is written before this returns."""
        run = self.run
        if run.group.rank:  # the first process of the group has all that this one has
            run.saved_step = run.step
            return
        self.wait()
        self.progress.sync()  # a checkpoint is not to know of steps that the metrics have lost
        background = run.config.async_save and not last
        snapshot = Snapshot.take(
            state_of(run), run.model, run.optimizer, run.tokenizer, into=self._snapshot, copy=background
        )
        if broken := first_nonfinite({**snapshot.weights, **snapshot.moments}):
            raise UserError(
                f"step {run.step}: the update has made {broken} not finite, so it is not saved: a lower --lr may help, "
                f"or --grad-clip. Checkpoints in {run.folder} are from before"
            )
        if background:
            self._snapshot = snapshot
            # A daemon: a second Ctrl-C does not wait for it, and half a checkpoint has no name yet.
            self._thread = threading.Thread(target=self._write, args=(snapshot,), name="checkpoint", daemon=True)
            self._thread.start()
        else:
            self._write(snapshot)
            self._report(stop=last)

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, and write that of the last step where it is not there yet."""
        self.wait()
        if self.run.saved_step != self.run.step:
            self.save(last=True)

    @contextmanager
    def saving_first(self, settle: Callable[[], None]) -> Iterator[None]:
        """In a `with`, between two steps: an error of the user's ends the run, but not before it is saved.

        So does a reader of what is printed who is gone, as `tee` is after a Ctrl-C that was meant for both. Before that
        `settle` is called, which writes down those of its steps that were still to be read.
        """
        try:
            yield
        except (UserError, BrokenPipeError):
            if self.run.step:
                settle()
                self.finish()
            raise

    def wait(self) -> None:
        """Wait for the checkpoint that is being written; UserError where it went wrong and that is to stop the run."""
        self._join()
        self._report(stop=False)

    def _write(self, snapshot: Snapshot) -> None:
        try:
            write_checkpoint(self.run.folder, snapshot, self.run.config.keep_checkpoints)
            self.run.saved_step = snapshot.state.step
        except Exception as error:  # it is to come up where training can see it
            self._error = error

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _report(self, *, stop: bool) -> None:
        error, self._error = self._error, None
        if error is None:
            return
        if stop or self.run.config.on_save_error == "stop" or not isinstance(error, UserError):
            raise error
        self.progress.say(f"{error}; training goes on")

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.wait()
        elif issubclass(kind, Exception):  # it is not to be hidden by another, but the checkpoint is to be whole
            self._join()
            if self._error is not None:
                self.progress.say(str(self._error))


def first_nonfinite(arrays: Mapping[str, Any]) -> str | None:
    """Return the name of the first array with a nan or an infinity."""
    for name, a in arrays.items():
        # The sum is not finite where an element is not, and needs no second array; if it is not, look closely.
        if not math.isfinite(float(a.sum())) and not bool(np.isfinite(tg.Tensor(a).numpy()).all()):
            return name
    return None


def state_of(run: Run) -> RunState:
    """Return where a run stands, beside its weights and moments."""
    return RunState(
        step=run.step,
        model_config=run.model.config,
        train_config=run.config,
        data_sha256=run.data_sha256,
        rng=tg.random.default_generator.state_dict(),
        best_val_loss=run.best_val_loss,
        best_step=run.best_step,
        skipped=run.skipped,
        scaler=run.scaler.state_dict(),
    )
