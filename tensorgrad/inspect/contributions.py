"""What each row of an op's result contributed to the gradient of a weight: every example, at every position.

The gradient of a weight W in y = x W^T is a sum over the rows of dy and x, of the outer product of each. So is that of
a table whose rows are looked up (x is then 1 at the index, 0 elsewhere), of the weight of a norm and of a bias (x is
then 1).
"""

from dataclasses import dataclass

import numpy as np

from tensorgrad.autograd import enable_grad
from tensorgrad.backend import Array, use_backend
from tensorgrad.backend.arrays import as_rows
from tensorgrad.inspect.replay import Part
from tensorgrad.tensor import Tensor


@dataclass(frozen=True)
class Contributions:
    """The contribution of row r is the outer product of v[r] and x[r].

    v (..., m). x: (..., n); or integers (...), for 1 at that index; or None, for a row that contributes v[r] itself.
    shape: of the weight.
    """

    v: Array
    x: Array | None
    shape: tuple[int, ...]

    @property
    def rows(self) -> tuple[int, ...]:
        """The axes of the rows: of a model's activations, (B, T)."""
        return self.v.shape[:-1]

    def gradient(self, *row: int) -> Array:
        """The sum over all rows, over those of an example b, or the contribution of (b, t)."""
        v = as_rows(self.v[row])
        if self.x is None:
            return v.sum(axis=0).reshape(self.shape)
        if self.x.ndim == self.v.ndim:
            return v.T @ as_rows(self.x[row])
        total = np.zeros(self.shape)
        np.add.at(total, self.x[row].reshape(-1), v)
        return total

    def norms(self) -> Array:
        """The norm of each row's contribution."""
        norms = np.linalg.norm(self.v, axis=-1)
        return norms * np.linalg.norm(self.x, axis=-1) if self.x is not None and self.x.ndim == self.v.ndim else norms

    def products(self, gradient: Array) -> Array:
        """The inner product of each row's contribution with a gradient of the weight."""
        if self.x is None:
            return self.v @ gradient.reshape(-1)
        if self.x.ndim < self.v.ndim:
            return (self.v * gradient[self.x]).sum(axis=-1)
        return ((self.v @ gradient) * self.x).sum(axis=-1)


def contributions(part: Part) -> Contributions | None:
    """Return the contributions to a part of a gradient; None for an op that has no rows, or mixes them.

    Of linear, x @ weight, embedding, layer_norm, rms_norm, and of elementwise ops on weights of one axis.
    """
    dy, shape, i = part.dy, part.gradient.shape, part.operand
    if dy is None or dy.ndim < 2:
        return None
    rows = dy.shape[:-1]
    x = getattr(part.operands[0], "data", part.operands[0])
    match part.name, i:
        case "linear", 1:
            return Contributions(dy, np.broadcast_to(x, (*rows, x.shape[-1])), shape)
        case (("linear" | "layer_norm"), 2):
            return Contributions(dy, None, shape)
        case "matmul", 1 if len(shape) == 2 and x.ndim > 1:
            return Contributions(np.broadcast_to(x, (*rows, x.shape[-1])), dy, shape)
        case "embedding", 0:
            indices = getattr(part.operands[1], "data", part.operands[1])
            return Contributions(dy, np.broadcast_to(indices, rows), shape)
        case (("layer_norm" | "rms_norm"), 1):
            with use_backend("numpy"):
                normalised = part.op(Tensor.wrap(x), **part.options).data
            return Contributions(dy * normalised, None, shape)
    if part.op.__module__ == "tensorgrad.ops.elementwise" and np.prod(shape[:-1]) == 1 and shape != dy.shape:
        return _of_elementwise(part)
    return None


def _of_elementwise(part: Part) -> Contributions:
    """The gradient of the weight as it was broadcast, which has an element for each of the result."""
    with use_backend("numpy"), enable_grad():
        weight = part.operands[part.operand].data
        broadcast = Tensor(np.broadcast_to(weight, part.dy.shape), requires_grad=True)
        others = [x.detach() if isinstance(x, Tensor) else x for x in part.operands]
        others[part.operand] = broadcast
        part.op(*others, **part.options).backward(part.dy)
    v = broadcast.grad
    assert v is not None
    return Contributions(v if weight.size > 1 else v.sum(axis=-1, keepdims=True), None, part.gradient.shape)
