"""A step whose loss or gradient is not finite: what made it so, and what is saved to look at it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import tensorgrad as tg
from gpt.checkpoint import Snapshot, write_folder
from gpt.config import UserError
from gpt.data import Array
from gpt.model import GPT
from gpt.train.run import Run
from gpt.train.saver import Saver, first_nonfinite, state_of

BATCH = "batch.safetensors"  # beside the files of a checkpoint: x and y


def find_culprit(model: GPT, compute: Callable[[], Any], rng: dict[str, Any]) -> str:
    """Compute a step once more, from the same random counters, and return in one line what is first not finite in it.

    The gradients are those of the step when this returns, or a part of them.
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
    if largest < 1e15:  # squared and summed up, it is far from the end of float32
        return "computed once more, everything is finite: suspect the memory, the power or the cooling of this machine"
    return f"every value is finite, and the norm of the gradient is not: parameter {name} has one of {largest:.3g}"


def largest_gradients(model: GPT) -> list[tuple[str, float]]:
    """Return the name and the largest absolute gradient of every parameter that has one."""
    return [(name, float(abs(p.grad).max())) for name, p in model.named_parameters() if p.grad is not None]


class NonFiniteSteps:
    """What a run does with steps that are not finite: it stops, or counts them and leaves its weights as they are.

    The first is computed once more to name what made it, and saved with its batch for `--replay`.
    """

    def __init__(self, run: Run, saver: Saver) -> None:
        self.run = run
        self.saver = saver
        self.explained = False

    def handle(self, step: int, loss: float, grad_norm: float, batch: tuple[Array, Array], rng: dict[str, Any],
               compute: Callable[[], Any]) -> None:  # fmt: skip
        """Take the step for not done; UserError where that is to end the run, or where no later one could be better.

        step: its number, counted from 1. rng: the random counters before it. compute: does its forward and backward
        again.
        """
        run = self.run
        run.skipped += 1
        if self.explained:
            return
        self.explained = True
        culprit = find_culprit(run.model, compute, rng)
        what = f"step {step}: loss {loss:g}, gradient norm {grad_norm:g}: {culprit}"
        try:
            saved = f"python train.py --replay {self._save(step, batch, rng)} repeats it in float64"
        except UserError as error:
            saved = str(error)
        hopeless = first_nonfinite(run.model.state_dict())
        if run.config.on_nonfinite == "stop" or hopeless:
            if run.group.rank:
                run.group.barrier()  # where the first process does not come: it says what is wrong, and ends all
            advice = "" if hopeless else " A lower --lr may help, or --on-nonfinite skip."
            raise UserError(f"{what}. {saved}.{advice} Checkpoints in {run.folder} are from before")
        self.saver.progress.say(f"{what}. Skipped, as all such steps will be. {saved}")

    def _save(self, step: int, batch: tuple[Array, Array], rng: dict[str, Any]) -> Any:
        self.saver.wait()  # the disk is for one at a time
        run = self.run
        target = run.folder / f"nonfinite-{step:06d}"
        if run.group.rank:  # the first process of the group writes it
            return target
        state = replace(state_of(run), step=step - 1, rng=rng)
        snapshot = Snapshot.take(state, run.model, run.optimizer, run.tokenizer, copy=False)
        write_folder(target, snapshot, {BATCH: dict(zip("xy", batch, strict=True))})
        return target
