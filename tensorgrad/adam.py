"""Adam with its own weight decay; `optim.AdamW` is what language models are trained with."""

from typing import Any

from tensorgrad.backend import Array
from tensorgrad.optim import AdamW, Parameters, scaled


class Adam(AdamW):
    """PyTorch's Adam (Kingma and Ba 2015, arXiv:1412.6980): weight_decay p is added to the gradient."""

    def __init__(
        self, params: Parameters, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(params, lr, betas, eps, weight_decay)

    def update_group(
        self, members: list[Any], group: dict[str, Any], skip: bool | Array, grad_scale: float | Array
    ) -> None:
        """Add the decay to the gradients, and update as AdamW without decay does."""
        if decay := group["weight_decay"]:
            members = [(p, scaled(grad, grad_scale) + decay * p.data, state) for p, grad, state in members]
            grad_scale = 1.0
        super().update_group(members, {**group, "weight_decay": 0.0}, skip, grad_scale)
