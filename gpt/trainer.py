"""The training loop, top to bottom, and what goes with it: validation, checkpoints, Ctrl-C."""

from __future__ import annotations

import math
import signal
import time
from types import FrameType
from typing import Any

import tensorgrad as tg
from gpt.checkpoint import RunState, save_checkpoint
from gpt.config import TrainConfig, UserError
from gpt.data import random_windows
from gpt.evaluate import estimate_loss
from gpt.progress import Progress
from gpt.run import Run


def train(run: Run) -> int:
    """Take the steps that are left, and return 0; or after Ctrl-C, 130, and after SIGTERM, 143.

    Either signal lets the step end and saves. Raises UserError when the loss is no number any more.
    """
    config, model, optimizer = run.config, run.model, run.optimizer
    parameters = list(model.parameters())
    data = run.train_loader
    model.train()
    with (
        StopSignals() as stop,
        Progress(run.folder, step=run.step, max_iters=config.max_iters) as progress,
    ):
        while run.step < config.max_iters and not stop.received:
            started = time.perf_counter()
            lr = learning_rate(config, run.step)
            for group in optimizer.param_groups:
                group["lr"] = lr

            # One draw for all micro-batches: together they are exactly the large batch.
            n_windows = config.batch_size * config.grad_accum
            x, y = random_windows(data.tokens, data.block_size, n_windows, data.generator, run.step)
            loss = 0.0
            for i in range(0, n_windows, config.batch_size):
                micro = slice(i, i + config.batch_size)
                # The loss alone: the logits, by far the largest array, are not to live on.
                micro_loss = model(x[micro], y[micro])[1] / config.grad_accum
                micro_loss.backward()  # adds to the gradients that are there
                loss += micro_loss.item()

            grad_norm = tg.optim.clip_grad_norm(parameters, config.grad_clip or math.inf)
            refuse_nonfinite(run, loss, grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            run.step += 1

            speed = config.tokens_per_step / (time.perf_counter() - started)
            figures = {"loss": loss, "lr": lr, "grad_norm": grad_norm, "tokens_per_s": round(speed)}
            if run.step % config.eval_interval == 0 or run.step == config.max_iters:
                figures["val_loss"] = validate(run)
            progress.step(run.step, **figures)
            if "val_loss" in figures:
                save(run)
        if run.saved_step != run.step:
            save(run)
    return 128 + stop.received if stop.received and run.step < config.max_iters else 0


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the rate of a step: up in a line, down in a cosine, then flat (nanoGPT's schedule)."""
    return tg.optim.warmup_cosine(
        step, lr=config.lr, min_lr=config.min_lr, warmup_iters=config.warmup_iters,
        lr_decay_iters=config.lr_decay_iters or config.max_iters,
    )  # fmt: skip


def validate(run: Run) -> float:
    """Return the estimated validation loss, and remember the best."""
    loss = estimate_loss(run.model, run.val_loader, run.config.eval_iters)
    if run.best_val_loss is None or loss < run.best_val_loss:
        run.best_val_loss, run.best_step = loss, run.step
    return loss


def save(run: Run) -> None:
    """Write a checkpoint, from which the run can go on exactly."""
    state = RunState(
        step=run.step,
        model_config=run.model.config,
        train_config=run.config,
        data_sha256=run.data_sha256,
        rng=tg.random.default_generator.state_dict(),
        best_val_loss=run.best_val_loss,
        best_step=run.best_step,
    )
    save_checkpoint(run.folder, state, run.model, run.optimizer, run.tokenizer)
    run.saved_step = run.step


def refuse_nonfinite(run: Run, loss: float, grad_norm: float) -> None:
    """Raise UserError before nan or infinity reaches the weights."""
    if not math.isfinite(loss + grad_norm):
        raise UserError(
            f"step {run.step + 1}: loss {loss:g}, gradient norm {grad_norm:g}: training has "
            f"diverged; a lower --lr may help. Checkpoints in {run.folder} are from before"
        )


class StopSignals:
    """In a `with`: the first Ctrl-C or SIGTERM is only noted, a second acts as it always did."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def __enter__(self) -> StopSignals:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        except ValueError:
            pass  # not the main thread: signals are not ours to handle
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()
