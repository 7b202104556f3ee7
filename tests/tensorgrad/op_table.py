"""Every op that NumPy and PyTorch have, too: its registration, random calls of it, and their results."""

from operator import attrgetter
from typing import Any

import hypothesis.strategies as st
import numpy as np
import op_references
import op_strategies
from op_strategies import Call, Floats, generators, lay_out

from tensorgrad.gradcheck.cases import Case, Example, cases

__all__ = ["ROWS", "ROWS_WITHOUT_GRADIENT", "Call", "Row", "generators", "lay_out"]


class Row:
    """An op; `calls` is a strategy of `Call`, for which `run`, `numpy` and `torch` compute the same."""

    def __init__(self, case: Case) -> None:
        self.name, self.case, self.calls = case.name, case, random_calls(case)

    def __repr__(self) -> str:
        return self.name

    def run(self, *operands: Any, **options: Any) -> Any:
        return self._call(self.case.op, *operands, **options)

    def numpy(self, *operands: Any, **options: Any) -> Any:
        return self._call(getattr(op_references, self.name, self.case.numpy), *operands, **options)

    def torch(self, torch: Any, *operands: Any, **options: Any) -> Any:
        fn = getattr(op_references, f"torch_{self.name}", self.case.torch)
        if callable(fn):
            return fn(torch, *operands, **options)
        return self._call(attrgetter(fn)(torch), *operands, **options)

    def _call(self, fn: Any, *operands: Any, **options: Any) -> Any:
        return self.case.call(fn, *operands, **options) if self.case.call else fn(*operands, **options)


def random_calls(case: Case) -> Any:
    """The strategy that a registration names, with its options chosen from the ones listed; or that of its examples."""
    if case.draw is None:
        return st.sampled_from([call_of(example) for example in case.examples if example.call is case.call])
    numbers = [getattr(op_strategies, name) for name in case.draw.numbers]
    options = {name: x if isinstance(x, int) else st.sampled_from(x) for name, x in case.draw.options.items()}
    return getattr(op_strategies, case.draw.strategy)(*numbers, **options)


def call_of(example: Example) -> Call:
    """The same call with all floats requiring a gradient."""
    operands = (getattr(x, "array", x) for x in example.inputs)
    floats = [Floats(x, "plain") if isinstance(x, np.ndarray) and x.dtype == np.float64 else x for x in operands]
    return Call(floats, example.options)


ROWS = [Row(case) for case in cases.values() if case.gradient and not case.incomparable]
ROWS_WITHOUT_GRADIENT = [Row(case) for case in cases.values() if not case.gradient]
