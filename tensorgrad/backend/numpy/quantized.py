"""Quantised weights on NumPy: the plain mathematics, whose products use all threads."""

from tensorgrad.backend.numpy import NumpyBackend
from tensorgrad.backend.quantization import QuantizedMath
from tensorgrad.backend.runtime import Backend


class QuantizedNumpy(QuantizedMath, NumpyBackend):
    """NumPy's kernels, for an op with a quantised operand."""


def create() -> Backend:
    """The kernels, for `tensorgrad.backend.quantization`."""
    return QuantizedNumpy()
