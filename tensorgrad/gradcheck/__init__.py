"""Check gradients against finite differences, and against the rules that the tape relies on.

`gradcheck` checks one function; `python -m tensorgrad gradcheck` checks every op over its examples (see `cases/`).
Importing this loads nothing else: training does not need the checks.
"""

import importlib
from collections.abc import Callable
from typing import Any


class GradcheckError(AssertionError):
    """A gradient breaks a rule; the message says whose, which rule, and where."""


def gradcheck(
    fn: Callable[..., Any], *inputs: Any, eps: float = 1e-6, rtol: float = 1e-7, full: bool = False, seed: int = 0
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
    importlib.import_module("tensorgrad.gradcheck.check").measure(fn, *inputs, eps=eps, rtol=rtol, full=full, seed=seed)
    return True
