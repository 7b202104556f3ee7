"""Cross-entropy of logits, a row at a time: it is read from memory for its maximum, and then from the cache."""

from typing import Any

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.numba.arrays import flat, is_supported, rows
from tensorgrad.backend.numba.mathematics import ONE, exp
from tensorgrad.backend.numba.parallel import ALONE, kernel, prange
from tensorgrad.backend.numba.reductions import LANES, largest, n_row_blocks, rows_of, sum_exp, total_about
from tensorgrad.backend.numpy import NumpyBackend


@kernel
def cross_entropy(
    logits: Any, targets: Any, losses: Any, lse: Any, ignore_index: int, smoothing: float, thread: Any = ALONE
) -> None:
    """loss = (1 - s) (lse - logit of the target) + s (lse - mean logit), with lse = log sum exp(logits).

    lse (rows, 2): the maximum m of each row, and log sum exp(logits - m).
    """
    smooth, classes = logits.dtype.type(smoothing), logits.shape[1]
    for block in prange(n_row_blocks(logits), thread):
        lanes = np.empty(LANES, logits.dtype)
        for i in rows_of(block, logits):
            row = logits[i]
            top = largest(row)
            log_sum = np.log(sum_exp(row, top, lanes))
            lse[i, 0], lse[i, 1] = top, log_sum
            losses[i] = 0
            if targets[i] != ignore_index:
                losses[i] = log_sum - (row[targets[i] % classes] - top)
                if smoothing > 0:
                    mean = total_about(row, top) / logits.dtype.type(classes)
                    losses[i] = (ONE - smooth) * losses[i] + smooth * (log_sum - mean)


@kernel
def cross_entropy_backward(
    logits: Any, dlosses: Any, targets: Any, lse: Any, dlogits: Any, ignore_index: int, smoothing: float,
    thread: Any = ALONE,
) -> None:  # fmt: skip
    """dlogits = dloss (softmax - s / V - (1 - s) onehot), and 0 where ignored."""
    smooth, classes = logits.dtype.type(smoothing), logits.shape[1]
    share = smooth / logits.dtype.type(classes)
    for i in prange(logits.shape[0], thread):
        dloss = dlosses[i] if targets[i] != ignore_index else logits.dtype.type(0)
        top, log_sum = lse[i, 0], lse[i, 1]
        for j in range(classes):
            dlogits[i, j] = (exp(logits[i, j] - top - log_sum) - share) * dloss
        if targets[i] != ignore_index:
            dlogits[i, targets[i] % classes] -= (ONE - smooth) * dloss


class CrossEntropy(NumpyBackend):
    """The kernels above, for float32 and float64."""

    def cross_entropy(
        self, logits: Array, targets: Array, ignore_index: int, label_smoothing: float
    ) -> tuple[Array, Array]:
        """logits (N, V), targets (N) -> losses (N), 0 where ignored, and logsumexp (N, 2)."""
        if not is_supported(logits) or not logits.size:
            return super().cross_entropy(logits, targets, ignore_index, label_smoothing)
        losses, lse = np.empty(len(logits), logits.dtype), np.empty((len(logits), 2), logits.dtype)
        cross_entropy(
            rows(logits), flat(targets.astype(np.int64, copy=False)), losses, lse, int(ignore_index),
            float(label_smoothing),
        )  # fmt: skip
        return losses, lse

    def cross_entropy_backward(
        self, dlosses: Array, logits: Array, targets: Array, lse: Array, ignore_index: int, label_smoothing: float,
        out: Array | None = None,
    ) -> Array:  # fmt: skip
        """dlogits of cross_entropy, written to `out` if given, which may be the logits themselves."""
        into = out is None or (out.dtype == logits.dtype and out.flags.carray)
        if not is_supported(logits, lse) or not logits.size or not into:
            return super().cross_entropy_backward(dlosses, logits, targets, lse, ignore_index, label_smoothing, out)
        dlogits = np.empty(logits.shape, logits.dtype) if out is None else out
        cross_entropy_backward(
            rows(logits), flat(dlosses.astype(logits.dtype, copy=False)), flat(targets.astype(np.int64, copy=False)),
            rows(lse), rows(dlogits), int(ignore_index), float(label_smoothing),
        )  # fmt: skip
        return dlogits
