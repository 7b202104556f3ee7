"""The tests of the exercises of chapter 00b."""

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def slope(f: Callable[[Array], Array], x: Array, dy: Array) -> Array:
    """The gradient of sum(dy f(x)) at x, by a central difference for every element."""
    gradient = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[place] = 1e-6
        gradient[place] = (dy * (f(x + step) - f(x - step))).sum() / 2e-6
    return gradient


def compare(name: str, got: Any, expected: Array) -> None:
    """Compare a gradient with the one by differences: its shape first, then its numbers."""
    assert isinstance(got, np.ndarray), f"{name} should be an array, not {type(got).__name__}"
    assert got.shape == expected.shape, f"{name} should have the shape {expected.shape}, not {got.shape}"
    worst = np.unravel_index(np.abs(got - expected).argmax(), expected.shape)
    where = [int(i) for i in worst]
    assert np.allclose(got, expected, rtol=0, atol=1e-6), (
        f"{name}{where} should be {expected[worst]:.6f}, not {got[worst]:.6f}"
    )


def linear_backward(answer: Callable[[Array, Array, Array], tuple[Array, Array, Array]]) -> None:
    """Compare all three gradients with differences."""
    rng = np.random.default_rng(1)
    x, weight, bias, dy = (rng.normal(size=shape) for shape in ((4, 3), (2, 3), (2,), (4, 2)))
    given = answer(dy, x, weight)
    assert isinstance(given, tuple | list) and len(given) == 3, "return three arrays: dx, dweight, dbias"
    compare("dx", given[0], slope(lambda x: x @ weight.T + bias, x, dy))
    compare("dweight", given[1], slope(lambda weight: x @ weight.T + bias, weight, dy))
    compare("dbias", given[2], slope(lambda bias: x @ weight.T + bias, bias, dy))


def log_softmax_backward(answer: Callable[[Array, Array], Array]) -> None:
    """Compare with differences, where dy of a row does not add up to 0."""
    rng = np.random.default_rng(2)
    z, dy = rng.normal(size=(3, 5)), rng.normal(size=(3, 5))

    def log_softmax(z: Array) -> Array:
        result: Array = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
        return result

    compare("dz", answer(dy, log_softmax(z)), slope(log_softmax, z, dy))


def rms_norm_backward(answer: Callable[[Array, Array, float], Array]) -> None:
    """Compare with differences, also where eps is large."""
    rng = np.random.default_rng(3)
    x, dy = rng.normal(size=(3, 5)), rng.normal(size=(3, 5))
    for eps in (1e-6, 0.5):

        def rms_norm(x: Array, eps: float = eps) -> Array:
            result: Array = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps)
            return result

        compare(f"with eps = {eps}, dx", answer(dy, x, eps), slope(rms_norm, x, dy))
