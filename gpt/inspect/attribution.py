"""Which inputs moved a prediction: gradient times input, with its sum checked."""

import numpy as np

import tensorgrad as tg
from gpt.inspect.capture import final_norm, head_weight
from gpt.weights import Model
from tensorgrad import Tensor
from tensorgrad.backend import Array

BATCH_TOKENS = 256  # in a pass: what a pass keeps for backward grows with them
STEP = 2.0**-7  # of the scale in the check: rounding in float32 and what the formula leaves out are both small


def attribute(model: Model, x: Array, targets: Array) -> Array:
    """Return gradient times input, (T, T): row t says how far each input moved the logit of targets[t] at position t.

    x (T, C): the vectors that enter the first block. Element [t, s] is the sum over C of x[s] and the gradient of the
    logit with respect to it; it is 0 for s > t, which position t does not see.
    """
    T, C = x.shape
    result = np.zeros((T, T))
    first = 0
    while first < T:
        # n rows, one for each position from `first`: each needs only the tokens before the last of them
        n = max(n for n in range(1, T - first + 1) if n == 1 or n * (first + n) <= BATCH_TOKENS)
        length = first + n
        rows = Tensor(np.repeat(x[None, :length], n, axis=0), requires_grad=True)  # (n, length, C)
        positions = np.arange(first, length)
        _logits(model, rows, positions, targets[positions]).sum().backward()
        result[positions, :length] = (tg.Tensor(rows.grad).numpy().astype(np.float64) * x[:length]).sum(axis=-1)
        first = length
    return result


def slopes(model: Model, x: Array, targets: Array) -> Array:
    """Return the derivative, (T,), of every targets[t]'s logit by a common factor of all inputs, at 1, measured.

    By the chain rule it is the sum of row t of `attribute`. The logit itself would be that sum only if the model were
    linear. Measured without gradients, by the central difference of fourth order over four factors.
    """
    factors = 1 + STEP * np.array([-2, -1, 1, 2], x.dtype)
    positions = np.arange(len(x))
    with tg.no_grad():
        passes = [_logits(model, tg.asarray(factor * x[None]), positions, targets).numpy() for factor in factors]
    y = np.stack(passes).astype(np.float64)  # (4, T)
    return (8 * (y[2] - y[1]) - (y[3] - y[0])) / (12 * STEP)


def _logits(model: Model, x: Tensor, positions: Array, targets: Array) -> Tensor:
    """Return one logit for each position, (n,): x (n, T, C) has a row for each, or (1, T, C) one for all."""
    pos = tg.arange(x.shape[1])
    for block in model.h:
        x = block(x, pos)  # (n, T, C)
    rows = np.arange(len(positions)) if x.shape[0] > 1 else np.zeros_like(positions)
    chosen = final_norm(model)(x[rows, positions])  # (n, C)
    return (chosen * tg.embedding(head_weight(model), tg.asarray(targets))).sum(axis=-1)
