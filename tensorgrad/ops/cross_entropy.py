"""The loss of a language model: how surprised the logits are by what came."""

from typing import Any, Literal

from tensorgrad.autograd import op
from tensorgrad.backend import Array, Backend


@op
def cross_entropy(
    k: Backend, logits: Array, targets: Array, *,
    ignore_index: int = -100, label_smoothing: float = 0.0, reduction: Literal["mean", "sum", "none"] = "mean",
) -> tuple[Array, Any]:  # fmt: skip
    """-log softmax(logits)[target], in nats.

    logits (..., V), targets (...) integer -> a scalar, or (...) with reduction "none"; at least float32. Targets equal
    to `ignore_index` count for nothing; where all are, the mean is 0. label_smoothing s mixes s / V of every class into
    the target (Szegedy et al. 2016, arXiv:1512.00567). dlogits = softmax - target. Saves logits and their logsumexp.
    Raises ValueError for shapes that do not fit, IndexError for a target that is no class.
    """
    targets = k.asarray(targets)
    if logits.ndim == 0 or targets.shape != logits.shape[:-1]:
        raise ValueError(f"cross_entropy: targets {targets.shape} do not fit logits {logits.shape}: one a row")
    if targets.dtype.kind not in "iu":
        raise TypeError(f"cross_entropy: targets have dtype {targets.dtype}, not an integer one")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"cross_entropy: reduction is {reduction!r}, not 'mean', 'sum' or 'none'")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing {label_smoothing} is not between 0 and 1")
    shape, flat = logits.shape, targets.reshape(-1)
    rows = logits.reshape(flat.size, shape[-1])
    kept = flat != ignore_index
    k.check_indices("cross_entropy", k.xp.where(kept, flat, 0), shape[-1], lowest=0)
    losses, lse = k.cross_entropy(rows, flat, ignore_index, label_smoothing)
    count = k.xp.maximum(kept.sum(dtype=losses.dtype), 1)  # stays on the device

    def backward(dy: Array) -> Array:
        dlosses = dy.reshape(-1) if reduction == "none" else k.xp.broadcast_to(dy, flat.shape)
        if reduction == "mean":
            dlosses = dlosses / count
        return k.cross_entropy_backward(dlosses, rows, flat, lse, ignore_index, label_smoothing).reshape(shape)

    if reduction == "none":
        return losses.reshape(targets.shape), backward
    return losses.sum() / count if reduction == "mean" else losses.sum(), backward
