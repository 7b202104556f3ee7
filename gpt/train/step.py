"""One optimiser step, from the batch to the weights; and what came of it, read at once or, from a GPU, now and then."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import tensorgrad as tg
from gpt.config import TrainConfig
from gpt.data import Array
from gpt.model import GPT
from gpt.train.run import Run
from tensorgrad.distributed import ALONE, GradientReducer
from tensorgrad.random import Stream

UNSCALED = tg.amp.GradScaler(enabled=False)


class Step:
    """Forward, backward, clipping and update, where every number may be an array on a GPU that nobody waits for.

    A step that is not finite changes nothing. watch: is shown the model when its gradients are there. With `cuda_graph`
    the step is recorded once, and replayed from then on.
    """

    def __init__(self, run: Run, reducer: GradientReducer, watch: Callable[[GPT], Any] | None = None) -> None:
        self.run, self.reducer, self.watch = run, reducer, watch
        self.backend = tg.get_backend()
        self.parameters = list(run.model.parameters())
        self.seen: Any = None  # what `watch` returned last
        self._compute: Any = self._take
        if run.config.cuda_graph:
            run.optimizer.capturable()
            draw = partial(tg.random.default_generator.next_step, Stream.DROPOUT)
            self._compute = self.backend.record(self._take, draw)

    def __call__(self, x: Array, y: Array, lr: float) -> tuple[Any, Any]:
        """Take the step on windows x, y (n, T); return the loss and the norm of the gradient."""
        self.run.optimizer.set_lr(lr)
        loss, grad_norm = self._compute(*self.backend.stage(x, y))
        if self.run.config.cuda_graph:
            return loss.copy(), grad_norm.copy()  # the next replay writes into the same arrays
        return loss, grad_norm

    def _take(self, x: Array, y: Array) -> tuple[Any, Any]:
        config, optimizer, scaler = self.run.config, self.run.optimizer, self.run.scaler
        batch_size = config.batch_size // self.run.group.size
        loss = accumulate_gradients(self.run.model, x, y, batch_size, scaler, self.reducer)
        scaler.unscale_(optimizer)
        if self.watch is not None:
            self.seen = self.watch(self.run.model)
        grad_norm = tg.optim.clip_grad_norm(self.parameters, config.grad_clip or math.inf)
        finite = self.backend.xp.isfinite(loss if scaler.enabled else loss + grad_norm)
        scaler.step(optimizer, skip=~finite)  # and where gradients are too large for float16, it looks for itself
        scaler.update()
        optimizer.zero_grad()
        return loss, grad_norm


def accumulate_gradients(
    model: GPT, x: Array, y: Array, batch_size: int, scaler: tg.amp.GradScaler = UNSCALED,
    reducer: GradientReducer | None = None,
) -> Any:  # fmt: skip
    """Add the gradient of the mean loss over all windows to the parameters, in parts of batch_size; return the loss.

    x, y (n, T): what fits in memory is a part, and the parts together are exactly the large batch. Only dropout's
    masks are not those of the large batch: each part draws its own. With a reducer every process of its group computes
    its share of the windows, and has the loss and gradients of all. The loss is a number, or on a GPU an array.
    """
    group = ALONE if reducer is None else reducer.group
    k, n_windows = tg.get_backend(), len(x)
    loss: Any = 0.0
    first, last = (n_windows * rank // group.size for rank in (group.rank, group.rank + 1))
    for i in range(first, last, batch_size):
        part = slice(i, i + batch_size)
        overlap = reducer.overlap() if reducer is not None and i + batch_size == last else nullcontext()
        with scaler.overflowing(), overlap:
            part_loss = model.loss(x[part], y[part]) / (n_windows // batch_size)
            scaler.scale(part_loss).backward()  # adds to the gradients that are there
        loss = loss + k.number(part_loss.data)
    if reducer is None or group.size == 1:
        return loss
    reducer.wait()
    return k.sum_over(group, loss)


@dataclass
class Figures:
    """What is to be known of a step."""

    step: int  # counted from 1
    lr: float
    loss: Any
    grad_norm: Any
    rng: dict[str, Any]  # random counters before the step
    more: dict[str, Any] = field(default_factory=dict)
    tokens_per_s: int = 0


class Readings:
    """Figures of steps that may still be under way: read together, so that a GPU is waited for once in many steps."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.steps: list[Figures] = []
        self.started = 0.0

    def begin(self) -> None:
        """Note when the first of the steps begins."""
        if not self.steps:
            self.started = time.perf_counter()

    def due(self) -> bool:
        """Whether to read now: always where nobody waits; else each so many steps, and where a step is looked at."""
        config, last = self.config, self.steps[-1]
        every = (config.log_interval, config.eval_interval, config.checkpoint_interval or config.eval_interval)
        on_host = isinstance(last.loss, float)
        return on_host or last.step == config.max_iters or any(last.step % n == 0 for n in every)

    def read(self) -> list[Figures]:
        """Return what was added since the last time, in numbers; waits for the GPU."""
        steps, self.steps = self.steps, []
        numbers = tg.get_backend().numbers([x for row in steps for x in (row.loss, row.grad_norm)])
        elapsed = time.perf_counter() - self.started
        for row, loss, grad_norm in zip(steps, numbers[::2], numbers[1::2], strict=True):
            row.loss, row.grad_norm = loss, grad_norm
            row.tokens_per_s = round(self.config.tokens_per_step * len(steps) / elapsed)
        return steps
