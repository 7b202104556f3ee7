"""What a gradient has to be besides right: repeatable, of the right shape and dtype, and nobody else's memory."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from tensorgrad.autograd import Edge, Node, Observer, SparseGradient, saved_arrays
from tensorgrad.backend import Array, Backend
from tensorgrad.backend.arrays import is_floating
from tensorgrad.gradcheck import GradcheckError
from tensorgrad.gradcheck.differences import index_text, relative_error
from tensorgrad.gradcheck.probe import Probe, Recorded

ROUNDING = 1e-11  # what another order of additions may change in float64, relative to the largest gradient
FLOAT32_BYTES = 4


class Audit(Observer):
    """Checks every backward that runs in its `with`.

    Raises GradcheckError, naming the op, where one writes into dy or into what it saved and keeps, returns a gradient
    of the wrong shape or dtype, or returns as its own an array that something else refers to.
    """

    def __init__(self, k: Backend) -> None:
        self.k = k
        self._calls: dict[int, _Call] = {}  # the last call of each node's backward, by its sequence number
        self._made: dict[int, list[tuple[Array, bool]]] = {}  # every gradient, and whether the tape may write into it

    def arrived(self, node: Node, dys: list[Array | None]) -> None:
        """Remember what is there before the node's backward runs."""
        self._calls[node.sequence] = _Call(self.k, node, [dy for dy in dys if dy is not None])

    def sent(self, node: Node, edge: Edge, gradient: Any, dys: list[Array | None]) -> None:
        """Check what it has returned for one operand."""
        call = self._calls[node.sequence]
        call.check_unchanged(node)
        if type(node) is Node:  # a checkpoint passes on what has arrived
            gradient = gradient.dense() if isinstance(gradient, SparseGradient) else gradient
            self._check(call, f"{node.name}: the gradient of operand {next(call.operands)}", node, edge, gradient)

    def _check(self, call: "_Call", whose: str, node: Node, edge: Edge, gradient: Any) -> None:
        operand, slot = edge
        shape, dtype = (operand.shape, operand.dtype) if operand.outputs is None else operand.outputs[slot]
        if gradient.shape != shape:
            raise GradcheckError(f"{whose} has shape {gradient.shape}, the operand {shape}")
        # casts between dtypes are the tape's work: either side's dtype is right, and half may be added up in float32
        sizes = (node.dtype if node.outputs is None else node.outputs[0][1]).itemsize, dtype.itemsize
        if not is_floating(gradient.dtype) or not min(sizes) <= gradient.dtype.itemsize <= max(*sizes, FLOAT32_BYTES):
            raise GradcheckError(f"{whose} is {gradient.dtype}, the operand {dtype}")
        if isinstance(gradient, np.generic):
            return
        # the tape's rule: what is neither dy itself nor a view is the op's own, and may be added to in place
        owned = gradient.base is None and not any(gradient is dy for dy in call.dys)
        if owned and self._overlaps(gradient, call.dys):
            raise GradcheckError(f"{whose} is an array that dy lies in, returned as the op's own")
        if owned and self._overlaps(gradient, call.saved):
            raise GradcheckError(f"{whose} is an array that the op saved, returned as its own")
        made = self._made.setdefault(node.sequence, [])
        if self._overlaps(gradient, [other for other, its_own in made if owned or its_own]):
            raise GradcheckError(f"{whose} shares its memory with another gradient that the op returned as its own")
        made.append((gradient, owned))

    def _overlaps(self, x: Array, others: list[Array]) -> bool:
        return any(self.k.xp.may_share_memory(x, other) for other in others)


class _Call:
    """One call of a node's backward: the arrays that it was given, and their bytes before."""

    def __init__(self, k: Backend, node: Node, dys: list[Array]) -> None:
        self.k, self.dys = k, dys
        self.saved = self._saved(node)
        self.before = {id(x): self._bytes(x) for x in (*dys, *self.saved)}
        self.operands = iter([i for i, edge in enumerate(node.parents) if edge is not None])

    def check_unchanged(self, node: Node) -> None:
        """Raise GradcheckError where one was written into, unless it is no longer saved: an op may reuse its memory."""
        kept = {id(x) for x in self._saved(node)}
        self.saved = [x for x in self.saved if id(x) in kept]
        for arrays, what in ((self.dys, "dy"), (self.saved, "an array that it saved")):
            if any(self._bytes(x) != self.before[id(x)] for x in arrays):
                raise GradcheckError(f"{node.name}: backward wrote into {what}")

    def _saved(self, node: Node) -> list[Array]:
        return [x for x in saved_arrays(node.saved()) if isinstance(x, self.k.array_type)]  # no NumPy index on a GPU

    def _bytes(self, x: Array) -> bytes:
        return bytes(self.k.to_numpy(x).tobytes())


def check_unchanged(what: str, before: list[bytes], arrays: list[Array]) -> None:
    """Raise GradcheckError where an array's bytes are no longer `before`."""
    for i, (old, x) in enumerate(zip(before, arrays, strict=True)):
        if old != x.tobytes():
            raise GradcheckError(f"{what} {i} was written into")


def check_repeatable(probe: Probe, recorded: Recorded, dys: list[Array], gradients: list[Array]) -> None:
    """A second run gives the same bits, forward and backward; so does one where only one input wants its gradient."""
    again = probe.record()
    for i, (y, z) in enumerate(zip(recorded.arrays, again.arrays, strict=True)):
        if y.tobytes() != z.tobytes():
            raise GradcheckError(f"result {i} differs between two runs: the function is not deterministic")
    for place, dx, other in zip(probe.places, gradients, again.pull(dys), strict=True):
        if dx.tobytes() != other.tobytes():
            raise GradcheckError(f"the gradient of input {place} differs between two runs: it is not deterministic")
    for i in reversed(range(len(probe.places))):  # the last first: what an earlier one left behind is not there yet
        alone = probe.record(wanted=[i]).pull(dys)[0]
        if alone.tobytes() != gradients[i].tobytes():
            raise GradcheckError(f"the gradient of input {probe.places[i]} differs where no other input wants one")


def check_zero(probe: Probe, recorded: Recorded) -> None:
    """A zero dy gives zero gradients."""
    zeros = [probe.k.xp.zeros_like(y.data) for y in recorded.outputs]
    for place, dx in zip(probe.places, recorded.pull(zeros), strict=True):
        if np.any(dx != 0):
            at = np.unravel_index(np.argmax(dx != 0), dx.shape)
            raise GradcheckError(f"a zero dy gives input {place} {index_text(at)} the gradient {dx[at]:.9g}, not 0")


def check_layouts(probe: Probe, recorded: Recorded, dys: list[Array], gradients: list[Array]) -> None:
    """However dy and the inputs lie in memory, results and gradients are the same."""
    size = max((float(np.abs(dx).max(initial=0.0)) for dx in gradients), default=0.0)
    for layout, lay in LAYOUTS.items():
        other = recorded.pull([lay(probe.k.xp, dy) for dy in dys])
        _compare(probe, f"a {layout} dy gives", other, gradients, size)
    flat = [probe.k.xp.ones((), dy.dtype) for dy in dys]
    stretched = [probe.k.xp.broadcast_to(one, dy.shape) for one, dy in zip(flat, dys, strict=True)]
    filled = [probe.k.xp.ones(dy.shape, dy.dtype) for dy in dys]
    expected = recorded.pull(filled)
    _compare(probe, "a stride-0 dy gives", recorded.pull(stretched), expected, size)
    for layout, lay in {"contiguous": lambda xp, x: xp.ascontiguousarray(x).reshape(x.shape), **LAYOUTS}.items():
        moved = probe.record([lay(probe.k.xp, x) for x in probe.arrays])
        _compare(probe, f"where inputs are {layout},", moved.pull(dys), gradients, size)
        for i, (y, z) in enumerate(zip(recorded.arrays, moved.arrays, strict=True)):
            if np.any(relative_error(z, y, np.abs(y[np.isfinite(y)]).max(initial=0.0)) > ROUNDING):
                raise GradcheckError(f"where inputs are {layout}, result {i} is another")


def _compare(probe: Probe, what: str, got: list[Array], expected: list[Array], size: float) -> None:
    for place, dx, right in zip(probe.places, got, expected, strict=True):
        error = relative_error(dx, right, size)
        if np.any(error > ROUNDING):
            at = np.unravel_index(np.argmax(error), error.shape)
            raise GradcheckError(
                f"{what} input {place} {index_text(at)} another gradient: {dx[at]:.9g}, not {right[at]:.9g}"
            )


def stepped(xp: Any, x: Array, step: int) -> Array:
    """x as every step-th element, backwards for a negative step, of a larger array with NaN or 0 between."""
    fill = xp.nan if is_floating(x.dtype) else 0
    view = xp.full([abs(step) * n for n in x.shape], fill, x.dtype)[(..., *(slice(None, None, step),) * x.ndim)]
    view[...] = x  # the Ellipsis above keeps an array of 0 dimensions an array
    return view


def transposed(xp: Any, x: Array) -> Array:
    """x with the first axis fastest."""
    return xp.ascontiguousarray(x.T).reshape(x.shape[::-1]).T


LAYOUTS: dict[str, Callable[[Any, Array], Array]] = {
    "sliced": functools.partial(stepped, step=2), "reversed": functools.partial(stepped, step=-1),
    "transposed": transposed,
}  # fmt: skip
