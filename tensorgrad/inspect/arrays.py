"""Arrays for a page: as base64, and large ones as a sample that says which elements it has."""

import base64
import math
from typing import Any

import numpy as np

from tensorgrad.backend import Array, backend_of

MAX_SIDE = 64  # rows or columns of a heat map


def encode(array: Any) -> dict[str, Any]:
    """Return an array as JSON, which `decode` of base.js reads: float64 and float32 exactly, integers up to 2^53.

    Raises TypeError for an array of anything but numbers and booleans.
    """
    array = np.asarray(array)
    if array.dtype != np.float64:
        array = array.astype(np.float64 if array.dtype.kind in "iu" and array.dtype.itemsize > 2 else np.float32)
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    data = base64.b64encode(little.tobytes()).decode()
    return {"type": array.dtype.name, "shape": list(array.shape), "base64": data}


def heat_map(array: Array, max_side: int = MAX_SIDE) -> dict[str, Any]:
    """Return what `heatMap` of base.js shows: an array as a matrix, whose rows are all axes but the last.

    Of more than max_side rows or columns (of a few rows, four times as many columns), evenly spaced ones are taken;
    `rows` and `columns` then say which. The norm, the largest element and the number of elements that are not finite
    are those of the whole array.
    """
    is_scalar = isinstance(array, np.generic)  # which NumPy makes of 0-d results
    x = np.asarray(array if is_scalar else backend_of("heat_map", [array]).to_numpy(array))
    n_columns = x.shape[-1] if x.ndim else 1
    matrix = x.reshape(math.prod(x.shape[:-1]), n_columns)
    rows = _evenly(len(matrix), max_side)
    columns = _evenly(n_columns, max_side if len(rows) > max_side // 4 else 4 * max_side)
    return {
        "shape": list(x.shape), "dtype": x.dtype.name, "values": encode(matrix[rows][:, columns]),
        "rows": rows.tolist() if len(rows) < len(matrix) else None,
        "columns": columns.tolist() if len(columns) < n_columns else None, **_statistics(x),
    }  # fmt: skip


def _evenly(n: int, at_most: int) -> Any:
    """At most that many of n indices, the first and the last among them."""
    return np.arange(n) if n <= at_most else np.linspace(0, n - 1, at_most).round().astype(int)


def _statistics(x: Any) -> dict[str, Any]:
    wide = x.astype(np.float64).reshape(-1)
    finite = np.isfinite(wide)
    wide = np.where(finite, wide, 0)
    largest = int(np.abs(wide).argmax()) if wide.size else None
    return {
        "norm": float(np.linalg.norm(wide)), "notFinite": int(x.size - finite.sum()),
        "largest": None if largest is None else float(wide[largest]),
        "at": None if largest is None else [int(i) for i in np.unravel_index(largest, x.shape)],
    }  # fmt: skip
