"""Quantised weights on the kernels that Numba compiles."""

from tensorgrad.backend.numba import NumbaBackend
from tensorgrad.backend.quantization import QuantizedMath
from tensorgrad.backend.runtime import Backend


class QuantizedNumba(QuantizedMath, NumbaBackend):
    """Numba's kernels, for an op with a quantised operand."""


def create() -> Backend:
    """The kernels, for `tensorgrad.backend.quantization`."""
    return QuantizedNumba()
