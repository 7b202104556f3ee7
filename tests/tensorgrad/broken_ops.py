"""Ops with gradients of any kind, for the tests of what gradcheck catches."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad.autograd import op
from tensorgrad.gradcheck import GradcheckError
from tensorgrad.gradcheck.cases.inputs import randn

Rule = Callable[[Any, Any, Any], Any]  # (x, y, dy) -> dx


def tensor(*shape: int, dtype: Any = np.float64) -> tg.Tensor:
    return tg.Tensor(randn(*shape).astype(dtype), requires_grad=True)


def cube(rule: Rule) -> Callable[..., Any]:
    """x^3 with the gradient that `rule` makes of x, the result and dy."""

    @op
    def cubed(k: Any, x: Any) -> Any:
        y = x * x * x
        return y, lambda dy: rule(x, y, dy)

    return cubed


def product(da: Rule, db: Rule) -> Callable[..., Any]:
    """a b with the gradients that the rules make of a, b and dy."""

    @op
    def product(k: Any, a: Any, b: Any) -> Any:
        return a * b, (lambda dy: da(a, b, dy), lambda dy: db(a, b, dy))

    return product


def right(x: Any, y: Any, dy: Any) -> Any:
    return 3 * x * x * dy


def caught(message: str, fn: Callable[..., Any], *inputs: Any) -> None:
    with pytest.raises(GradcheckError, match=message) as raised:
        tg.gradcheck(fn, *inputs)
    assert "\n" not in str(raised.value)


def one_element(x: Any, y: Any, dy: Any) -> Any:
    dx = right(x, y, dy)
    dx[1, 2] *= -1
    return dx
