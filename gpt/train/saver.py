"""Saving checkpoints during training, in a background thread by default, and what happens when that fails."""

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
    """Writes the checkpoints of a run, one at a time; use it in a `with`, which waits for the last one at its end.

    With `async_save` the state is copied, and a thread writes the copy while training continues, with the same result.
    An error there is raised at the next save or at the end and stops the run; with `on_save_error` "continue" it is
    printed instead, and the next checkpoint tries again. The last checkpoint of a run has to succeed.
    """

    def __init__(self, run: Run, progress: Progress) -> None:
        self.run = run
        self.progress = progress
        self._snapshot: Snapshot | None = None  # its memory is reused
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, *, last: bool = False) -> None:
        """Save the present state of the run. The last checkpoint is written before this returns."""
        run = self.run
        if run.group.rank:  # rank 0 has the same state, and writes it
            run.saved_step = run.step
            return
        self.wait()
        self.progress.sync()  # a checkpoint must not contain steps that are missing from the metrics
        background = run.config.async_save and not last
        snapshot = Snapshot.take(
            state_of(run), run.model, run.optimizer, run.tokenizer, into=self._snapshot, copy=background
        )
        if name := first_nonfinite({**snapshot.weights, **snapshot.moments}):
            raise UserError(
                f"step {run.step}: the update has made {name} not finite, so it is not saved: a lower --lr or "
                f"--grad-clip may help. The checkpoints in {run.folder} are of earlier steps"
            )
        if background:
            self._snapshot = snapshot
            # A daemon: a second Ctrl-C does not wait for it, and an incomplete checkpoint has no name yet.
            self._thread = threading.Thread(target=self._write, args=(snapshot,), name="checkpoint", daemon=True)
            self._thread.start()
        else:
            self._write(snapshot)
            self._report(stop=last)

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, and save the last step if it is not yet saved."""
        self.wait()
        if self.run.saved_step != self.run.step:
            self.save(last=True)

    @contextmanager
    def save_on_error(self, flush: Callable[[], None]) -> Iterator[None]:
        """In a `with`, between two steps: save the run before an error of the user ends it.

        The same where the reader of stdout has gone, as `tee` has after a Ctrl-C that was meant for both. `flush` is
        called first, and writes the metrics of steps that are still in the buffer.
        """
        try:
            yield
        except (UserError, BrokenPipeError):
            if self.run.step:
                flush()
                self.finish()
            raise

    def wait(self) -> None:
        """Wait for the checkpoint that is being written; raise its error where that stops the run."""
        self._join()
        self._report(stop=False)

    def _write(self, snapshot: Snapshot) -> None:
        try:
            write_checkpoint(self.run.folder, snapshot, self.run.config.keep_checkpoints)
            self.run.saved_step = snapshot.state.step
        except Exception as error:  # raised by _report, in the main thread
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
        self.progress.print(f"{error}; training continues")

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.wait()
        elif issubclass(kind, Exception):  # let the checkpoint be completed, but do not hide this error by its error
            self._join()
            if self._error is not None:
                self.progress.print(str(self._error))


def first_nonfinite(arrays: Mapping[str, Any]) -> str | None:
    """Return the name of the first array with a nan or an infinity."""
    for name, a in arrays.items():
        # A sum is not finite where an element is not, and needs no second array; only then look at every element.
        if not math.isfinite(float(a.sum())) and not bool(np.isfinite(tg.Tensor(a).numpy()).all()):
            return name
    return None


def state_of(run: Run) -> RunState:
    """Return the state of a run besides its weights and moments."""
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
        task=run.task.settings(),
        base=run.base,
        numpy_products=sorted(tg.get_backend().numpy_products()),
    )
