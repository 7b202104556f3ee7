"""Losses other than cross-entropy: compositions of other ops."""

from typing import Any, Literal

from tensorgrad.autograd import Variable
from tensorgrad.backend import backend_of
from tensorgrad.ops.elementary import softplus
from tensorgrad.ops.elementwise import add, multiply, negative, square, subtract, where
from tensorgrad.ops.indexing import take_along_axis
from tensorgrad.ops.reduction import mean, sum

__all__ = ["binary_cross_entropy_with_logits", "mse_loss", "nll_loss"]

Reduction = Literal["mean", "sum", "none"]


def mse_loss(x: Any, target: Any, reduction: Reduction = "mean") -> Any:
    """(x - target)^2, for operands of one shape -> a scalar, or that shape with reduction "none"."""
    _require_one_shape("mse_loss", x, target)
    return _reduced("mse_loss", square(subtract(x, target)), reduction)


def binary_cross_entropy_with_logits(x: Any, target: Any, reduction: Reduction = "mean") -> Any:
    """-target log sigmoid(x) - (1 - target) log(1 - sigmoid(x)), without overflow; shapes as in `mse_loss`."""
    _require_tensor("binary_cross_entropy_with_logits", x=x)
    _require_one_shape("binary_cross_entropy_with_logits", x, target)
    losses = add(softplus(multiply(x, -1.0)), multiply(x, 1 - target))
    return _reduced("binary_cross_entropy_with_logits", losses, reduction)


def nll_loss(log_p: Any, targets: Any, ignore_index: int = -100, reduction: Reduction = "mean") -> Any:
    """-log_p[target], for log probabilities (..., V) and targets (...) integer: `cross_entropy` after log_softmax."""
    _require_tensor("nll_loss", log_p=log_p)
    k = backend_of("nll_loss", [log_p.data])
    targets = k.asarray(targets.data if isinstance(targets, Variable) else targets)
    if targets.shape != log_p.shape[:-1]:
        raise ValueError(f"nll_loss: targets {targets.shape} do not fit {log_p.shape}: {log_p.shape[:-1]} is needed")
    kept = targets != ignore_index
    picked = take_along_axis(log_p, (targets * kept)[..., None], axis=-1)[..., 0]
    losses = where(kept, negative(picked), 0.0)  # an ignored one may be infinite
    if reduction != "mean":
        return _reduced("nll_loss", losses, reduction)
    return sum(losses) / max(int(kept.sum()), 1)


def _require_tensor(name: str, **operands: Any) -> None:
    for operand, x in operands.items():
        if not isinstance(x, Variable):
            raise TypeError(f"{name}: {operand} is no Tensor but {type(x).__name__}")


def _require_one_shape(name: str, x: Any, target: Any) -> None:
    if x.shape != target.shape:
        raise ValueError(f"{name}: x {x.shape} and target {target.shape} differ in shape")


def _reduced(name: str, losses: Any, reduction: str) -> Any:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{name}: reduction={reduction!r} is none of 'mean', 'sum' and 'none'")
    return losses if reduction == "none" else (mean if reduction == "mean" else sum)(losses)
