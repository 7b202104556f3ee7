"""Softmax and its logarithm along the last axis, one block per row."""

from collections.abc import Callable

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.cupy.kernels import Kernels, n_rows, supported, threads_for
from tensorgrad.backend.cupy.launcher import c_type


class Softmax(Kernels):
    """The kernels of softmax.cu."""

    def softmax(self, x: Array, axis: int) -> Array:
        return self._over_last_axis("softmax", super().softmax, axis, x)

    def softmax_backward(self, dy: Array, y: Array, axis: int) -> Array:
        return self._over_last_axis("softmax_backward", super().softmax_backward, axis, dy, y)

    def log_softmax(self, x: Array, axis: int) -> Array:
        return self._over_last_axis("log_softmax", super().log_softmax, axis, x)

    def log_softmax_backward(self, dy: Array, y: Array, axis: int) -> Array:
        return self._over_last_axis("log_softmax_backward", super().log_softmax_backward, axis, dy, y)

    def _over_last_axis(self, kernel: str, plain: Callable[..., Array], axis: int, *arrays: Array) -> Array:
        """Launch a kernel on the rows of arrays of one shape and dtype; compute other arrays by `plain`."""
        first = arrays[0]
        whole = [self.contiguous(x) for x in arrays] if supported(*arrays) and axis in (-1, first.ndim - 1) else []
        if not whole or any(x.shape != first.shape or x.data.ptr % 16 for x in whole):
            return plain(*arrays, axis)
        y = self.xp.empty(first.shape, first.dtype)
        self.launcher.launch(
            "softmax", kernel, (n_rows(first),), (threads_for(first),), (*whole, y, np.int32(first.shape[-1])),
            defines={"T": c_type(first.dtype)},
        )  # fmt: skip
        return y
