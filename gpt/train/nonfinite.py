"""Steps whose loss or gradient is not finite: finding the cause, saving the step, and repeating it (`--replay`)."""

import math
import shlex
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import tensorgrad as tg
from gpt.checkpoint import Checkpoint, RunState, Snapshot, load_checkpoint, read_extra, write_folder
from gpt.cli import use_backend
from gpt.config import UserError
from gpt.train.run import Run, freeze_parts
from gpt.train.saver import Saver, first_nonfinite, state_of
from gpt.train.step import accumulate_gradients
from gpt.train.task import Task, language_model
from gpt.weights import Model
from tensorgrad.backend import Array

BATCH = "batch.safetensors"  # x, y ..., beside the files of a checkpoint
N_SHOWN = 5  # parameters with the largest gradients


def find_cause(model: Model, compute: Callable[[], Any], rng: dict[str, Any]) -> str:
    """Repeat a step from the same random counters and return, in one line, what is first not finite in it.

    compute: runs the forward and backward of the step. When this returns, the gradients are those of the step, or some
    of them.
    """
    generator = tg.random.default_generator
    after = generator.state_dict()
    generator.load_state_dict(rng)
    for p in model.parameters():
        p.grad = None
    try:
        with tg.detect_anomaly(model):
            compute()
    except tg.NonFiniteError as error:
        return str(error)
    finally:
        generator.load_state_dict(after)
    name, largest = max(largest_gradients(model), key=lambda entry: entry[1])
    if largest < 1e15:  # the sum of its squares is far from the range of float32
        return "everything is finite when computed again: check the memory, power and cooling of this machine"
    return f"every value is finite, but the norm of the gradient is not: parameter {name} has one of {largest:.3g}"


def largest_gradients(model: Model) -> list[tuple[str, float]]:
    """Return the name and the largest absolute gradient of every parameter that has a gradient."""
    return [(name, float(abs(p.grad).max())) for name, p in model.named_parameters() if p.grad is not None]


class NonFiniteSteps:
    """Handles the steps of a run that are not finite: it stops the run, or counts them; the weights are unchanged.

    The first such step is repeated to find its cause, and saved with its batch for `--replay`.
    """

    def __init__(self, run: Run, saver: Saver) -> None:
        self.run = run
        self.saver = saver
        self.explained = False

    def handle(self, step: int, loss: float, grad_norm: float, batch: tuple[Array, ...], rng: dict[str, Any],
               compute: Callable[[], Any]) -> None:  # fmt: skip
        """Count the step as skipped; UserError where the configuration says stop, or later steps cannot be finite.

        step: its number, counted from 1. rng: the random counters before it. compute: runs its forward and backward.
        """
        run = self.run
        run.skipped += 1
        if self.explained:
            return
        self.explained = True
        cause = find_cause(run.model, compute, rng)
        what = f"step {step}: loss {loss:g}, gradient norm {grad_norm:g}: {cause}"
        try:
            saved = f"python train.py --replay {shlex.quote(str(self._save(step, batch, rng)))} repeats it in float64"
        except UserError as error:
            saved = str(error)
        hopeless = first_nonfinite({name: p.data for name, p in run.model.named_parameters()})
        if run.config.on_nonfinite == "stop" or hopeless:
            if run.group.rank:
                run.group.barrier()  # which rank 0 never enters: it prints the error and ends all processes
            advice = "" if hopeless else " A lower --lr may help, or --on-nonfinite skip."
            raise UserError(f"{what}. {saved}.{advice} The checkpoints in {run.folder} are of earlier steps")
        self.saver.progress.print(f"{what}. This and later such steps are skipped. {saved}")

    def _save(self, step: int, batch: tuple[Array, ...], rng: dict[str, Any]) -> Path:
        self.saver.wait()  # for a checkpoint that is being written
        run = self.run
        target = run.folder / f"nonfinite-{step:06d}"
        if run.group.rank:  # rank 0 writes it
            return target
        state = replace(state_of(run), step=step - 1, rng=rng)
        snapshot = Snapshot.take(state, run.model, run.optimizer, run.tokenizer, copy=False)
        write_folder(target, snapshot, {BATCH: dict(zip("xyz", batch, strict=False))})
        return target


def replay(path: str, backend: str | None = None, task_of: Callable[[RunState], Task] = language_model) -> int:
    """Repeat a saved step, as it was and in float64, print the results, and return 0.

    task_of: returns the task of the run. Raises UserError where there is no such step.
    """
    folder = Path(path).parent if Path(path).name == BATCH else Path(path)
    if not (folder / BATCH).exists():
        raise UserError(f"{folder}: no {BATCH} in it: --replay needs the folder of a step that was not finite")
    checkpoint = load_checkpoint(folder, optimizer=False)
    batch = read_extra(folder, BATCH)
    config, task = checkpoint.state.train_config, task_of(checkpoint.state)
    use_backend(backend or config.backend, None, config.dtype, numpy_products=checkpoint.state.numpy_products)
    print(f"replay   step {checkpoint.state.step + 1}, {batch['x'].shape[0]} windows of {batch['x'].shape[1]} tokens")
    original = config.dtype if config.half else "float32"
    finite, finite64 = (_repeat(checkpoint, task, batch, dtype) for dtype in (original, "float64"))
    if finite:
        result = "the step is finite here, so other kernels or another machine made it not finite"
    elif finite64:
        result = f"the values exceed the range of {original}: the mathematics is correct"
    else:
        result = "float64 does not help: the weights, the batch or the mathematics are at fault"
    print(f"result   {result}")
    return 0


def _repeat(checkpoint: Checkpoint, task: Task, batch: dict[str, Any], dtype: str) -> bool:
    """Print the results of one repetition and return whether all of them are finite."""
    state = checkpoint.state
    model = task.restore_model(checkpoint, state.train_config)
    freeze_parts(model, state.train_config)
    model.astype(dtype)
    model.train()
    tg.random.default_generator.load_state_dict(state.rng)
    arrays = tuple(batch[name] for name in sorted(batch))  # x, y, and what else the loss takes
    compute = partial(accumulate_gradients, model, arrays, state.train_config.batch_size)
    with np.errstate(all="ignore"):  # values that are not finite are reported below
        loss = compute()
        norm = tg.optim.clip_grad_norm(model.parameters(), math.inf)
        print(f"{dtype:8} loss {loss:g}, gradient norm {norm:g}")
        if not math.isfinite(loss + norm):
            print(f"         {find_cause(model, compute, state.rng)}")
            return False
    largest = sorted(largest_gradients(model), key=lambda entry: -entry[1])[:N_SHOWN]
    print("         largest gradients: " + ", ".join(f"{name} {value:.3g}" for name, value in largest))
    return True
