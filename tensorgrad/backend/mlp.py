"""The products of an MLP together with the GELU between them, in plain array code: the reference for fused kernels."""

from tensorgrad.backend.arrays import Array
from tensorgrad.backend.math import Math


class MLPMath(Math):
    """Compositions of other kernels; a GPU computes the GELU while the products are in registers."""

    def keeps_activation(self, activation: Array) -> bool:
        """Whether GELU's result is kept for backward, and not computed again."""
        return False

    def linear_gelu_tanh(self, x: Array, weight: Array, bias: Array | None) -> tuple[Array, Array]:
        """gelu_tanh(h) and h = linear(x, weight, bias)."""
        h = self.linear(x, weight, bias)
        return self.gelu_tanh(h), h

    def linear_gelu_tanh_backward(
        self, dy: Array, weight: Array, h: Array, activation: Array | None, needs_bias: bool
    ) -> tuple[Array, Array, Array | None]:
        """For dy of linear(gelu_tanh(h), weight): dh, gelu_tanh(h), and the sum of dh over all rows if it is needed.

        activation: gelu_tanh(h), None where it has to be computed again. dh and it may be written over h.
        """
        dh, recomputed = self.gelu_tanh_recompute(self.linear_backward_x(dy, weight), h)
        return dh, recomputed, self.linear_backward_bias(dh) if needs_bias else None
