"""--replay: a saved step once more, as it was and in float64, and what that says about it."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import tensorgrad as tg
from gpt.checkpoint import Checkpoint, load_checkpoint, read_extra
from gpt.cli import use_backend
from gpt.config import UserError
from gpt.train.nonfinite import BATCH, find_culprit, largest_gradients
from gpt.train.step import accumulate_gradients

SHOWN = 5  # parameters with the largest gradients


def replay(path: str, backend: str | None = None) -> int:
    """Repeat the step in a folder that a run has saved, print what comes out, and return 0.

    Raises UserError where there is no such step.
    """
    folder = Path(path).parent if Path(path).name == BATCH else Path(path)
    if not (folder / BATCH).exists():
        raise UserError(f"{folder}: no {BATCH} in it: --replay takes what a step that was not finite has left")
    checkpoint = load_checkpoint(folder, optimizer=False)
    batch = read_extra(folder, BATCH)
    config = checkpoint.state.train_config
    use_backend(backend or config.backend, None, config.dtype)
    print(f"replay   step {checkpoint.state.step + 1}, {batch['x'].shape[0]} windows of {batch['x'].shape[1]} tokens")
    own = config.dtype if config.half else "float32"
    print(f"so       {_conclusion(own, *(_repeat(checkpoint, batch, dtype) for dtype in (own, 'float64')))}")
    return 0


def _repeat(checkpoint: Checkpoint, batch: dict[str, Any], dtype: str) -> bool:
    """Print one repetition and return whether all of it is finite."""
    model = checkpoint.build_model()
    model.astype(dtype)
    model.train()
    state = checkpoint.state
    tg.random.default_generator.load_state_dict(state.rng)
    compute = partial(accumulate_gradients, model, batch["x"], batch["y"], state.train_config.batch_size)
    with np.errstate(all="ignore"):  # what is not finite is said here
        loss = compute()
        norm = tg.optim.clip_grad_norm(model.parameters(), math.inf)
        print(f"{dtype:8} loss {loss:g}, gradient norm {norm:g}")
        if not math.isfinite(loss + norm):
            print(f"         {find_culprit(model, compute, state.rng)}")
            return False
    largest = sorted(largest_gradients(model), key=lambda entry: -entry[1])[:SHOWN]
    print("         largest gradients: " + ", ".join(f"{name} {value:.3g}" for name, value in largest))
    return True


def _conclusion(own: str, finite: bool, finite64: bool) -> str:
    if finite:
        return "the step is finite here: it was other kernels or another machine that made it not finite"
    if finite64:
        return f"it is the range of {own} that the values leave: the mathematics is sound"
    return "more digits do not help: the weights, the batch or the mathematics are at fault"
