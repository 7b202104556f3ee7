"""What a run shows and writes as it goes: a bar, a line per validation, metrics.jsonl, timing.jsonl."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

METRICS = "metrics.jsonl"  # what training computes: the same bytes however often a run was stopped and resumed
TIMING = "timing.jsonl"  # how fast it was, which no two runs have in common


class Progress:
    """Takes every step's figures; use it in a `with`.

    Each step becomes one line of JSON in `folder/metrics.jsonl` and, for its speed, one in
    `folder/timing.jsonl`, both flushed, and moves the bar, which is there only when stderr is a
    terminal. A validation becomes a line on stdout.
    """

    def __init__(self, folder: Path, *, step: int, max_iters: int) -> None:
        self.metrics = (folder / METRICS).open("a", encoding="utf-8")
        self.timing = (folder / TIMING).open("a", encoding="utf-8")
        self.bar = tqdm(
            total=max_iters, initial=step, disable=None, dynamic_ncols=True,
            bar_format="{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}",
        )  # fmt: skip
        self.first, self.max_iters = step, max_iters
        self.started = time.perf_counter()

    def step(self, step: int, *, tokens_per_s: int, **figures: Any) -> None:
        """Record one step: its speed, then loss, lr, grad_norm and, at a validation, val_loss."""
        _write_line(self.metrics, {"step": step, **figures})
        _write_line(self.timing, {"step": step, "tokens_per_s": tokens_per_s})
        self.bar.set_postfix_str(f"loss {figures['loss']:.3f}, {tokens_per_s:,} tokens/s", refresh=False)
        self.bar.update()
        if "val_loss" in figures:
            self.say(self._line(step, tokens_per_s=tokens_per_s, **figures))

    def sync(self) -> None:
        """Wait until every line is on the disk: a checkpoint is not to know of steps that the lines lost."""
        os.fsync(self.metrics.fileno())

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


def _write_line(file: IO[str], values: dict[str, Any]) -> None:
    file.write(json.dumps(values) + "\n")
    file.flush()


def rewind_metrics(source: Path, target: Path, step: int) -> None:
    """Write to `target/metrics.jsonl` the lines of `source`'s up to a step; both may be one folder.

    What a run wrote after its last checkpoint, perhaps half a line, goes: it will be done again.
    The same for timing.jsonl.
    """
    for name in (METRICS, TIMING):
        aside = target / f".{name}"
        with aside.open("w", encoding="utf-8") as kept:
            if (source / name).exists():
                with (source / name).open(encoding="utf-8", errors="replace") as lines:
                    kept.writelines(line for line in lines if _step_of(line) <= step)
            kept.flush()
            os.fsync(kept.fileno())
        os.replace(aside, target / name)


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # not a whole line of ours
