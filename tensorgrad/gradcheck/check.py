"""How one function is checked: the rules in their order."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tensorgrad.backend.arrays import is_floating
from tensorgrad.gradcheck import GradcheckError, audit
from tensorgrad.gradcheck.differences import Difference, directional, jacobian
from tensorgrad.gradcheck.probe import Probe
from tensorgrad.random import Generator
from tensorgrad.tensor import Tensor

MAX_JACOBIAN = 10**7  # derivatives; above this, an error is reported without naming the element


def measure(
    fn: Callable[..., Any], *inputs: Any, eps: float = 1e-6, rtol: float = 1e-7, full: bool = False, seed: int = 0
) -> Difference:
    """Check as `gradcheck` does; return the largest relative error and where it is."""
    for i, x in enumerate(inputs):
        if isinstance(x, Tensor) and is_floating(x.dtype) and x.dtype != np.float64:
            raise TypeError(f"gradcheck: input {i} is {x.dtype}; finite differences need float64")
    probe = Probe(fn, inputs)
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    before = [x.numpy().tobytes() for x in tensors]
    try:
        worst = _examine(probe, eps, rtol, full, Generator(seed))
    finally:
        probe.reset_random()
    audit.check_unchanged("input", before, [x.numpy() for x in tensors])
    return worst if worst.error else Difference(0.0)


def _examine(probe: Probe, eps: float, rtol: float, full: bool, generator: Generator) -> Difference:
    recorded = probe.record()
    for i, y in enumerate(recorded.outputs):
        if y.dtype != np.float64:
            raise TypeError(f"gradcheck: result {i} is {y.dtype}; finite differences need float64")
    values = recorded.arrays
    host = [generator.normal(y.shape, dtype=np.float64) for y in values]
    dys = [probe.k.asarray(dy) for dy in host]
    recorded.observer = audit.Audit(probe.k)
    gradients = [dx.copy() for dx in recorded.pull(dys)]
    audit.check_repeatable(probe, recorded, dys, gradients)
    audit.check_zero(probe, recorded)

    along = directional(probe, values, host, gradients, eps, generator)
    failed = along.error > rtol
    small = sum(x.size for x in probe.arrays) * sum(y.size for y in recorded.outputs) <= MAX_JACOBIAN
    element = jacobian(probe, recorded, eps) if (failed or full) and small else Difference(0.0)
    worst = max(element, along, key=lambda difference: difference.error)
    if failed or element.error > rtol:
        named = element if element.error > rtol else along
        raise GradcheckError(f"{named.describe('numeric', 'analytic')} > {rtol:g}")
    audit.check_layouts(probe, recorded, dys, gradients)
    return worst
