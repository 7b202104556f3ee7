"""The training loop, top to bottom, and what goes with it: validation, checkpoints, Ctrl-C."""

from __future__ import annotations

import math
import time
from functools import partial

import numpy as np

import tensorgrad as tg
from gpt.config import TrainConfig
from gpt.config_file import write_config
from gpt.data import Array, random_windows
from gpt.evaluate import estimate_loss
from gpt.model import GPT
from gpt.nonfinite import NonFiniteSteps
from gpt.observers import make_observers
from gpt.progress import Progress, Unseen
from gpt.run import Run, claimed_folder
from gpt.saver import Saver
from gpt.signals import StopSignals
from tensorgrad.distributed import ALONE, GradientReducer

UNSCALED = tg.amp.GradScaler(enabled=False)


def train(run: Run) -> int:
    """Take the steps that are left, and return 0; or after Ctrl-C, 130, and after SIGTERM, 143.

    Either signal lets the step end and saves. Raises UserError at a step that is not finite, unless those are to be
    skipped.
    """
    config, model, optimizer, scaler = run.config, run.model, run.optimizer, run.scaler
    parameters = list(model.parameters())
    data, group = run.train_loader, run.group
    prepare_group(run, parameters)
    reducer = GradientReducer(parameters, group)
    model.train()
    model.recompute = config.recompute
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
        stopped = 0
        while run.step < config.max_iters and not (stopped := stop.anywhere(group)):
            started = time.perf_counter()
            lr = learning_rate(config, run.step)
            for options in optimizer.param_groups:
                options["lr"] = lr

            # One draw for all micro-batches and processes: together they are exactly the large batch.
            n_windows = config.batch_size * config.grad_accum
            with saver.saving_first():  # where the data is gone or cut short, what was learnt from it is not lost
                x, y = random_windows(data.tokens, data.block_size, n_windows, data.generator, run.step)
            rng = tg.random.default_generator.state_dict()
            compute = partial(accumulate_gradients, model, x, y, config.batch_size // group.size, scaler)
            loss = compute(reducer)
            scaler.unscale_(optimizer)
            ratios = {"ratios": gradient_ratios(model)} if config.log_ratios else {}
            grad_norm = tg.optim.clip_grad_norm(parameters, config.grad_clip or math.inf)
            if math.isfinite(loss if scaler.enabled else loss + grad_norm):
                scaler.step(optimizer)  # which looks for gradients too large for float16 itself
            else:
                nonfinite.handle(loss, grad_norm, (x, y), rng, compute)
            scaler.update()
            optimizer.zero_grad()
            run.step += 1

            speed = config.tokens_per_step / (time.perf_counter() - started)
            figures = {"loss": loss, "lr": lr, "grad_norm": grad_norm, **ratios}
            if run.skipped:
                figures["skipped"] = run.skipped
            if run.step % config.eval_interval == 0 or run.step == config.max_iters:
                figures["val_loss"] = validate(run)
            progress.step(run.step, tokens_per_s=round(speed), **figures)
            if checkpoint_is_due(run):
                saver.save()
        saver.finish()
    group.barrier()  # mpirun ends all where one ends early, and the first process may have been writing
    return 128 + stopped if stopped and run.step < config.max_iters else 0


def prepare_group(run: Run, parameters: list[tg.Tensor]) -> None:
    """Let every process of the group begin with the weights of the first, and draw dropout's masks of its own."""
    if run.group.size > 1:
        for p in parameters:
            run.group.broadcast(p.data)
        tg.random.default_generator.seed = (run.config.seed + run.group.rank) % 2**64


def make_progress(run: Run) -> Progress:
    """Return what shows and writes how the run goes: in a group, the first process's affair."""
    if run.group.rank:
        return Unseen()
    patient = run.config.on_save_error == "continue"
    return Progress(run.folder, step=run.step, max_iters=run.config.max_iters, patient=patient)


def accumulate_gradients(
    model: GPT,
    x: Array,
    y: Array,
    batch_size: int,
    scaler: tg.amp.GradScaler = UNSCALED,
    reducer: GradientReducer | None = None,
) -> float:
    """Add the gradient of the mean loss over all windows to the parameters, in parts of batch_size; return the loss.

    x, y (n, T): what fits in memory is a part, and the parts together are exactly the large batch. Only dropout's
    masks are not those of the large batch: each part draws its own. With a reducer every process of its group computes
    its share of the windows, and has the loss and gradients of all.
    """
    group = ALONE if reducer is None else reducer.group
    n_windows, loss = len(x), 0.0
    first, last = (n_windows * rank // group.size for rank in (group.rank, group.rank + 1))
    for i in range(first, last, batch_size):
        part = slice(i, i + batch_size)
        on_gradient = reducer.on_gradient if reducer is not None and i + batch_size == last else None
        # The loss alone: the logits, by far the largest array, are not to live on.
        with scaler.overflowing():
            part_loss = model(x[part], y[part])[1] / (n_windows // batch_size)
            scaler.scale(part_loss).backward(on_gradient=on_gradient)  # adds to the gradients that are there
        loss += part_loss.item()
    if reducer is None or group.size == 1:
        return loss
    reducer.wait()
    return float(group.gather([loss]).sum())


def gradient_ratios(model: GPT) -> dict[str, float]:
    """Return |gradient| / |weights| for every layer: wte, wpe, h.0, h.1 ..., ln_f."""
    layers: dict[str, list[tg.Tensor]] = {}
    for name, p in model.named_parameters():
        layers.setdefault(".".join(name.split(".")[: 2 if name.startswith("h.") else 1]), []).append(p)
    norm = tg.get_backend().global_norm
    return {
        layer: norm([p.grad for p in members]) / (norm([p.data for p in members]) or math.inf)
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
