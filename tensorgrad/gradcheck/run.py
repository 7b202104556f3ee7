"""Check every example of every op, in every precision, on every backend: one row a check."""

import functools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tensorgrad.backend import Backend, load, use_backend
from tensorgrad.gradcheck.cases import Case, Example
from tensorgrad.gradcheck.check import measure
from tensorgrad.gradcheck.differences import Difference
from tensorgrad.gradcheck.precision import TOLERANCE, compare, compare_composition
from tensorgrad.random import default_generator


@dataclass(frozen=True)
class Row:
    """One check: the largest relative error and where, or why it failed."""

    op: str
    example: str
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
    """The dtypes that can be checked here: bfloat16 only where ml_dtypes is installed."""
    return [name for name in TOLERANCE if load("numpy").lacks(name) is None]


def run(cases: Iterable[Case], dtypes: Sequence[str], backends: Sequence[str]) -> Iterator[Row]:
    """Check every example, op by op."""
    for case in cases:
        for example in case.examples:
            for backend in backends:
                with use_backend(backend) as used:
                    for dtype in dtypes:
                        yield check(case, example, dtype, used.backend)


def check(case: Case, example: Example, dtype: str, k: Backend) -> Row:
    """Check an example in one dtype on the current backend. An exception, or a warning of NumPy's, is a failure."""
    state = default_generator.state_dict()
    default_generator.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            worst = _measure(case, example, dtype, k)
    except Exception as error:  # a broken op may raise anything, and the other checks have to run
        lines = str(error).splitlines() or [""]
        text = lines[0] if isinstance(error, AssertionError) else f"{type(error).__name__}: {lines[0]}"
        return Row(case.name, example.name, dtype, k.name, np.inf, "", text)
    finally:
        default_generator.load_state_dict(state)
    failure = f"{worst.describe('expected', 'got')} > {TOLERANCE[dtype]:g}" if worst.error > TOLERANCE[dtype] else ""
    return Row(case.name, example.name, dtype, k.name, worst.error, worst.where, failure)


def _measure(case: Case, example: Example, dtype: str, k: Backend) -> Difference:
    if dtype != "float64" or not case.gradient:
        return compare(case, example, dtype, k)
    compare_composition(case, example, k)
    call = functools.partial(example.run, case.op)
    by_differences = measure(call, *example.tensors(k, dtype), rtol=TOLERANCE[dtype], full=True)
    if k.name == "numpy":
        return by_differences
    return max(by_differences, compare(case, example, dtype, k), key=lambda difference: difference.error)
