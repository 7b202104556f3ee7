"""What a run shows and writes during training: a bar, a line per validation, metrics.jsonl and timing.jsonl."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from gpt.checkpoint.files import METRICS, TIMING
from gpt.cli import one_line
from gpt.heartbeat import Heartbeat
from gpt.train.metrics import JSONLines


class Observer(Protocol):
    """Receives the metrics of every step (observers.py has several)."""

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Take the metrics of a step: loss, lr, grad_norm, tokens_per_s and, at some steps, val_loss and ratios."""

    def close(self) -> None:
        """Finish: the run ends here."""


class Progress:
    """Shows and writes the metrics of every step; use it in a `with`.

    Each step is a line of JSON in `folder/metrics.jsonl`, a line with its speed in `folder/timing.jsonl`, and moves the
    bar, which is shown only where stderr is a terminal; elsewhere a line on stdout shows the newest step every few
    seconds. A validation is a line on stdout. With `retry` a full disk does not end the run.
    """

    def __init__(self, folder: Path, *, step: int, max_iters: int, retry: bool = False) -> None:
        self.metrics = JSONLines(folder / METRICS, retry=retry)
        self.timing = JSONLines(folder / TIMING, retry=retry)
        bar, disable = (notebook_bar, False) if in_notebook() else (tqdm, None)  # None: where stderr is no terminal
        self.bar = bar(
            total=max_iters, initial=step, disable=disable, dynamic_ncols=True,
            bar_format="{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}",
        )  # fmt: skip
        self.observers: list[Observer] = []
        self.first, self.max_iters = step, max_iters
        self.heartbeat = Heartbeat("compiling kernels, or computing the first step", self.print)
        self.started = time.perf_counter()

    def step(self, step: int, *, tokens_per_s: int, **metrics: Any) -> None:
        """Record one step: its speed, then loss, lr, grad_norm and, at a validation, val_loss."""
        self.metrics.write({"step": step, **metrics})
        self.timing.write({"step": step, "tokens_per_s": tokens_per_s})
        self.bar.set_postfix_str(f"loss {metrics['loss']:.3f}, {tokens_per_s:,} tokens/s", refresh=False)
        self.bar.update()
        if not self.bar.disable:
            self.heartbeat.reset()
        line = f"{self._at(step)}  loss {metrics['loss']:.4f}  {tokens_per_s:,} tokens/s"
        self.heartbeat.activity = lambda: line
        if "val_loss" in metrics:
            self.print(self._line(step, tokens_per_s=tokens_per_s, **metrics))
        self._notify("step", step, {**metrics, "tokens_per_s": tokens_per_s})

    def _notify(self, event: str, *arguments: Any) -> None:
        """Call a method of every observer; one that fails is left out from then on, and the run continues."""
        for observer in list(self.observers):
            try:
                getattr(observer, event)(*arguments)
            except Exception as error:  # of any kind: a logger that fails must not end a run
                self.observers.remove(observer)
                self.print(failure(type(observer).__name__, error))

    @contextmanager
    def activity(self, step: int, what: str) -> Iterator[None]:
        """Say what takes long at that step, where it does."""
        with self.showing(lambda: f"{self._at(step)}  {what}"):
            yield

    @contextmanager
    def showing(self, line: Callable[[], str]) -> Iterator[None]:
        """Show this line for as long as nothing else is printed."""
        before = self.heartbeat.activity
        self.heartbeat.activity = line
        try:
            yield
        finally:
            self.heartbeat.activity = before

    def sync(self) -> None:
        """Wait until the metrics are on the disk."""
        self.metrics.sync()

    def print(self, text: str) -> None:
        """Print a line on stdout, above the bar."""
        self.bar.write(text)
        sys.stdout.flush()  # so that a log file is up to date
        self.heartbeat.reset()

    def _at(self, step: int) -> str:
        return f"step {step:>{len(str(self.max_iters))}}/{self.max_iters}"

    def _line(self, step: int, *, loss: float, lr: float, tokens_per_s: int, val_loss: float, **more: Any) -> str:
        per_step = (time.perf_counter() - self.started) / (step - self.first)
        left = tqdm.format_interval(per_step * (self.max_iters - step))
        general = f"general {more['general_loss']:.4f}  " if "general_loss" in more else ""
        return (
            f"{self._at(step)}  loss {loss:.4f}  "
            f"validation {val_loss:.4f}  {general}lr {lr:.2e}  {tokens_per_s:,} tokens/s  {left} left"
        )

    def __enter__(self) -> "Progress":
        self.heartbeat.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()
        self._notify("close")
        self.metrics.close()
        self.timing.close()
        self.heartbeat.__exit__(None, None, None)


class NoProgress(Progress):
    """Shows and writes nothing: of several processes that train together, only rank 0 does."""

    def __init__(self) -> None:
        pass

    def step(self, step: int, *, tokens_per_s: int, **metrics: Any) -> None:
        """Do nothing."""

    @contextmanager
    def activity(self, step: int, what: str) -> Iterator[None]:
        """Do nothing."""
        yield

    def sync(self) -> None:
        """Do nothing."""

    def print(self, text: str) -> None:
        """Do nothing."""

    def __enter__(self) -> "NoProgress":
        return self

    def __exit__(self, *error: object) -> None:
        pass


def failure(name: str, error: Exception) -> str:
    """Return the line that says that an observer has failed."""
    return f"{name} failed, and the run continues without it: {one_line(error)}"


def in_notebook() -> bool:
    """Whether this program runs in a notebook, where a bar is a widget although stderr is no terminal."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config


def notebook_bar(**options: Any) -> Any:
    """Return tqdm's bar for notebooks, or its plain one where the widgets are not installed."""
    from tqdm.notebook import tqdm as notebook_tqdm

    try:
        return notebook_tqdm(**options)
    except ImportError:
        return tqdm(**options)
