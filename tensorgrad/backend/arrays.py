"""Dtypes and shapes of arrays: the rules that kernels and ops share."""

import contextlib
import math
from typing import Any

import numpy as np

with contextlib.suppress(ModuleNotFoundError):
    import ml_dtypes  # noqa: F401  # NumPy knows bfloat16 from then on

Array = Any  # numpy.ndarray or cupy.ndarray
Dropout = tuple[float, int, int, int]  # probability of zero; then the Philox seed, stream and step of the mask


class Quantized:
    """The base class of `QuantizedArray` in quantization.py, which is not imported before it is needed."""

    kernels: Any  # a method: the backend that reads it


def is_half(dtype: Any) -> bool:
    """Whether a dtype is float16 or bfloat16."""
    return bool(dtype.itemsize == 2 and (dtype.kind == "f" or dtype.name == "bfloat16"))


def is_floating(dtype: Any) -> bool:
    """Whether a dtype can have a gradient: float64, float32, float16 or bfloat16."""
    return bool(dtype.kind == "f" or dtype.name == "bfloat16")


def real_dtype(name: str, dtype: Any) -> Any:
    """A dtype in this machine's byte order. Raises TypeError, with the op's name, unless it is of real numbers."""
    try:
        known = np.dtype(dtype)
    except TypeError:
        hint = f"give one of NumPy's, such as {str(dtype).removeprefix('torch.') if '.' in str(dtype) else 'float32'!r}"
        if isinstance(dtype, int):
            hint = f"a shape is one tuple, as in {name}((2, 3))"
        if dtype == "bfloat16":
            hint = "NumPy has no such numbers without ml_dtypes: pip install ml_dtypes"
        raise TypeError(f"{name}: dtype {dtype!r} is unknown: {hint}") from None
    if known.kind not in "biu" and not is_floating(known):
        raise TypeError(f"{name}: dtype {known} is not supported: only bool, integers and floating numbers are")
    return known.newbyteorder("=")


def sum_dtype(dtype: Any) -> Any:
    """The dtype of a sum over elements of that dtype: itself, but int64 or uint64 for bool and integers."""
    if dtype.kind == "u":
        return "uint64"
    return "int64" if dtype.kind in "bi" else dtype


def snapshot(x: Array) -> Array:
    """x, copied if it holds indices, targets or a mask: callers fill such buffers again, perhaps before backward."""
    return x.copy() if x.dtype.kind in "biu" else x


def as_rows(x: Array) -> Array:
    """(..., n) -> (all rows, n); n may be 0."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def split_heads(x: Array, groups: int) -> Array:
    """(B, H, T, S) -> (B, G, H / G, T, S): the query heads that share a key head get an axis of their own."""
    return x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])


def merge_heads(x: Array) -> Array:
    """(B, G, H / G, T, S) -> (B, H, T, S)."""
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])
