"""What a run shows and writes as it goes: a bar, a line per validation, metrics.jsonl, timing.jsonl."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from gpt.checkpoint.metrics import METRICS, TIMING, LineFile


class Observer(Protocol):
    """Something else that wants to know how a run goes."""

    def step(self, step: int, figures: Mapping[str, Any]) -> None:
        """Learn what a step came to: loss, lr, grad_norm, tokens_per_s; where there are some, val_loss and ratios."""

    def close(self) -> None:
        """The run stops here."""


class Progress:
    """Takes every step's figures; use it in a `with`.

    Each step becomes one line of JSON in `folder/metrics.jsonl` and, for its speed, one in
    `folder/timing.jsonl`, and moves the bar, which is there only when stderr is a terminal. A
    validation becomes a line on stdout. With `patient` a full disk does not end the run.
    """

    def __init__(self, folder: Path, *, step: int, max_iters: int, patient: bool = False) -> None:
        self.metrics = LineFile(folder / METRICS, patient=patient)
        self.timing = LineFile(folder / TIMING, patient=patient)
        bar, off = (notebook_bar, False) if in_notebook() else (tqdm, None)  # None: where stderr is no terminal
        self.bar = bar(
            total=max_iters, initial=step, disable=off, dynamic_ncols=True,
            bar_format="{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}",
        )  # fmt: skip
        self.observers: list[Observer] = []  # gpt/train/observers.py has them
        self.first, self.max_iters = step, max_iters
        self.started = time.perf_counter()

    def step(self, step: int, *, tokens_per_s: int, **figures: Any) -> None:
        """Record one step: its speed, then loss, lr, grad_norm and, at a validation, val_loss."""
        self.metrics.write({"step": step, **figures})
        self.timing.write({"step": step, "tokens_per_s": tokens_per_s})
        self.bar.set_postfix_str(f"loss {figures['loss']:.3f}, {tokens_per_s:,} tokens/s", refresh=False)
        self.bar.update()
        if "val_loss" in figures:
            self.say(self._line(step, tokens_per_s=tokens_per_s, **figures))
        for observer in self.observers:
            observer.step(step, {**figures, "tokens_per_s": tokens_per_s})

    def sync(self) -> None:
        """Wait until the metrics are on the disk."""
        self.metrics.sync()

    def say(self, text: str) -> None:
        """Print a line on stdout, above the bar."""
        self.bar.write(text)
        sys.stdout.flush()  # a log file should not lag behind

    def _line(self, step: int, *, loss: float, lr: float, tokens_per_s: int, val_loss: float, **_: Any) -> str:
        per_step = (time.perf_counter() - self.started) / (step - self.first)
        left = tqdm.format_interval(per_step * (self.max_iters - step))
        return (
            f"step {step:>{len(str(self.max_iters))}}/{self.max_iters}  loss {loss:.4f}  "
            f"validation {val_loss:.4f}  lr {lr:.2e}  {tokens_per_s:,} tokens/s  {left} left"
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()
        for observer in self.observers:
            observer.close()
        self.metrics.close()
        self.timing.close()


def in_notebook() -> bool:
    """Whether this program is a notebook's: there a bar is a widget, and stderr no terminal."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config


def notebook_bar(**options: Any) -> Any:
    """Return tqdm's bar for notebooks, or its plain one where they lack the widgets for it."""
    from tqdm.notebook import tqdm as notebook_tqdm

    try:
        return notebook_tqdm(**options)
    except ImportError:
        return tqdm(**options)


class Unseen(Progress):
    """What a process of a group has that leaves showing and writing to another."""

    def __init__(self) -> None:
        pass

    def step(self, step: int, *, tokens_per_s: int, **figures: Any) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def __exit__(self, *error: object) -> None:
        pass
