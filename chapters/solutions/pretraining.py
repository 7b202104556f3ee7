"""Answers to the exercises of chapter 05."""

import math


def relu_std(n_inputs: int) -> float:
    """ReLU halves the mean square, so the layer has to double it: n σ² = 2."""
    return math.sqrt(2 / n_inputs)


def half_life(beta: float) -> float:
    """Take the logarithm of both sides of beta^k = 1/2."""
    return math.log(0.5) / math.log(beta)


def stable_decay(t: int, lr: float, warmup: int, n_decay: int, total: int) -> float:
    """In the decay, total - t steps remain, this one included."""
    if t < warmup:
        return lr * (t + 1) / (warmup + 1)
    if t < total - n_decay:
        return lr
    return lr * (total - t) / (n_decay + 1)
