"""The training loop, top to bottom, and what goes with it: validation, checkpoints, Ctrl-C."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

import tensorgrad as tg
from gpt.config import TrainConfig
from gpt.data import Array, random_windows
from gpt.evaluate import estimate_loss
from gpt.model import GPT
from gpt.train.config_file import write_config
from gpt.train.nonfinite import NonFiniteSteps
from gpt.train.observers import make_observers
from gpt.train.progress import Progress, Unseen
from gpt.train.run import Run, claimed_folder
from gpt.train.saver import Saver
from gpt.train.signals import StopSignals
from gpt.train.step import Figures, Readings, Step, accumulate_gradients
from tensorgrad.distributed import GradientReducer


def train(run: Run) -> int:
    """Take the steps that are left, and return 0; or after Ctrl-C, 130, after SIGTERM, 143, and after SIGHUP, 129.

    Such a signal lets the step end and saves. Raises UserError at a step that is not finite, unless those are to be
    skipped.
    """
    config, model, group = run.config, run.model, run.group
    prepare_group(run)
    model.train()
    model.recompute = config.recompute
    if not (group.rank or config.half):
        tg.get_backend().compile_ahead()
    step = Step(run, GradientReducer(model.parameters(), group), gradient_ratios if config.log_ratios else None)
    readings = Readings(config)
    with (
        claimed_folder(run),
        StopSignals() as stop,
        make_progress(run) as progress,
        Saver(run, progress) as saver,
        np.errstate(all="ignore"),  # every step is looked at, and what is wrong with it said
    ):
        nonfinite = NonFiniteSteps(run, saver)
        if not group.rank:
            write_config(run.folder, config)
            progress.observers = make_observers(run, progress.say)

        def settle() -> None:
            """Read, look at and write down the steps that were not yet."""
            rows = readings.read()
            look_for_nonfinite(run, rows, nonfinite, None)
            show(progress, rows)

        stopped = 0
        while run.step < config.max_iters and not (stopped := stop.anywhere(group)):
            readings.begin()
            lr = learning_rate(config, run.step)
            with saver.saving_first(settle):  # where the data is gone or cut short, what was learnt from it is not lost
                x, y = batch_of(run, run.step)
            rng = tg.random.default_generator.state_dict()
            loss, grad_norm = step(x, y, lr)  # numbers, or on a GPU arrays that are still being computed
            more = {"ratios": step.seen} if config.log_ratios else {}
            readings.steps.append(Figures(run.step + 1, lr, loss, grad_norm, rng, more))

            rows = readings.read() if readings.due() else []
            look_for_nonfinite(run, rows, nonfinite, (x, y))
            run.step += 1
            if run.step % config.eval_interval == 0 or run.step == config.max_iters:
                rows[-1].more["val_loss"] = validate(run)
            with saver.saving_first(settle):
                show(progress, rows)
            if checkpoint_is_due(run):
                saver.save()
        settle()  # where a signal came before they were due
        saver.finish()
    group.barrier()  # mpirun ends all where one ends early, and the first process may have been writing
    return 128 + stopped if stopped and run.step < config.max_iters else 0


def batch_of(run: Run, step: int) -> tuple[Array, Array]:
    """Return the windows of a step, counted from 0: x, y (n, T).

    One draw for all micro-batches and processes: together they are exactly the large batch.
    """
    config, data = run.config, run.train_loader
    n_windows = config.batch_size * config.grad_accum
    return random_windows(data.tokens, data.block_size, n_windows, data.generator, step)


def look_for_nonfinite(
    run: Run, rows: list[Figures], nonfinite: NonFiniteSteps, last: tuple[Array, Array] | None
) -> None:
    """Handle those of these steps that were not finite, which changed nothing; last: the batch of the last of them."""
    for row in rows:
        # Gradients too large for float16 are no error: the scaler has found them, and comes down.
        if not math.isfinite(row.loss if run.scaler.enabled else row.loss + row.grad_norm):
            x, y = last if last is not None and row is rows[-1] else batch_of(run, row.step - 1)
            size = run.config.batch_size // run.group.size
            compute = partial(accumulate_gradients, run.model, x, y, size, run.scaler)
            nonfinite.handle(row.step, row.loss, row.grad_norm, (x, y), row.rng, compute)
            run.optimizer.zero_grad()
        if run.skipped:
            row.more["skipped"] = run.skipped


def show(progress: Progress, rows: list[Figures]) -> None:
    """Write down what came of these steps."""
    for row in rows:
        progress.step(
            row.step, tokens_per_s=row.tokens_per_s, loss=row.loss, lr=row.lr, grad_norm=row.grad_norm, **row.more
        )


def prepare_group(run: Run) -> None:
    """Let every process of the group begin with the weights of the first, and draw dropout's masks of its own."""
    if run.group.size > 1:
        for p in run.model.parameters():
            run.group.broadcast(p.data)
        tg.random.default_generator.seed = (run.config.seed + run.group.rank) % 2**64


def make_progress(run: Run) -> Progress:
    """Return what shows and writes how the run goes: in a group, the first process's affair."""
    if run.group.rank:
        return Unseen()
    patient = run.config.on_save_error == "continue"
    return Progress(run.folder, step=run.step, max_iters=run.config.max_iters, patient=patient)


def gradient_ratios(model: GPT) -> dict[str, float]:
    """Return |gradient| / |weights| for every layer: wte, wpe, h.0, h.1 ..., ln_f."""
    layers: dict[str, list[tg.Tensor]] = {}
    for name, p in model.named_parameters():
        layers.setdefault(".".join(name.split(".")[: 2 if name.startswith("h.") else 1]), []).append(p)
    norm = tg.get_backend().global_norm
    return {
        layer: float(norm([p.grad for p in members])) / (float(norm([p.data for p in members])) or math.inf)
        for layer, members in layers.items()
    }


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the rate of a step: up in a line, down in a cosine, then flat (nanoGPT's schedule)."""
    return tg.optim.warmup_cosine(
        step, lr=config.lr, min_lr=config.min_lr, warmup_iters=config.warmup_iters,
        lr_decay_iters=config.lr_decay_iters or config.max_iters,
    )  # fmt: skip


def validate(run: Run) -> float:
    """Return the estimated validation loss, and remember the best."""
    loss = estimate_loss(run.model, run.val_loader, run.config.eval_iters, run.group)
    if math.isfinite(loss) and (run.best_val_loss is None or loss < run.best_val_loss):
        run.best_val_loss, run.best_step = loss, run.step
    return loss


def checkpoint_is_due(run: Run) -> bool:
    """Whether this step is one to save: each so many are, and the best so far; the last is saved in any case."""
    interval = run.config.checkpoint_interval or run.config.eval_interval
    return run.step % interval == 0 or run.step == run.best_step
