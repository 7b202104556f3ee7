"""What PyTorch computes for a call of an op, and what it computes in float64."""

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import numpy as np
import op_references
from op_calls import FLOATS

from tensorgrad.backend.arrays import is_floating
from tensorgrad.gradcheck.cases import cases

# The names of ops that have another one in PyTorch, or take other arguments.
NAMES = {
    "equal": "eq", "not_equal": "ne", "less": "lt", "less_equal": "le", "greater": "gt", "greater_equal": "ge",
    "bitwise_invert": "bitwise_not",
}  # fmt: skip
INDICES = ("take", "take_along_axis", "index_add", "embedding", "cross_entropy", "linear_cross_entropy", "nll_loss",
           "rotary_embedding", "where", "masked_fill")  # fmt: skip


def _extreme(t: Any, x: Any, axis: Any, keepdims: bool, fn: str) -> Any:
    y = getattr(t, fn)(x, axis, keepdims)
    return y.reshape((1,) * x.ndim) if axis is None and keepdims else y


def _truth(t: Any, x: Any, axis: Any, keepdims: bool, fn: str) -> Any:
    return getattr(t, fn)(x != 0, op_references.axes_of(x, axis), keepdims)


def _count_nonzero(t: Any, x: Any, axis: Any, keepdims: bool) -> Any:
    return (x != 0).sum(op_references.axes_of(x, axis), keepdims)


def _sort(t: Any, x: Any, axis: int, descending: bool) -> Any:
    return t.sort(x, dim=axis, descending=descending, stable=True).values


OWN: dict[str, Callable[..., Any]] = {
    "argmax": lambda t, x, **o: _extreme(t, x, fn="argmax", **o),
    "argmin": lambda t, x, **o: _extreme(t, x, fn="argmin", **o),
    "all": lambda t, x, **o: _truth(t, x, fn="all", **o),
    "any": lambda t, x, **o: _truth(t, x, fn="any", **o),
    "count_nonzero": _count_nonzero,
    "sort": _sort,
    "argsort": lambda t, x, axis, descending: t.argsort(x, dim=axis, descending=descending, stable=True),
    "nonzero": lambda t, x: list(t.nonzero(x, as_tuple=True)),
    "topk": lambda t, x, k, axis: [y.narrow(axis, 0, k) for y in t.sort(x, dim=axis, descending=True, stable=True)],
    "concat": lambda t, *x, axis: t.concat(x, axis),
    "stack": lambda t, *x, axis: t.stack(x, axis),
    "prod": lambda t, x, **o: op_references.torch_prod(t, x.long() if x.dtype == t.bool else x, **o),
    "dropout": lambda t, x, p, training=True: t.nn.functional.dropout(x, p, training),
    "attention": lambda t, *x, **o: _attention(t, *x, **o),
    "clip": lambda t, x, low, high: _clip(t, x, low, high),
    "where": lambda t, c, a, b: t.where(c, a, b),
    "tensordot": lambda t, a, b, axes: t.tensordot(a, b, axes),
}


def _clip(t: Any, x: Any, low: Any, high: Any) -> Any:
    if low is None and high is None:
        return x * 1
    if isinstance(low, t.Tensor) or isinstance(high, t.Tensor):
        low, high = (y if y is None or isinstance(y, t.Tensor) else t.tensor(y, dtype=x.dtype) for y in (low, high))
    return t.clip(x, low, high)


def _attention(t: Any, q: Any, key: Any, v: Any, causal: bool, mask: Any, scale: float | None) -> Any:
    shared = q.shape[1] // key.shape[1]
    key, v = (x.repeat_interleave(shared, dim=1) for x in (key, v))
    scores = (q @ key.mT) * (q.shape[-1] ** -0.5 if scale is None else scale)
    seen = np.broadcast_to(op_references.allowed(q.shape[2], key.shape[2], causal, mask), tuple(scores.shape))
    seen = t.from_numpy(np.array(seen))
    some = seen.any(-1, keepdim=True)  # a query that may attend to nothing gives zeros
    p = t.softmax(scores.masked_fill(~seen, -t.inf).masked_fill(~some, 0), dim=-1)
    return (p @ v).masked_fill(~some, 0)


def counterpart(op: str) -> Callable[..., Any]:
    """fn(torch, *operands, **options): what PyTorch has for an op."""
    fn = OWN.get(op) or getattr(op_references, f"torch_{op}", None) or NAMES.get(op) or cases[op].torch
    if callable(fn):
        return fn
    return lambda t, *operands, **options: attrgetter(fn)(t)(*operands, **options)


def to_torch(t: Any, x: Any, wide: bool, requires_grad: bool = False, index: bool = False) -> Any:
    """An array or number as a tensor of PyTorch, floats as float64 where `wide`; Python's numbers as they are."""
    if x is None or isinstance(x, str | bool | int | float) and not isinstance(x, np.generic):
        return x
    x = np.array(x)
    x = x.astype(x.dtype.newbyteorder("="))
    if x.dtype.kind in "iu" and index:
        x = x.astype(np.int64)  # PyTorch takes indices of uint8 for a mask
    if wide and is_floating(x.dtype):
        y = t.from_numpy(x.astype(np.float64))
    elif x.dtype.name == "bfloat16":
        y = t.from_numpy(x.view(np.int16)).view(t.bfloat16)
    else:
        y = t.from_numpy(x)
    return y.requires_grad_() if requires_grad else y


def to_numpy(t: Any, x: Any) -> Any:
    """A tensor's elements, floats in float64."""
    x = x.detach().resolve_neg()
    return (x.double() if x.is_floating_point() else x).numpy()


class Reference:
    """A call computed by PyTorch from the same operands: `outputs`, and `pull(dys)` for the gradients of operands.

    wide: in float64, also where operands are integers that ops of floating numbers take.
    Raises what PyTorch raises.
    """

    def __init__(
        self, t: Any, op: str, operands: list[Any], options: dict[str, Any], needs: list[bool], wide: bool
    ) -> None:
        self.t, self.wide = t, wide
        self.arguments = op, operands, options, needs
        arrays = [x for x in operands if isinstance(x, np.ndarray | np.generic)]
        if wide and op not in INDICES and any(is_floating(x.dtype) for x in arrays):
            operands = [x.astype(np.float64) if isinstance(x, np.ndarray | np.generic) else x for x in operands]
        if wide and op == "astype" and options["dtype"] in FLOATS:
            options = {"dtype": "float64"}
        if op not in INDICES and all(x.dtype.kind in "iu" for x in arrays):  # for PyTorch, a scalar has no dtype
            operands = [x.astype(np.result_type(*arrays)) if hasattr(x, "dtype") else x for x in operands]
        self.operands = [to_torch(t, x, wide, need, op in INDICES) for x, need in zip(operands, needs, strict=True)]
        self.needs = needs
        result = counterpart(op)(t, *self.operands, **options)
        self.tensors = list(result) if isinstance(result, list | tuple) else [result]
        self.outputs = [to_numpy(t, y) for y in self.tensors]

    def pull(self, dys: list[Any]) -> list[Any]:
        """The gradients of the operands, None for those that need none."""
        pairs = [
            (y, to_torch(self.t, np.asarray(dy), self.wide).to(y.dtype))
            for y, dy in zip(self.tensors, dys, strict=True) if dy is not None and y.requires_grad
        ]  # fmt: skip
        wanted = [x for x, need in zip(self.operands, self.needs, strict=True) if need]
        if not pairs or not wanted:
            return [None] * len(self.operands)
        ys, grads = zip(*pairs, strict=True)
        found = iter(self.t.autograd.grad(ys, wanted, grads, allow_unused=True))
        got = [next(found) if need else None for need in self.needs]
        return [None if g is None else to_numpy(self.t, g) for g in got]

    def of_magnitudes(self) -> "Reference":
        """The same of the operands' magnitudes: what the rounding of sums is relative to."""
        op, operands, options, needs = self.arguments
        operands = [np.abs(x) if hasattr(x, "dtype") and is_floating(x.dtype) else x for x in operands]
        return Reference(self.t, op, operands, options, needs, self.wide)
