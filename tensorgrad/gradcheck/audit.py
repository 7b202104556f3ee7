"""What a gradient has to be besides right: repeatable, of the right shape and dtype, and nobody else's memory."""

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from tensorgrad.autograd import Node, Scattered, saved_arrays
from tensorgrad.backend import Array, Backend
from tensorgrad.backend.arrays import is_floating
from tensorgrad.gradcheck.differences import index_text, relative_error
from tensorgrad.gradcheck.probe import GradcheckError, Probe, Recorded

ROUNDING = 1e-11  # what another order of additions may change in float64, relative to the largest gradient
FLOAT32_BYTES = 4


# --- what a single op's backward may do ----------------------------------------------------------


def watch(recorded: Recorded) -> None:
    """Have every backward on the tape checked whenever it runs.

    Raises GradcheckError, naming the op, where one writes into dy or what it saved and keeps, returns a gradient of the
    wrong shape or dtype, or hands over as its own an array that something else refers to.
    """
    for node in _reachable([y.node for y in recorded.outputs if y.node is not None]):
        witness = _Witness(recorded.k, node)
        if isinstance(node.backward, tuple):
            node.backward = tuple(None if f is None else witness.follow(f, [i]) for i, f in enumerate(node.backward))
        elif node.backward is not None:
            node.backward = witness.follow(node.backward, range(len(node.parents)))


def _reachable(roots: list[Node]) -> Iterator[Node]:
    seen = set(roots)
    waiting = list(seen)
    while waiting:
        node = waiting.pop()
        yield node
        new = {parent for parent in node.parents if parent is not None} - seen
        seen |= new
        waiting += new


class _Witness:
    """Stands behind one op's backward and remembers every gradient that it made."""

    def __init__(self, k: Backend, node: Node) -> None:
        self.k, self.name, self.dtype, self.parents = k, node.name, node.dtype, node.parents
        self.made: list[tuple[Array, bool]] = []  # gradients, and whether the tape may write into them

    def follow(self, backward: Callable[[Any], Any], places: Sequence[int]) -> Callable[[Any], Any]:
        """The same backward, checked at every call. places: the operands whose gradients it returns."""

        def followed(dy: Any) -> Any:
            dys = [part for part in (dy if type(dy) is list else [dy]) if part is not None]
            saved = self._saved(backward)
            before = {id(x): self._bytes(x) for x in (*dys, *saved)}
            result = backward(dy)
            kept = {id(x) for x in self._saved(backward)}  # without what an op gives away to make it again if need be
            saved = [x for x in saved if id(x) in kept]
            for arrays, what in ((dys, "dy"), (saved, "an array that it saved")):
                if any(self._bytes(x) != before[id(x)] for x in arrays):
                    raise GradcheckError(f"{self.name}: backward wrote into {what}")
            gradients = result if type(result) is tuple else (result,)  # operands after the last have none
            for place, gradient in zip_longest(places, gradients):
                gradient = gradient.dense() if type(gradient) is Scattered else gradient
                if place is None and gradient is None:
                    continue  # of an operand that was not given
                if place is None:
                    raise GradcheckError(f"{self.name}: {len(gradients)} gradients for {len(places)} operands")
                if self.parents[place] is not None:
                    self._check(place, gradient, dy, dys, saved)
            return result

        return followed

    def _saved(self, backward: Callable[[Any], Any]) -> list[Array]:
        return [x for x in saved_arrays(backward) if isinstance(x, self.k.array_type)]  # no NumPy index on a GPU

    def _bytes(self, x: Array) -> bytes:
        return bytes(self.k.to_numpy(x).tobytes())

    def _check(self, place: int, gradient: Any, dy: Any, dys: list[Array], saved: list[Array]) -> None:
        parent = self.parents[place]
        assert parent is not None
        whose = f"{self.name}: the gradient of operand {place}"
        if gradient is None:
            raise GradcheckError(f"{whose} is None")
        if gradient.shape != parent.shape:
            raise GradcheckError(f"{whose} has shape {gradient.shape}, the operand {parent.shape}")
        # casts between dtypes are the tape's work: either side's dtype is right, and half may be added up in float32
        sizes = self.dtype.itemsize, parent.dtype.itemsize
        if not is_floating(gradient.dtype) or not min(sizes) <= gradient.dtype.itemsize <= max(*sizes, FLOAT32_BYTES):
            raise GradcheckError(f"{whose} is {gradient.dtype}, the operand {parent.dtype}")
        if isinstance(gradient, np.generic):
            return
        # the tape's rule: what is neither dy itself nor a view is the op's own, and may be added to in place
        owned = gradient is not dy and gradient.base is None
        if owned and self._overlaps(gradient, dys):
            raise GradcheckError(f"{whose} is an array that dy lies in, handed over as the op's own")
        if owned and self._overlaps(gradient, saved):
            raise GradcheckError(f"{whose} is an array that the op saved, handed over as its own")
        if self._overlaps(gradient, [other for other, its_own in self.made if owned or its_own]):
            raise GradcheckError(f"{whose} shares its memory with another gradient that the op handed over as its own")
        self.made.append((gradient, owned))

    def _overlaps(self, x: Array, others: list[Array]) -> bool:
        return any(self.k.xp.may_share_memory(x, other) for other in others)


# --- what must not change the result ------------------------------------------------------------


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
    for layout, lay in {"contiguous": _contiguous, **LAYOUTS}.items():
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


def _contiguous(xp: Any, x: Array) -> Array:
    return xp.ascontiguousarray(x).reshape(x.shape)


def _sliced(xp: Any, x: Array) -> Array:
    """Every other element of a larger array, with NaN between."""
    spacious = xp.full(tuple(2 * n for n in x.shape), xp.nan, x.dtype)
    view = spacious[(..., *(slice(None, None, 2),) * x.ndim)]  # ... keeps 0 dimensions an array
    view[...] = x
    return view


def _reversed(xp: Any, x: Array) -> Array:
    """Negative strides along every axis."""
    back = (..., *(slice(None, None, -1),) * x.ndim)
    return xp.ascontiguousarray(x[back]).reshape(x.shape)[back]


def _transposed(xp: Any, x: Array) -> Array:
    """The first axis fastest."""
    return xp.ascontiguousarray(x.T).reshape(x.shape[::-1]).T


LAYOUTS: dict[str, Callable[[Any, Array], Array]] = {
    "sliced": _sliced,
    "reversed": _reversed,
    "transposed": _transposed,
}
