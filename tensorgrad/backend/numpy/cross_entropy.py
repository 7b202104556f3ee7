"""Cross-entropy, a block of rows at a time, so that no temporary array is as large as the logits."""

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.numpy.blocks import MIN_BLOCKED_ELEMENTS, Blocks


class CrossEntropy(Blocks):
    """The formulas of `math.py` applied to blocks of rows: no row depends on another."""

    def cross_entropy(
        self, logits: Array, targets: Array, ignore_index: int, label_smoothing: float
    ) -> tuple[Array, Array]:
        plain = super().cross_entropy
        if logits.size < MIN_BLOCKED_ELEMENTS:
            return plain(logits, targets, ignore_index, label_smoothing)
        losses, lse = (np.empty(shape, self.wide(logits[:0]).dtype) for shape in (len(logits), (len(logits), 2)))

        def block(rows: slice) -> None:
            losses[rows], lse[rows] = plain(logits[rows], targets[rows], ignore_index, label_smoothing)

        self._on_all_threads(block, [(rows,) for rows in self._blocks(*logits.shape)])
        return losses, lse

    def cross_entropy_backward(
        self, dlosses: Array, logits: Array, targets: Array, lse: Array, ignore_index: int, label_smoothing: float,
        out: Array | None = None,
    ) -> Array:  # fmt: skip
        plain = super().cross_entropy_backward
        if logits.size < MIN_BLOCKED_ELEMENTS:
            return plain(dlosses, logits, targets, lse, ignore_index, label_smoothing, out)
        dlogits = np.empty(logits.shape, logits.dtype) if out is None else out

        def block(rows: slice) -> None:
            part = dlosses[rows], logits[rows], targets[rows], lse[rows]
            plain(*part, ignore_index, label_smoothing, dlogits[rows])

        self._on_all_threads(block, [(rows,) for rows in self._blocks(*logits.shape)])
        return dlogits
