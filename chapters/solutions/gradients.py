"""Answers to the exercises of chapter 00."""

import math
from collections.abc import Callable


def sigmoid_backward(y: float, dy: float) -> float:
    """The two factors of the derivative are y and 1 - y."""
    return dy * y * (1 - y)


def divide_backward(a: float, b: float, dy: float) -> tuple[float, float]:
    """a is divided by b; the derivative of 1 / b is -1 / b²."""
    return dy / b, -dy * a / b**2


def newton(f: Callable[[float], float], x: float, n_steps: int) -> float:
    """Use a central difference for the derivative."""
    for _ in range(n_steps):
        x = x - f(x) / ((f(x + 1e-6) - f(x - 1e-6)) / 2e-6)
    return x


def largest_gradient(w: float, x: float) -> tuple[str, float]:
    """A product passes to each factor the gradient times the other one: a large input makes a large gradient."""
    b = math.tanh(w * x)
    dc = abs(2 * (b - 1))
    da = dc * (1 - b**2)
    sizes = {"pow": dc, "tanh": da, "multiply": da * max(abs(w), abs(x))}
    name = max(sizes, key=lambda name: sizes[name])
    return name, sizes[name]
