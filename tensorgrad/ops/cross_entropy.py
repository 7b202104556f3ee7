"""Cross-entropy, the loss of a language model: alone, and together with the product that computes the logits."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

from tensorgrad.autograd import Context, op
from tensorgrad.backend import Array, Backend
from tensorgrad.backend.arrays import Quantized, as_rows, is_half, snapshot
from tensorgrad.ops.fused import fused
from tensorgrad.ops.linalg import linear

__all__ = ["cross_entropy", "linear_cross_entropy"]

Reduction = Literal["mean", "sum", "none"]


@op
def cross_entropy(
    k: Backend, logits: Array, targets: Array, *,
    ignore_index: int = -100, label_smoothing: float = 0.0, reduction: Reduction = "mean",
) -> tuple[Array, Any]:  # fmt: skip
    """-log softmax(logits)[target], in nats.

    logits (..., V), targets (...) integer -> a scalar, or (...) with reduction "none"; at least float32. Targets equal
    to `ignore_index` are ignored; if all are, the mean is 0. label_smoothing s replaces the target distribution by
    (1 - s) target + s / V (Szegedy et al. 2016, arXiv:1512.00567). dlogits = softmax - target. Saves the logits and
    their logsumexp. Raises ValueError for shapes that do not fit, IndexError for a target outside 0 to V - 1.
    """
    shape, options = logits.shape, (ignore_index, label_smoothing)
    targets, reduced, dlosses = _reduction(k, "cross_entropy", shape, logits.dtype, targets, *options, reduction)
    rows = as_rows(k.floating(logits))
    losses, lse = k.cross_entropy(rows, targets, *options)

    def backward(dy: Array) -> Array:
        return k.cross_entropy_backward(dlosses(dy, slice(None)), rows, targets, lse, *options).reshape(shape)

    return reduced(losses), backward


def plain_linear_cross_entropy(
    x: Any, weight: Any, targets: Any, *,
    ignore_index: int = -100, label_smoothing: float = 0.0, reduction: Reduction = "mean",
) -> Any:  # fmt: skip
    """`linear_cross_entropy` as a composition of plain ops, which keep all logits."""
    options = {"ignore_index": ignore_index, "label_smoothing": label_smoothing, "reduction": reduction}
    return cross_entropy(linear(x, weight), targets, **options)


@fused(plain_linear_cross_entropy)
@op
def linear_cross_entropy(
    k: Backend, x: Array, weight: Array, targets: Array, *,
    ignore_index: int = -100, label_smoothing: float = 0.0, reduction: Reduction = "mean",
    ctx: Context,
) -> tuple[Array, Any]:  # fmt: skip
    """The cross-entropy of the logits x @ weight^T, computed for a block of rows at a time; options of `cross_entropy`.

    x (..., n), weight (V, n), targets (...) integer -> a scalar, or (...) with reduction "none".
    Forward computes the logits of a block and, from them, the gradients for dy = 1; backward only multiplies those by
    dy (Hsu et al. 2024, arXiv:2410.10989). Saves the operands and a gradient of each. With "none", where every row has
    its own dy, and in half precision, where gradients must be multiplied by the loss scale before they are rounded,
    it saves all logits instead, and backward computes their gradient for a block at a time.
    With dlogits of `cross_entropy`: dx = dlogits weight, dweight = dlogits^T x over all rows.
    """
    if x.ndim == 0 or weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"linear_cross_entropy: x {x.shape} does not fit weight {weight.shape}: (..., n) and (V, n)")
    dtypes = [a.dtype for a in (x, weight) if not isinstance(a, Quantized)]
    shape, dtype = (*x.shape[:-1], weight.shape[0]), k.xp.result_type(*dtypes)
    options = (ignore_index, label_smoothing)
    targets, reduced, dlosses = _reduction(k, "linear_cross_entropy", shape, dtype, targets, *options, reduction)
    rows, blocks = as_rows(x), list(_blocks(k, targets.size, weight.shape[0]))

    def forward(block: slice, losses: Array) -> tuple[Array, Array]:
        logits = k.linear(rows[block], weight, None)
        losses[block], lse = k.cross_entropy(logits, targets[block], *options)
        return logits, lse

    def dlogits(dy: Array, block: slice, logits: Array, lse: Array, out: Array | None = None) -> Array:
        return k.cross_entropy_backward(dlosses(dy, block), logits, targets[block], lse, *options, out=out)

    losses = k.xp.empty(targets.size, k.xp.result_type(dtype, k.xp.float32))
    gradients = _gradients(k, x.shape, rows, weight, blocks, ctx.needs_grad)
    if not any(ctx.needs_grad):
        gradients(lambda block: forward(block, losses)[0])  # visits every block, and computes no gradient
        return reduced(losses), None
    if reduction == "none" or any(map(is_half, dtypes)):
        logits, lse = forward(slice(None), losses)
        return reduced(losses), lambda dy: gradients(lambda part: dlogits(dy, part, logits[part], lse[part]))
    backward = _with_gradients(k, losses, forward, dlogits, gradients)
    return reduced(losses), backward


def _with_gradients(k: Backend, losses: Array, forward: Any, dlogits: Any, gradients: Any) -> Callable[[Array], Any]:
    """Compute all losses and the gradients for dy = 1; return a backward that multiplies these by dy.

    The first call of backward transfers these arrays to the tape, which may write into them. A second call, through a
    retained graph, therefore computes them once more.
    """
    one, n_rows = k.xp.ones((), losses.dtype), losses.size

    def forward_and_dlogits(block: slice, losses: Array) -> Array:
        logits, lse = forward(block, losses)
        return dlogits(one, block, logits, lse, out=logits)

    computed = [gradients(lambda block: forward_and_dlogits(block, losses))]

    def backward(dy: Array) -> tuple[Array | None, ...]:
        both = computed.pop() if computed else gradients(lambda block: forward_and_dlogits(block, k.xp.empty(n_rows)))
        factor = k.number(dy)
        if type(factor) is not float or factor != 1:
            k.scale([gradient for gradient in both if gradient is not None], factor)
        return both

    return backward


def _gradients(
    k: Backend, shape: tuple[int, ...], rows: Array, weight: Array, blocks: list[slice], needs_grad: tuple[bool, ...]
) -> Callable[[Callable[[slice], Array]], tuple[Array | None, Array | None]]:
    """Return a function that computes dx and dweight, None where not needed, from a function block -> dlogits."""

    def gradients(dlogits: Callable[[slice], Array]) -> tuple[Array | None, Array | None]:
        dx, dweight = k.xp.empty(shape, rows.dtype) if needs_grad[0] else None, None
        for block in blocks:
            part = dlogits(block)
            if dx is not None:
                as_rows(dx)[block] = k.linear_backward_x(part, weight)
            if dweight is not None:
                k.add_matmul(dweight, part.T, rows[block])
            elif needs_grad[1]:
                dweight = k.linear_backward_weight(part, rows[block])
            del part  # before the next one is computed: these are the largest arrays of a step
        return dx, dweight

    return gradients


def _reduction(
    k: Backend, name: str, shape: tuple[int, ...], dtype: Any, targets: Any, ignore_index: int, label_smoothing: float,
    reduction: Reduction,
) -> tuple[Array, Callable[[Array], Array], Callable[[Array, slice], Array]]:  # fmt: skip
    """Check the arguments for logits of that shape and dtype. Return the flat targets, `reduced` and `dlosses`.

    reduced(losses) is the loss. dlosses(dy, block) is the gradient of the losses of a block of rows.
    """
    targets = snapshot(k.asarray(targets))
    if not shape or targets.shape != shape[:-1]:
        raise ValueError(f"{name}: targets {targets.shape} do not fit logits {shape}: {shape[:-1]} is needed")
    if targets.dtype.kind not in "iu":
        raise TypeError(f"{name}: targets have dtype {targets.dtype}, not an integer one")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{name}: reduction={reduction!r} is none of 'mean', 'sum' and 'none'")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{name}: label_smoothing {label_smoothing} is not between 0 and 1")
    flat = targets.reshape(-1)
    kept = flat != ignore_index
    k.check_indices(name, k.xp.where(kept, flat, 0), shape[-1], lowest=0)
    count = k.xp.maximum(kept.sum(dtype=k.xp.float32 if is_half(dtype) else dtype), 1)  # stays on the device

    def reduced(losses: Array) -> Array:
        if reduction == "none":
            return losses.reshape(shape[:-1])
        return losses.sum() / count if reduction == "mean" else losses.sum()

    def dlosses(dy: Array, block: slice) -> Array:
        each = dy.reshape(-1)[block] if reduction == "none" else k.xp.broadcast_to(dy, flat[block].shape)
        return each / count if reduction == "mean" else each

    return flat, reduced, dlosses


def rows_at_a_time(k: Backend, n_rows: int, n_classes: int) -> int:
    """The number of rows in a block: all, or the largest power of two with at most `logits_block` logits."""
    most = max(1, k.logits_block // max(n_classes, 1))
    return max(n_rows, 1) if n_rows <= most else 2 ** (most.bit_length() - 1)


def _blocks(k: Backend, n_rows: int, n_classes: int) -> Iterator[slice]:
    """The blocks of rows, at least one; the last may be smaller than the others."""
    size = rows_at_a_time(k, n_rows, n_classes)
    return (slice(start, start + size) for start in range(0, max(n_rows, 1), size))
