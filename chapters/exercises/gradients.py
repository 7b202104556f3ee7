"""The tests of the exercises of chapter 00."""

import math
from collections.abc import Callable


def sigmoid_backward(answer: Callable[[float, float], float]) -> None:
    """Compare with a central difference."""
    for x, dy in [(0.0, 1.0), (1.3, -2.0), (-4.0, 0.5)]:
        y, h = 1 / (1 + math.exp(-x)), 1e-6
        expected = dy * (1 / (1 + math.exp(-x - h)) - 1 / (1 + math.exp(-x + h))) / (2 * h)
        got = answer(y, dy)
        assert abs(got - expected) < 1e-6, f"at x = {x} with dy = {dy}, dx should be {expected:.6f}, not {got}"


def divide_backward(answer: Callable[[float, float, float], tuple[float, float]]) -> None:
    """Compare with central differences."""
    for a, b, dy in [(1.0, 2.0, 1.0), (-3.0, 0.5, 2.0)]:
        h = 1e-6
        da, db = answer(a, b, dy)
        expected = dy * ((a + h) / b - (a - h) / b) / (2 * h), dy * (a / (b + h) - a / (b - h)) / (2 * h)
        assert abs(da - expected[0]) < 1e-5, f"da for {a} / {b} should be {expected[0]:.5f}, not {da}"
        assert abs(db - expected[1]) < 1e-5, f"db for {a} / {b} should be {expected[1]:.5f}, not {db}"


def newton(answer: Callable[[Callable[[float], float], float, int], float]) -> None:
    """Find two zeros."""
    got = answer(lambda x: x**2 - 2, 1.0, 6)
    assert abs(got - math.sqrt(2)) < 1e-9, f"six steps from 1 lead to the square root of 2, 1.414213562, not to {got}"
    one = answer(lambda x: x**2 - 2, 1.0, 1)
    assert abs(one - 1.5) < 1e-6, f"one step from 1 leads to 1.5, not to {one}"


def largest_gradient(answer: Callable[[float, float], tuple[str, float]]) -> None:
    """Compare with differences of what comes after each operation."""
    for w, x in [(0.7, 1.5), (0.05, 10.0), (-6.0, 0.05)]:
        a, h = w * x, 1e-6
        slope = (math.tanh(a + h) - math.tanh(a - h)) / (2 * h)
        dc = 2 * (math.tanh(a) - 1)
        sizes = {"pow": abs(dc), "tanh": abs(dc * slope), "multiply": abs(dc * slope) * max(abs(x), abs(w))}
        expected = max(sizes, key=lambda name: sizes[name])
        name, size = answer(w, x)
        assert name == expected, f"with w = {w} and x = {x} it is {expected}, not {name}"
        right = abs(abs(size) - sizes[name]) < 1e-6
        assert right, f"with w = {w} and x = {x} the gradient has the size {sizes[name]:.6f}, not {size}"
