"""Activation functions: one pass over memory, 16 bytes per thread."""

from collections.abc import Callable

import numpy as np

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.cupy.kernels import THREADS, Kernels, supported
from tensorgrad.backend.cupy.launcher import c_type


class Activation(Kernels):
    """The kernels of activation.cu."""

    def sigmoid(self, x: Array) -> Array:
        return self._map("sigmoid", super().sigmoid, x)

    def silu(self, x: Array) -> Array:
        return self._map("silu", super().silu, x)

    def silu_backward(self, dy: Array, x: Array) -> Array:
        return self._map("silu_backward", super().silu_backward, dy, x)

    def erf(self, x: Array) -> Array:
        return self._map("erf_of", super().erf, x)

    def gelu(self, x: Array) -> Array:
        return self._map("gelu", super().gelu, x)

    def gelu_backward(self, dy: Array, x: Array) -> Array:
        return self._map("gelu_backward", super().gelu_backward, dy, x)

    def gelu_tanh(self, x: Array) -> Array:
        return self._map("gelu_tanh", super().gelu_tanh, x)

    def gelu_tanh_backward(self, dy: Array, x: Array) -> Array:
        return self._map("gelu_tanh_backward", super().gelu_tanh_backward, dy, x)

    def gelu_tanh_recompute(self, dy: Array, x: Array) -> tuple[Array, Array]:
        if not supported(dy, x) or dy.shape != x.shape or not (dy.flags.c_contiguous and x.flags.c_contiguous):
            return super().gelu_tanh_recompute(dy, x)
        self._start_elementwise("gelu_tanh_recompute", dy, x)
        return dy, x

    def _map(self, kernel: str, plain: Callable[..., Array], *arrays: Array) -> Array:
        """Launch an elementwise kernel on arrays of one shape and dtype; compute other arrays by `plain`."""
        if not supported(*arrays) or any(x.shape != arrays[0].shape for x in arrays):
            return plain(*arrays)
        y = self.xp.empty(arrays[0].shape, arrays[0].dtype)
        self._start_elementwise(kernel, *(self.contiguous(x) for x in arrays), y)
        return y

    def _start_elementwise(self, kernel: str, *arrays: Array) -> None:
        size, dtype = arrays[0].size, arrays[0].dtype
        blocks = -(-size // (THREADS * 16 // dtype.itemsize))
        self.launcher.launch(
            "activation", kernel, (blocks,), (THREADS,), (*arrays, np.int64(size)), defines={"T": c_type(dtype)}
        )
