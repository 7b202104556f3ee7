"""The loss of a language model: how surprised the logits are by what came."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

from tensorgrad.autograd import op
from tensorgrad.backend import Array, Backend
from tensorgrad.backend.base import as_rows

Reduction = Literal["mean", "sum", "none"]
BLOCK = 2**24  # logits whose gradient is made at a time


@op
def cross_entropy(
    k: Backend, logits: Array, targets: Array, *,
    ignore_index: int = -100, label_smoothing: float = 0.0, reduction: Reduction = "mean",
) -> tuple[Array, Any]:  # fmt: skip
    """-log softmax(logits)[target], in nats.

    logits (..., V), targets (...) integer -> a scalar, or (...) with reduction "none"; at least float32. Targets equal
    to `ignore_index` count for nothing; where all are, the mean is 0. label_smoothing s mixes s / V of every class into
    the target (Szegedy et al. 2016, arXiv:1512.00567). dlogits = softmax - target. Saves logits and their logsumexp.
    Raises ValueError for shapes that do not fit, IndexError for a target that is no class.
    """
    shape = logits.shape
    loss, gradient = _loss(k, "cross_entropy", logits, targets, ignore_index, label_smoothing, reduction)
    return loss, lambda dy: gradient(dy, slice(None)).reshape(shape)


@op
def linear_cross_entropy(
    k: Backend, x: Array, weight: Array, targets: Array, *,
    ignore_index: int = -100, label_smoothing: float = 0.0, reduction: Reduction = "mean",
) -> tuple[list[Array], Any]:  # fmt: skip
    """[logits, loss]: logits = x @ weight^T, and their cross-entropy; options and errors as `cross_entropy`'s.

    x (..., n), weight (V, n), targets (...) integer -> (..., V), and a scalar or (...). The same as `linear` and then
    `cross_entropy`, but the gradient of the logits is made for a block of rows at a time and never held as a whole.
    Saves the operands, the logits and their logsumexp.
    """
    if x.ndim == 0 or weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"linear_cross_entropy: x {x.shape} does not fit weight {weight.shape}: (..., n) and (V, n)")
    name, logits, shape = "linear_cross_entropy", k.linear(x, weight, None), x.shape
    loss, gradient = _loss(k, name, logits, targets, ignore_index, label_smoothing, reduction)
    rows, all_logits = as_rows(x), as_rows(logits).shape
    blocks = list(_blocks(len(rows), len(weight)))

    def dlogits(dy: list[Array | None], block: slice) -> Array:
        outer, dloss = dy  # what else was made of the logits, and of the loss
        if dloss is None:
            return outer.reshape(all_logits)[block]  # type: ignore[union-attr]
        inner = gradient(dloss, block)
        if outer is not None:
            inner += outer.reshape(all_logits)[block]
        return inner

    def backward(dy: list[Array | None]) -> tuple[Array, Array]:
        dx, dweight = k.xp.empty(rows.shape, rows.dtype), None
        for block in blocks:
            part = dlogits(dy, block)
            dx[block] = k.linear_backward_x(part, weight)
            if dweight is None:
                dweight = k.linear_backward_weight(part, rows[block])
            else:
                k.add_matmul(dweight, part.T, rows[block])
            del part  # before the next one is made: they are the largest arrays of backward
        return dx.reshape(shape), dweight

    return [logits, loss], backward


def _loss(
    k: Backend, name: str, logits: Array, targets: Any, ignore_index: int, label_smoothing: float, reduction: Reduction
) -> tuple[Array, Callable[[Array, slice], Array]]:
    """The loss, and a function from its gradient and a block of rows to the gradient of those rows' logits."""
    targets = k.asarray(targets)
    if logits.ndim == 0 or targets.shape != logits.shape[:-1]:
        raise ValueError(f"{name}: targets {targets.shape} do not fit logits {logits.shape}: one a row")
    if targets.dtype.kind not in "iu":
        raise TypeError(f"{name}: targets have dtype {targets.dtype}, not an integer one")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{name}: reduction is {reduction!r}, not 'mean', 'sum' or 'none'")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{name}: label_smoothing {label_smoothing} is not between 0 and 1")
    shape, flat = targets.shape, targets.reshape(-1)
    rows = logits.reshape(flat.size, logits.shape[-1])
    kept = flat != ignore_index
    k.check_indices(name, k.xp.where(kept, flat, 0), rows.shape[1], lowest=0)
    losses, lse = k.cross_entropy(rows, flat, ignore_index, label_smoothing)
    count = k.xp.maximum(kept.sum(dtype=losses.dtype), 1)  # stays on the device

    def gradient(dy: Array, block: slice) -> Array:
        dlosses = dy.reshape(-1)[block] if reduction == "none" else k.xp.broadcast_to(dy, flat[block].shape)
        if reduction == "mean":
            dlosses = dlosses / count
        return k.cross_entropy_backward(dlosses, rows[block], flat[block], lse[block], ignore_index, label_smoothing)

    if reduction == "none":
        return losses.reshape(shape), gradient
    return losses.sum() / count if reduction == "mean" else losses.sum(), gradient


def _blocks(n_rows: int, n_classes: int) -> Iterator[slice]:
    """Rows in blocks of one size and at most BLOCK logits; at least one block."""
    n_blocks = max(1, -(-n_rows * n_classes // BLOCK))
    size = max(1, -(-n_rows // n_blocks))
    return (slice(start, start + size) for start in range(0, max(n_rows, 1), size))
