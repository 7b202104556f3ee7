"""What a run shows and writes as it goes: a bar, a line per validation, metrics.jsonl, timing.jsonl."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gpt.metrics import METRICS, TIMING, LineFile


class Progress:
    """Takes every step's figures; use it in a `with`.

    Each step becomes one line of JSON in `folder/metrics.jsonl` and, for its speed, one in
    `folder/timing.jsonl`, and moves the bar, which is there only when stderr is a terminal. A
    validation becomes a line on stdout. With `patient` a full disk does not end the run.
    """

    def __init__(self, folder: Path, *, step: int, max_iters: int, patient: bool = False) -> None:
        self.metrics = LineFile(folder / METRICS, patient=patient)
        self.timing = LineFile(folder / TIMING, patient=patient)
        self.bar = tqdm(
            total=max_iters, initial=step, disable=None, dynamic_ncols=True,
            bar_format="{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}",
        )  # fmt: skip
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

    def sync(self) -> None:
        """Wait until the metrics are on the disk."""
        self.metrics.sync()

    def say(self, text: str) -> None:
        """Print a line on stdout, above the bar."""
        self.bar.write(text)
        sys.stdout.flush()  # a log file should not lag behind

    def _line(self, step: int, *, loss: float, lr: float, tokens_per_s: int, val_loss: float, **_: float) -> str:
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
        self.metrics.close()
        self.timing.close()
