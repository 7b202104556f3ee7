"""The metrics of a step: collected while a GPU may still compute them, and written as lines of JSON."""

import json
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tensorgrad as tg
from gpt.config import UserError
from gpt.train.config import TrainConfig


@dataclass
class StepMetrics:
    """The metrics of a step, and what repeating the step needs."""

    step: int  # counted from 1
    lr: float
    loss: Any  # a number, or on a GPU an array until the buffer is flushed; so is grad_norm
    grad_norm: Any
    rng: dict[str, Any]  # random counters before the step
    n_tokens: int
    more: dict[str, Any] = field(default_factory=dict)  # val_loss, ratios, skipped
    tokens_per_s: int = 0


class MetricsBuffer:
    """Metrics of steps that may still be running: flushed together, so that a GPU is waited for once in many steps."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.steps: list[StepMetrics] = []
        self.started = 0.0

    def start_step(self) -> None:
        """Start the clock, unless it has run since an earlier step that is not flushed."""
        if not self.steps:
            self.started = time.perf_counter()

    def should_flush(self) -> bool:
        """Whether to flush after the last step: always on a CPU; on a GPU at the intervals of the configuration."""
        config, last = self.config, self.steps[-1]
        intervals = (config.log_interval, config.eval_interval, config.checkpoint_interval or config.eval_interval)
        on_host = isinstance(last.loss, float)
        return on_host or last.step == config.max_iters or any(last.step % n == 0 for n in intervals)

    def flush(self) -> list[StepMetrics]:
        """Return the metrics added since the last flush, as numbers; waits for the GPU."""
        steps, self.steps = self.steps, []
        numbers = tg.get_backend().numbers([x for metrics in steps for x in (metrics.loss, metrics.grad_norm)])
        elapsed = time.perf_counter() - self.started
        for metrics, loss, grad_norm in zip(steps, numbers[::2], numbers[1::2], strict=True):
            metrics.loss, metrics.grad_norm = loss, grad_norm
            metrics.tokens_per_s = round(sum(row.n_tokens for row in steps) / elapsed)
        return steps


class JSONLines:
    """A growing file of JSON objects, one per line; a line is with the operating system once it is written.

    With `retry`, a line that a full disk does not take is kept and written before the next one, instead of an error.
    """

    def __init__(self, path: Path, *, retry: bool = False) -> None:
        self.path = path
        self.retry = retry
        self._unwritten = bytearray()
        self._file = path.open("ab", buffering=0)

    def write(self, values: dict[str, Any]) -> None:
        """Append one line, with null for nan and infinity, which JSON does not have.

        Raises UserError where the disk is full.
        """
        finite = {key: None if _is_nonfinite(value) else value for key, value in values.items()}
        self._unwritten += json.dumps(finite).encode() + b"\n"
        try:
            while self._unwritten:
                del self._unwritten[: self._file.write(self._unwritten)]
        except OSError as error:
            if not self.retry:
                raise UserError(f"{self.path}: cannot be written: {error.strerror}") from error

    def sync(self) -> None:
        """Wait until every line is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _is_nonfinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
