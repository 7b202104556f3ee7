"""One optimizer step: forward, backward, clipping and update."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import tensorgrad as tg
from gpt.train.config import TrainConfig
from gpt.weights import IGNORED, Model
from tensorgrad.backend import Array
from tensorgrad.distributed import ALONE, GradientReducer
from tensorgrad.random import Stream

UNSCALED = tg.amp.GradScaler(enabled=False)


class TrainingStep:
    """Takes optimizer steps. On a GPU the numbers that it returns are arrays, for which nobody waits.

    A step whose loss or gradient is not finite changes nothing. With config.cuda_graph the step is recorded once and
    then replayed.

    reducer: averages the gradients of the processes that train together. inspect: called with the model when its
    gradients are complete; `inspected` holds its result.
    """

    def __init__(
        self, model: Model, optimizer: tg.optim.AdamW, config: TrainConfig, *, scaler: tg.amp.GradScaler = UNSCALED,
        reducer: GradientReducer | None = None, inspect: Callable[[Model], Any] | None = None,
    ) -> None:  # fmt: skip
        self.model, self.optimizer, self.config, self.scaler = model, optimizer, config, scaler
        self.reducer, self.inspect = reducer, inspect
        self.batch_size = config.batch_size // (1 if reducer is None else reducer.group.size)
        self.backend = tg.get_backend()
        self.parameters = list(model.parameters())
        self.inspected: Any = None
        self._compute: Any = self._step
        if config.cuda_graph:
            optimizer.capturable()
            draw = partial(tg.random.default_generator.next_step, Stream.DROPOUT)
            self._compute = self.backend.record(self._step, draw, tune=True)

    def __call__(self, x: Array, y: Array, lr: float, *more: Array) -> tuple[Any, Any]:
        """Take a step on the windows x, y (n, T); return the loss and the norm of the gradient.

        more: further arguments of the model's loss, with n rows.
        """
        self.optimizer.set_lr(lr)
        loss, grad_norm = self._compute(*self.backend.stage(x, y, *more))
        if self.config.cuda_graph:
            return loss.copy(), grad_norm.copy()  # the next replay writes into the same arrays
        return loss, grad_norm

    def close(self) -> None:
        """Return the memory of a recorded step to the GPU."""
        if self.config.cuda_graph:
            self._compute.close()

    def _step(self, *batch: Array) -> tuple[Any, Any]:
        optimizer, scaler = self.optimizer, self.scaler
        loss = accumulate_gradients(self.model, batch, self.batch_size, scaler, self.reducer)
        scaler.unscale_(optimizer)
        if self.inspect is not None:
            self.inspected = self.inspect(self.model)
        grad_norm, factor = tg.optim.norm_and_factor(self.parameters, self.config.grad_clip or math.inf)
        finite = self.backend.xp.isfinite(loss if scaler.enabled else loss + grad_norm)
        # that gradients are too large for float16, the scaler finds by itself
        scaler.step(optimizer, skip=~finite, grad_scale=factor)
        scaler.update()
        optimizer.zero_grad()
        return loss, grad_norm


def accumulate_gradients(
    model: Model, batch: tuple[Array, ...], batch_size: int, scaler: tg.amp.GradScaler = UNSCALED,
    reducer: GradientReducer | None = None,
) -> Any:  # fmt: skip
    """Add the gradient of the mean loss over all rows to the parameters, batch by batch; return the loss.

    batch: the arguments of model.loss, such as x, y (n, T), in parts of batch_size rows, which together give the
    gradient of one large batch. Only dropout's masks differ from those of the large batch: each batch draws its own.
    With a reducer every process of its group computes its share of the windows, and gets the loss and gradients of all.
    The loss is a number, or on a GPU an array.
    """
    group = ALONE if reducer is None else reducer.group
    k, n_rows = tg.get_backend(), len(batch[0])
    loss: Any = 0.0
    first, last = (n_rows * rank // group.size for rank in (group.rank, group.rank + 1))
    for i in range(first, last, batch_size):
        part = tuple(array[i : i + batch_size] for array in batch)
        overlap = reducer.overlap() if reducer is not None and i + batch_size == last else nullcontext()
        with scaler.overflowing(), overlap:
            part_loss = model.loss(*part)
            if len(batch) == 2:  # without positions, every token is a target
                part_loss = part_loss / (n_rows // batch_size)
            else:
                part_loss = part_loss * (_count_targets(part[1]) / _count_targets(batch[1]))
            scaler.scale(part_loss).backward()  # adds to the gradients of earlier batches
        loss = loss + k.number(part_loss.data)
    if reducer is None or group.size == 1:
        return loss
    reducer.wait()
    return k.sum_over(group, loss)


def _count_targets(y: Array) -> int:
    return int((y != IGNORED).sum())
