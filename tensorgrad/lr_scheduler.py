"""Learning-rate schedules as objects: call `step()` after each step of the optimiser."""

from collections.abc import Callable
from typing import Any

from tensorgrad.optim import Optimizer, warmup_cosine


class LambdaLR:
    """The learning rate that each group began with, times lr_lambda(step), where the first step is 0."""

    def __init__(self, optimizer: Optimizer, lr_lambda: Callable[[int], float]) -> None:
        self.optimizer, self.lr_lambda, self.steps = optimizer, lr_lambda, 0
        self.base_lrs = [float(group["lr"]) for group in optimizer.param_groups]
        self._set()

    def lr(self, base: float) -> float:
        """The learning rate of the current step for a group that began with `base`."""
        return base * self.lr_lambda(self.steps)

    def step(self) -> None:
        """Go on to the learning rate of the next step."""
        self.steps += 1
        self._set()

    def get_last_lr(self) -> list[float]:
        """The current learning rate of every group."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """How far the schedule is."""
        return {"steps": self.steps, "base_lrs": self.base_lrs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.steps, self.base_lrs = int(state["steps"]), [float(lr) for lr in state["base_lrs"]]
        self._set()

    def _set(self) -> None:
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            if hasattr(group["lr"], "fill"):  # an array, after `capturable`
                group["lr"].fill(self.lr(base))
            else:
                group["lr"] = self.lr(base)


class WarmupCosine(LambdaLR):
    """`optim.warmup_cosine` from the learning rate that each group began with."""

    def __init__(self, optimizer: Optimizer, *, warmup_iters: int, lr_decay_iters: int, min_lr: float = 0.0) -> None:
        self.options = {"warmup_iters": warmup_iters, "lr_decay_iters": lr_decay_iters, "min_lr": min_lr}
        super().__init__(optimizer, lambda step: 1.0)

    def lr(self, base: float) -> float:
        return warmup_cosine(self.steps, lr=base, **self.options)  # type: ignore[arg-type]
