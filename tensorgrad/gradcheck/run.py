"""Every op over its cases, in every precision, on every backend: one row a check."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tensorgrad.backend import Backend, use_backend
from tensorgrad.gradcheck import measure
from tensorgrad.gradcheck.cases import Case
from tensorgrad.gradcheck.differences import Difference
from tensorgrad.gradcheck.precision import TOLERANCE, compare
from tensorgrad.random import default_generator


@dataclass(frozen=True)
class Row:
    """One check: the largest relative error and where, or why it failed."""

    op: str
    case: str
    dtype: str
    backend: str
    error: float
    worst: str
    failure: str = ""

    @property
    def share(self) -> float:
        """The error as a share of what is allowed."""
        return self.error / TOLERANCE[self.dtype]


def dtypes() -> list[str]:
    """The precisions that can be checked here: bfloat16 only where ml_dtypes is installed."""
    return [name for name in TOLERANCE if name != "bfloat16" or has_bfloat16()]


def has_bfloat16() -> bool:
    """Whether NumPy can be taught bfloat16."""
    try:
        import ml_dtypes
    except ImportError:
        return False
    return np.dtype(ml_dtypes.bfloat16).name in TOLERANCE


def run(cases: Mapping[str, Sequence[Case]], dtypes: Sequence[str], backends: Sequence[str]) -> Iterator[Row]:
    """Check all of it, op by op."""
    for op, of_op in cases.items():
        for case in of_op:
            for backend in backends:
                with use_backend(backend) as used:
                    for dtype in dtypes:
                        yield check(op, case, dtype, used.backend)


def check(op: str, case: Case, dtype: str, k: Backend) -> Row:
    """One case in one precision on the backend in use. What it raises, or NumPy warns of, is a failure in its row."""
    state = default_generator.state_dict()
    default_generator.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            worst = _measure(op, case, dtype, k)
    except Exception as error:  # a broken op may raise anything, and the others are still to be checked
        lines = str(error).splitlines() or [""]
        text = lines[0] if isinstance(error, AssertionError) else f"{type(error).__name__}: {lines[0]}"
        return Row(op, case.name, dtype, k.name, np.inf, "", text)
    finally:
        default_generator.load_state_dict(state)
    failure = f"{worst.describe('right', 'got')} > {TOLERANCE[dtype]:g}" if worst.error > TOLERANCE[dtype] else ""
    return Row(op, case.name, dtype, k.name, worst.error, worst.where, failure)


def _measure(op: str, case: Case, dtype: str, k: Backend) -> Difference:
    if dtype != "float64" or case.reference is not None:
        return compare(op, case, dtype, k)
    by_differences = measure(case.call, *case.tensors(k, dtype), rtol=TOLERANCE[dtype], full=True)
    if k.name == "numpy":
        return by_differences
    return max(by_differences, compare(op, case, dtype, k), key=lambda difference: difference.error)
