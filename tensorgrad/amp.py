"""Mixed precision: loss scaling, which keeps small gradients in float16 from underflowing to 0."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from tensorgrad.backend import Array, backend_of, get_backend
from tensorgrad.backend.arrays import is_half
from tensorgrad.optim import Optimizer
from tensorgrad.tensor import Tensor


class GradScaler:
    """Multiplies the loss so that gradients fit float16, and skips steps whose gradients overflow (as PyTorch's).

        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)  # only if gradients are clipped or looked at
        scaler.step(optimizer)
        scaler.update()

    The scale is multiplied by backoff_factor after an overflow, and by growth_factor after growth_interval steps
    without one (Micikevicius et al. 2018, arXiv:1710.03740). It stays on the backend: no method waits for a GPU, except
    `get_scale` and `state_dict`. If not enabled, `step` calls `optimizer.step()` and the other methods do nothing.
    Raises ValueError for options out of range.
    """

    _scale: Any
    _tracker: Any  # steps without an overflow since the scale last changed

    def __init__(
        self, init_scale: float = 2.0**16, growth_factor: float = 2.0, backoff_factor: float = 0.5,
        growth_interval: int = 2000, enabled: bool = True,
    ) -> None:  # fmt: skip
        finite = 0 < init_scale < math.inf and 1 < growth_factor < math.inf
        if not finite or not 0 < backoff_factor < 1 or not growth_interval >= 1:
            raise ValueError(
                f"GradScaler: init_scale {init_scale} must be above 0, growth_factor {growth_factor} above 1, and "
                f"finite, backoff_factor {backoff_factor} between 0 and 1, growth_interval {growth_interval} at least 1"
            )
        self.enabled = enabled
        self.growth_factor, self.backoff_factor, self.growth_interval = growth_factor, backoff_factor, growth_interval
        self._found: dict[int, Array] = {}  # id of the optimiser -> whether any of its gradients is not finite
        self._stepped: set[int] = set()
        self._set(init_scale, 0)

    def overflowing(self) -> AbstractContextManager[Any]:
        """A context in which NumPy does not warn of overflows in float16: `step` detects them."""
        return np.errstate(over="ignore", invalid="ignore") if self.enabled else nullcontext()

    def scale(self, loss: Tensor) -> Tensor:
        """The loss times the scale, to call backward on."""
        return loss * Tensor(self._scale) if self.enabled else loss

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the scale, in place.

        Raises RuntimeError for a second call without `update` in between, ValueError for gradients in half precision.
        """
        if not self.enabled:
            return
        if id(optimizer) in self._found:
            raise RuntimeError("GradScaler: unscale_ was called a second time; call update in between")
        grads = [p.grad for p in optimizer.params if p.grad is not None]
        if any(is_half(grad.dtype) for grad in grads):
            raise ValueError("GradScaler: gradients in half precision cannot be unscaled: use master_weights")
        found = self._xp.zeros((), bool)
        if grads:
            k = backend_of("GradScaler", grads)
            k.scale(grads, 1 / self._scale)
            found = ~self._xp.isfinite(k.xp.asarray(k.global_norm(grads)))
        self._found[id(optimizer)] = found

    def step(self, optimizer: Optimizer, skip: bool | Array = False, grad_scale: float | Array = 1.0) -> None:
        """Call `optimizer.step`, which skips the update if `skip`, or if a gradient is not finite; see there.

        Unscales the gradients first unless `unscale_` has. Raises RuntimeError for a second call without `update`.
        """
        if not self.enabled:
            optimizer.step(skip, grad_scale)
            return
        if id(optimizer) in self._stepped:
            raise RuntimeError("GradScaler: step was called a second time; call update in between")
        if id(optimizer) not in self._found:
            self.unscale_(optimizer)
        self._stepped.add(id(optimizer))
        optimizer.step(self._found[id(optimizer)] | skip, grad_scale)

    def update(self) -> None:
        """Adapt the scale to the gradients since the last update. Raises RuntimeError before any step or unscale_."""
        if not self.enabled:
            return
        if not self._found:
            raise RuntimeError("GradScaler: update was called before any step or unscale_")
        xp, found = self._xp, sum(self._found.values()) > 0
        grown = self._tracker + 1 >= self.growth_interval
        fits = self._scale <= float(np.finfo(np.float32).max) / self.growth_factor
        factor = xp.where(found, self.backoff_factor, xp.where(grown & fits, self.growth_factor, 1.0))
        self._scale *= factor.astype(xp.float32)  # in place: a recorded CUDA graph refers to this memory
        self._tracker[...] = xp.where(found | grown, 0, self._tracker + 1)
        self._found.clear()
        self._stepped.clear()

    def get_scale(self) -> float:
        """The scale, 1.0 if not enabled. On a GPU it waits for the last update."""
        return float(self._scale) if self.enabled else 1.0

    def state_dict(self) -> dict[str, Any]:
        """The scale, the options and the step counter under PyTorch's names; {} if not enabled."""
        if not self.enabled:
            return {}
        options = {name: getattr(self, name) for name in ("growth_factor", "backoff_factor", "growth_interval")}
        return {"scale": self.get_scale(), **options, "_growth_tracker": int(self._tracker)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict`. Raises ValueError if it is not valid."""
        if not self.enabled:
            return
        own = self.state_dict()
        if state.keys() != own.keys():
            raise ValueError(f"GradScaler: {sorted(state.keys() ^ own.keys())[0]!r} is missing or unexpected")
        GradScaler(*(state[name] for name in ("scale", "growth_factor", "backoff_factor", "growth_interval")))
        self.growth_factor, self.backoff_factor = float(state["growth_factor"]), float(state["backoff_factor"])
        self.growth_interval = int(state["growth_interval"])
        self._set(float(state["scale"]), int(state["_growth_tracker"]))

    def _set(self, scale: float, tracker: int) -> None:
        self._xp = get_backend().xp
        self._scale = get_backend().asarray(scale, "float32")  # the dtype of PyTorch's scale, for equal rounding
        self._tracker = get_backend().asarray(tracker, "int64")
