"""The tests of the exercises of chapter 05."""

import math
from collections.abc import Callable

import numpy as np


def relu_std(answer: Callable[[int], float]) -> None:
    """Send a signal through 10 layers with ReLU, and look at its mean square."""
    for n in (64, 200):
        rng = np.random.default_rng(n)
        std = answer(n)
        assert isinstance(std, float | int) and std > 0, f"for {n} inputs, a positive number is needed, not {std}"
        signal = np.abs(rng.normal(size=(200, n)))
        before = (signal**2).mean()
        for _ in range(10):
            signal = np.maximum(0, signal @ rng.normal(size=(n, n)) * std)
        ratio = (signal**2).mean() / before
        assert 0.4 < ratio < 2.5, f"for {n} inputs, ten layers change the mean square by a factor of {ratio:.3g}, not 1"


def half_life(answer: Callable[[float], float]) -> None:
    """Compare with the number of multiplications that halve 1."""
    for beta in (0.5, 0.9, 0.99, 0.999):
        k = answer(beta)
        assert isinstance(k, float | int), f"for beta = {beta}, a number is needed, not {k}"
        left = beta**k
        assert abs(left - 0.5) < 1e-6, f"for beta = {beta}, after {k} steps a gradient counts {left:.4f} of the first"


def stable_decay(answer: Callable[[int, float, int, int, int], float]) -> None:
    """Compare with a list that is built from its three parts."""
    lr, warmup, n_decay, total = 0.5, 4, 3, 12
    rise = [0.1, 0.2, 0.3, 0.4]
    fall = [0.375, 0.25, 0.125]
    for t, expected in enumerate(rise + [0.5] * 5 + fall):
        got = answer(t, lr, warmup, n_decay, total)
        assert got is not None, f"step {t}: nothing was returned"
        where = "warm-up" if t < warmup else "decay" if t >= total - n_decay else "stable part"
        assert math.isclose(got, expected, abs_tol=1e-9), f"step {t}, in the {where}: should be {expected}, not {got}"
    assert math.isclose(answer(0, 1.0, 0, 1, 2), 1.0), "without a warm-up, the first step has the full learning rate"
