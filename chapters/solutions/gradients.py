"""Answers to the exercises of chapter 00."""

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
