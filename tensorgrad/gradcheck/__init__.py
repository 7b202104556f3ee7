"""Check gradients against finite differences, and against the rules that the tape relies on.

`gradcheck` checks one function; `python -m tensorgrad gradcheck` checks every op over its examples (see `cases/`).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from tensorgrad.backend.arrays import is_floating
from tensorgrad.gradcheck import audit
from tensorgrad.gradcheck.differences import Difference, directional, jacobian, jacobian_size
from tensorgrad.gradcheck.probe import GradcheckError, Probe
from tensorgrad.random import Generator
from tensorgrad.tensor import Tensor

__all__ = ["GradcheckError", "gradcheck", "measure"]

EPS, RTOL = 1e-6, 1e-7
MAX_JACOBIAN = 10**7  # derivatives; above this, an error is reported without naming the element


def gradcheck(
    fn: Callable[..., Any], *inputs: Any, eps: float = EPS, rtol: float = RTOL, full: bool = False, seed: int = 0
) -> bool:
    """Check the gradients of `fn(*inputs)`, a tensor or a list of tensors; return True or raise.

    inputs: float64 tensors, checked where they require a gradient; anything else is passed on as it is. `fn` may draw
    from the default generator: its state is the same before every call and restored at the end.

    The derivative along a random direction, a central difference of two calls, has to agree with the gradient for a
    random dy: |numeric - analytic| <= rtol * max(|numeric|, |analytic|, sum |dx step|, sum |dy y|). The sums are there
    because the rounding error is relative to the terms, not to what remains when they cancel: in float64 it is about
    1e-16 / eps = 1e-10 of sum |dy y|, and curvature adds eps^2. rtol is a thousand times that, which still shows an
    error in one element of a thousand. `full` also compares the whole Jacobian element by element.

    It also checks the shape and dtype of every gradient; that gradients are bitwise equal in a second run, and when
    only one input requires a gradient; that they are zero for a zero dy; that they do not depend on whether dy and the
    inputs are sliced, reversed, transposed or of stride 0; that nothing is written into dy, inputs or saved arrays; and
    that no op returns as its own a gradient that shares memory with dy, a saved array or another gradient.

    Raises GradcheckError (an AssertionError) naming the first rule that is broken, and for a wrong number the worst
    element of the Jacobian; TypeError for inputs that are not float64, or results that can have no gradient.
    """
    measure(fn, *inputs, eps=eps, rtol=rtol, full=full, seed=seed)
    return True


def measure(
    fn: Callable[..., Any], *inputs: Any, eps: float = EPS, rtol: float = RTOL, full: bool = False, seed: int = 0
) -> Difference:
    """Check as `gradcheck` does; return the largest relative error and where it is."""
    _refuse_other_dtypes(inputs)
    probe = Probe(fn, inputs)
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    before = [x.numpy().tobytes() for x in tensors]
    try:
        worst = _examine(probe, eps, rtol, full, Generator(seed))
    finally:
        probe.reset_random()
    audit.check_unchanged("input", before, [x.numpy() for x in tensors])
    return worst if worst.error else Difference(0.0)


def _refuse_other_dtypes(inputs: tuple[Any, ...]) -> None:
    for i, x in enumerate(inputs):
        if isinstance(x, Tensor) and is_floating(x.dtype) and x.dtype != np.float64:
            raise TypeError(f"gradcheck: input {i} is {x.dtype}; finite differences need float64")


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
    small = jacobian_size(probe, recorded) <= MAX_JACOBIAN
    element = jacobian(probe, recorded, eps) if (failed or full) and small else Difference(0.0)
    worst = max(element, along, key=lambda difference: difference.error)
    if failed or element.error > rtol:
        named = element if element.error > rtol else along
        raise GradcheckError(f"{named.describe('numeric', 'analytic')} > {rtol:g}")
    audit.check_layouts(probe, recorded, dys, gradients)
    return worst
