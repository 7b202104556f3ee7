"""Central differences in float64, along one random direction or for every input element."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorgrad.backend import Array
from tensorgrad.gradcheck.probe import Probe, Recorded
from tensorgrad.random import Generator

FLOOR = 1e-3  # smallest denominator of a relative error, for a dy of 1: curvature adds about eps^2 to a difference


@dataclass(frozen=True)
class Difference:
    """The relative error between two numbers that should be equal, and where they are."""

    error: float
    where: str = ""
    got: float = 0.0
    expected: float = 0.0

    def describe(self, expected: str, got: str) -> str:
        """One line with both numbers, under these names."""
        place = f"{self.where}: " if self.where else ""
        return f"{place}{expected} {self.expected:.9g}, {got} {self.got:.9g}, relative error {self.error:.2g}"


def relative_error(got: Any, expected: Any, size: Any = 0.0) -> Array:
    """|got - expected| / max(|got|, |expected|, size), elementwise; NaN counts as infinite.

    size: the magnitude of the terms that were summed, where the rounding error is relative to them.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(got - expected)
        scale = np.maximum(np.maximum(np.abs(got), np.abs(expected)), size)
    difference = np.where(got == expected, 0.0, difference)
    error = np.divide(difference, scale, out=np.zeros(difference.shape), where=difference != 0)
    return np.where(np.isfinite(error), error, np.inf)


def index_text(index: Sequence[Any]) -> str:
    """An index as text: "[1, 2]"; "" for a scalar."""
    return f"[{', '.join(str(int(i)) for i in index)}]" if len(index) else ""


def total(terms: list[Array]) -> float:
    """The sum of all elements of all arrays."""
    return float(sum(np.sum(term) for term in terms))


def directional(
    probe: Probe, values: list[Array], dys: list[Array], gradients: list[Array], eps: float, generator: Generator
) -> Difference:
    """Compare the derivative of sum(dy y) along one random direction, by two calls, with the gradients (on the host).

    The error is also relative to the terms of both sums, sum |dx step| and sum |dy y| (|dy| / 1000 where y is smaller):
    the rounding error of y alone changes the difference by about 1e-16 / eps of the latter.
    """
    plus, minus = [], []
    for x in (probe.k.to_numpy(x) for x in probe.arrays):
        direction = generator.normal(x.shape, dtype=np.float64)
        plus.append(x + eps * direction)
        minus.append(x - eps * direction)
    with np.errstate(invalid="ignore"):
        steps = [np.nan_to_num(p - m, nan=0.0) for p, m in zip(plus, minus, strict=True)]  # as rounded; inf stays
    above, below = probe.evaluate(plus), probe.evaluate(minus)
    rise = [dy * (a - b) / (2 * eps) for dy, a, b in zip(dys, above, below, strict=True)]
    slope = [dx * step / (2 * eps) for dx, step in zip(gradients, steps, strict=True)]
    terms = [np.abs(dy) * np.maximum(np.abs(y), FLOOR) for dy, y in zip(dys, values, strict=True)]
    size = max(total([np.abs(s) for s in slope]), total(terms))
    error = relative_error(np.float64(total(slope)), np.float64(total(rise)), size)
    return Difference(float(error), "along a random direction", total(slope), total(rise))


def jacobian(probe: Probe, recorded: Recorded, eps: float) -> Difference:
    """Compare the derivative of every result element by every input element; return the largest error.

    An error is also relative to the largest result and the largest derivative, which its rounding error comes from.
    """
    values = [probe.k.to_numpy(x) for x in probe.arrays]
    numeric = _by_differences(probe, values, eps)
    analytic = _by_backward(recorded)
    if not numeric.size:
        return Difference(0.0)
    outputs = recorded.arrays
    size = max(FLOOR, np.nan_to_num(np.abs(analytic), posinf=0).max(), *(np.abs(y).max(initial=0.0) for y in outputs))
    errors = relative_error(analytic, numeric, size)
    row, column = np.unravel_index(np.argmax(errors), errors.shape)
    where = f"input {_locate(values, int(column), probe.places)}, result {_locate(outputs, int(row))}"
    return Difference(float(errors[row, column]), where, float(analytic[row, column]), float(numeric[row, column]))


def _by_differences(probe: Probe, values: list[Array], eps: float) -> Array:
    """(results, inputs), column by column."""
    columns = []
    for place, x in enumerate(values):
        for i in range(x.size):
            ends = []
            for sign in (1, -1):
                moved = x.flatten()
                moved[i] += sign * eps
                given = [*values[:place], moved.reshape(x.shape), *values[place + 1 :]]
                ends.append((moved[i], np.concatenate([y.reshape(-1) for y in probe.evaluate(given)])))
            (plus, above), (minus, below) = ends
            step = plus - minus if np.isfinite(plus) else 2 * eps
            columns.append((above - below) / step)
    return np.stack(columns, axis=1) if columns else np.zeros((0, 0))


def _by_backward(recorded: Recorded) -> Array:
    """(results, inputs), row by row."""
    rows = []
    for place, y in enumerate(recorded.outputs):
        for i in range(y.size):
            dys = [np.zeros(other.shape) for other in recorded.outputs]
            dys[place].reshape(-1)[i] = 1
            gradients = recorded.pull([recorded.k.asarray(dy) for dy in dys])
            rows.append(np.concatenate([dx.reshape(-1) for dx in gradients]))
    return np.stack(rows) if rows else np.zeros((0, sum(leaf.size for leaf in recorded.leaves)))


def _locate(arrays: list[Array], flat: int, names: Sequence[int] | None = None) -> str:
    """The number of the array, and the index in it, of an element of all arrays one after the other."""
    for i, x in enumerate(arrays):
        if flat < x.size:
            return f"{names[i] if names else i} {index_text(np.unravel_index(flat, x.shape))}".strip()
        flat -= x.size
    raise IndexError(flat)
