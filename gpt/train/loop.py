"""The training loop, top to bottom, with validation, checkpoints and Ctrl-C."""

import math
from collections.abc import Callable
from contextlib import closing
from functools import partial

import numpy as np

import tensorgrad as tg
from gpt.evaluate import estimate_loss
from gpt.train.config import TrainConfig
from gpt.train.config_file import write_config
from gpt.train.metrics import MetricsBuffer, StepMetrics
from gpt.train.nonfinite import NonFiniteSteps
from gpt.train.observers import make_observers
from gpt.train.progress import NoProgress, Progress
from gpt.train.run import Run, locked_folder
from gpt.train.saver import Saver
from gpt.train.signals import StopSignals
from gpt.train.step import TrainingStep, accumulate_gradients
from gpt.weights import Model
from tensorgrad.backend import Array
from tensorgrad.distributed import GradientReducer


def train(run: Run) -> int:
    """Take the remaining steps and return 0; return 130 after Ctrl-C, 143 after SIGTERM and 129 after SIGHUP.

    After such a signal the current step is completed and saved, and a validation is given up. Raises UserError at a
    step that is not finite, unless such steps are to be skipped.
    """
    config, model, group = run.config, run.model, run.group
    prepare_group(run)
    model.train()
    model.recompute = config.recompute
    reducer = GradientReducer(model.parameters(), group)
    inspect = gradient_ratios if config.log_ratios else None
    take_step = TrainingStep(model, run.optimizer, config, scaler=run.scaler, reducer=reducer, inspect=inspect)
    buffer = MetricsBuffer(config)
    with (
        closing(take_step),
        locked_folder(run),
        StopSignals() as signals,
        make_progress(run) as progress,
        Saver(run, progress) as saver,
        np.errstate(all="ignore"),  # values that are not finite are found and reported at every step
    ):
        nonfinite = NonFiniteSteps(run, saver)
        if not group.rank:
            write_config(run.folder, config)
            progress.observers = make_observers(run, progress.print, lambda: bool(signals.received))

        wait_for_kernels(run, progress, signals)

        def flush() -> None:
            """Check and write the metrics in the buffer."""
            rows = buffer.flush()
            check_finite(run, rows, nonfinite, None)
            write_metrics(progress, rows)

        signal = 0
        while run.step < config.max_iters and not (signal := signals.received_by_any(group)):
            buffer.start_step()
            lr = learning_rate(config, run.step)
            with saver.save_on_error(flush):  # the data may have been deleted or truncated
                batch = batch_of(run, run.step)
            rng = tg.random.default_generator.state_dict()
            x, y, *more_data = batch
            loss, grad_norm = take_step(x, y, lr, *more_data)  # on a GPU, arrays that are still being computed
            more = {"ratios": take_step.inspected} if config.log_ratios else {}
            buffer.steps.append(StepMetrics(run.step + 1, lr, loss, grad_norm, rng, batch[0].size, more))

            rows = buffer.flush() if buffer.should_flush() else []
            check_finite(run, rows, nonfinite, batch)
            run.step += 1
            if run.step % config.eval_interval == 0 or run.step == config.max_iters:
                with progress.activity(run.step, "validating"), signals.interrupting(group) as check_signals:
                    rows[-1].more |= validate(run, check_signals)
            with saver.save_on_error(flush):
                write_metrics(progress, rows)
            if should_save(run):
                saver.save()
        flush()  # after a signal, metrics may be left in the buffer
        saver.finish()
    group.barrier()  # mpirun ends all processes when one ends, and rank 0 may still be writing
    return 128 + signal if signal and run.step < config.max_iters else 0


def wait_for_kernels(run: Run, progress: Progress, signals: StopSignals) -> None:
    """Wait until the kernels of a step are compiled, all processes of a group for those of rank 0, or for a signal."""
    if (compilation := run.compilation) is not None:
        with progress.showing(lambda: f"compiling kernels {compilation.done}/{compilation.total} (first time only)"):
            compilation.wait(until=lambda: signals.received)
    run.group.barrier()


def batch_of(run: Run, step: int) -> tuple[Array, ...]:
    """Return the batch of a step, counted from 0: for a language model the windows x, y (n, T).

    One draw for all micro-batches and processes: together they are exactly one large batch.
    """
    return run.train_loader.draw(run.config.batch_size * run.config.grad_accum, step)


def check_finite(
    run: Run, rows: list[StepMetrics], nonfinite: NonFiniteSteps, last_batch: tuple[Array, ...] | None
) -> None:
    """Handle the steps that were not finite; last_batch: that of the last step, if it is still known."""
    for row in rows:
        # Gradients too large for float16 are expected: the scaler has skipped the step and reduced the scale.
        if not math.isfinite(row.loss if run.scaler.enabled else row.loss + row.grad_norm):
            batch = last_batch if last_batch is not None and row is rows[-1] else batch_of(run, row.step - 1)
            size = run.config.batch_size // run.group.size
            compute = partial(accumulate_gradients, run.model, batch, size, run.scaler)
            nonfinite.handle(row.step, row.loss, row.grad_norm, batch, row.rng, compute)
            run.optimizer.zero_grad()
        if run.skipped:
            row.more["skipped"] = run.skipped


def write_metrics(progress: Progress, rows: list[StepMetrics]) -> None:
    """Show and write the metrics of these steps."""
    for row in rows:
        progress.step(
            row.step, tokens_per_s=row.tokens_per_s, loss=row.loss, lr=row.lr, grad_norm=row.grad_norm, **row.more
        )


def prepare_group(run: Run) -> None:
    """Copy the weights of rank 0 to every process of the group, and give each its own random numbers for dropout."""
    if run.group.size > 1:
        for p in run.model.parameters():
            run.group.broadcast(p.data)
        tg.random.default_generator.seed = (run.config.seed + run.group.rank) % 2**64


def make_progress(run: Run) -> Progress:
    """Return what shows and writes the progress: in a group, only on rank 0."""
    if run.group.rank:
        return NoProgress()
    retry = run.config.on_save_error == "continue"
    return Progress(run.folder, step=run.step, max_iters=run.config.max_iters, retry=retry)


def gradient_ratios(model: Model) -> dict[str, float]:
    """Return |gradient| / |weights| for every layer: wte, wpe, h.0, h.1 ..., ln_f."""
    layers: dict[str, list[tg.Tensor]] = {}
    for path, p in model.named_parameters():
        name = path.removeprefix("model.")  # of a classifier
        if p.requires_grad:
            layers.setdefault(".".join(name.split(".")[: 2 if name.startswith("h.") else 1]), []).append(p)
    norm = tg.get_backend().global_norm
    return {
        layer: float(norm([p.grad for p in members])) / (float(norm([p.data for p in members])) or math.inf)
        for layer, members in layers.items()
    }


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate of a step: a linear warm-up, a cosine decay, then constant (nanoGPT's schedule)."""
    return tg.optim.warmup_cosine(
        step, lr=config.lr, min_lr=config.min_lr, warmup_iters=config.warmup_iters,
        lr_decay_iters=config.lr_decay_iters or config.max_iters,
    )  # fmt: skip


def validate(run: Run, check_signals: Callable[[], None]) -> dict[str, float]:
    """Return the estimated validation loss, and record the best. check_signals: called before every batch.

    With it comes the loss on the general text, if there is one.
    """
    loss = estimate_loss(run.model, run.val_loader, run.config.eval_iters, run.group, check_signals)
    if math.isfinite(loss) and (run.best_val_loss is None or loss < run.best_val_loss):
        run.best_val_loss, run.best_step = loss, run.step
    if run.general_loader is None:
        return {"val_loss": loss}
    general = estimate_loss(run.model, run.general_loader, run.config.eval_iters, run.group, check_signals)
    return {"val_loss": loss, "general_loss": general}


def should_save(run: Run) -> bool:
    """Whether to save this step: one at every interval, and the best so far; the last is saved in any case."""
    interval = run.config.checkpoint_interval or run.config.eval_interval
    return run.step % interval == 0 or run.step == run.best_step
