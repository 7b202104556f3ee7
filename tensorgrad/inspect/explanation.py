"""Why a parameter has the gradient that it has: which ops, examples and positions it came through, and is it right?"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorgrad.backend import Array
from tensorgrad.gradcheck.differences import relative_error
from tensorgrad.inspect.arrays import heat_map
from tensorgrad.inspect.report import as_figure, as_html, as_text

DIFFERENCE_TOLERANCE = 1e-6  # of a gradient in float64 beside a finite difference

CANCELS = 1e-2  # of the sum of their norms: contributions whose sum is smaller cancel, and leave their rounding


@dataclass(frozen=True)
class Entry:
    """One element of a gradient: as recorded, in float64, and by a central finite difference in float64.

    noise: how far rounding of the loss may move the difference. rounding: how far that in its own dtype may move the
    recorded element.
    """

    index: tuple[int, ...]
    recorded: float
    float64: float
    difference: float
    noise: float
    rounding: float

    @property
    def error(self) -> float:
        """The relative error of float64's gradient."""
        return float(relative_error(self.float64, self.difference))

    @property
    def is_confirmed(self) -> bool:
        """Whether both agree with the difference."""
        size = max(abs(self.float64), abs(self.difference))
        accuracy = DIFFERENCE_TOLERANCE * size + self.noise
        is_formula_right = abs(self.float64 - self.difference) <= accuracy
        return is_formula_right and abs(self.recorded - self.difference) <= self.rounding + accuracy


@dataclass(frozen=True)
class Place:
    """A step on the way from the loss: the norm of the gradient that arrives, and of what it sends on."""

    step: int
    op: str
    module: str
    arrives: float
    leaves: float


@dataclass(frozen=True)
class Use:
    """An op that used the parameter, and the part of the gradient that came through it.

    op: "linear of mlp" is the linear of a fused op. step: of its backward in the recording, from 0.
    share: of the whole gradient: the shares of all uses add up to 1, and one that points the other way is negative.
    shares, norms: of the contribution of each row, (B, T) in a model; the shares add up to this use's. None for an op
    without rows. examples: the norm of the gradient of each example, the first axis, where there are several axes.
    path: from the loss to this op, along the largest gradient.
    """

    op: str
    operand: str
    module: str
    caller: str
    step: int
    norm: float
    share: float
    shares: Array | None
    norms: Array | None
    examples: Array | None
    path: list[Place]

    @property
    def example_shares(self) -> list[float]:
        """The share of each example, the first axis; none where there is a single axis or example."""
        if self.shares is None or self.shares.ndim < 2 or len(self.shares) < 2:
            return []
        sums: list[float] = self.shares.reshape(len(self.shares), -1).sum(axis=1).tolist()
        return sums

    def largest(self, n: int) -> list[tuple[int, ...]]:
        """The indices of the n rows with the largest shares, of either sign."""
        return [] if self.shares is None else largest_of(self.shares, n)


@dataclass(frozen=True)
class Explanation:
    """The gradient of a parameter, and what made it. `print` shows it as text, a notebook with its picture.

    total: the sum of the norms of all contributions, which is larger than the norm of their sum where they cancel.
    moved: how many elements of the gradient are not 0. rounding: the distance of the recorded gradient from that in
    float64, relative to its norm, or to 1 % of the total if they cancel to less; tolerance: what is usual.
    texts: of the tokens (B, T), or None.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    gradient_norm: float
    weight_norm: float
    total: float
    moved: int
    rounding: float
    tolerance: float
    entries: list[Entry]
    uses: list[Use]
    texts: Any

    @property
    def ratio(self) -> float:
        """The norm of the gradient over that of the weight."""
        return self.gradient_norm / self.weight_norm if self.weight_norm else float("inf")

    @property
    def cancels(self) -> bool:
        """Whether the contributions cancel to less than 1 % of what they are: much of the rest may be rounding."""
        return self.gradient_norm < CANCELS * self.total

    def sgd_change(self, lr: float) -> float:
        """How far a step of SGD moves the weight, relative to its norm."""
        return lr * self.ratio

    def adam_change(self, lr: float) -> float:
        """The same for the first step of Adam, which moves every element with a gradient by lr."""
        return lr * self.moved**0.5 / self.weight_norm if self.weight_norm else float("inf")

    def text_of(self, use: Use, row: tuple[int, ...]) -> str | None:
        """The text of the token of a row; None where the texts are not those of the rows."""
        if self.texts is None or use.shares is None or use.shares.shape != np.shape(self.texts):
            return None
        return str(self.texts[row[0]][row[1]])

    def __str__(self) -> str:
        return as_text(self)

    def plot(self) -> Any:
        """Return the picture as a figure of matplotlib, which has `savefig`. ImportError without matplotlib."""
        return as_figure(self)

    def _repr_html_(self) -> str:
        return as_html(self)

    def data(self) -> dict[str, Any]:
        """The same for a page, as JSON, with None for what is not finite."""
        entries = [vars(e) | {"confirmed": e.is_confirmed, "error": e.error} for e in self.entries]
        return {
            "name": self.name, "shape": list(self.shape), "dtype": self.dtype, "norm": self.gradient_norm,
            "weight": _finite(self.weight_norm), "cancels": self.cancels, "moved": self.moved,
            "rounding": self.rounding, "tolerance": self.tolerance,
            "entries": [{key: _finite(value) for key, value in entry.items()} for entry in entries],
            "uses": [self._use_data(use) for use in self.uses],
        }  # fmt: skip

    def _use_data(self, use: Use) -> dict[str, Any]:
        found = {"op": use.op, "operand": use.operand, "step": use.step, "norm": use.norm, "share": use.share}
        if use.shares is None or use.norms is None:
            return found
        largest = [(list(row), float(use.shares[row]), float(use.norms[row])) for row in use.largest(5)]
        examples = [] if use.examples is None else list(zip(use.example_shares, use.examples.tolist(), strict=False))
        return found | {"rows": heat_map(use.shares), "largest": largest, "examples": examples}


def _finite(x: Any) -> Any:
    return None if isinstance(x, float) and not np.isfinite(x) else x


def largest_of(x: Array, n: int) -> list[tuple[int, ...]]:
    """The indices of the n largest absolute numbers."""
    order = np.argsort(-np.abs(x), axis=None, kind="stable")[:n]
    return [tuple(int(i) for i in np.unravel_index(k, x.shape)) for k in order]
