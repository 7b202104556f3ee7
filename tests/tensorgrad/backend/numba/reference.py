"""What the tests of the numba backend share: the plain array code as the reference, and inputs."""

import importlib
from typing import Any

import numpy as np
import pytest

from tensorgrad.backend.runtime import Backend


class Plain(Backend):
    """The array code of backend/math.py alone."""

    xp = np
    array_type = np.ndarray


DTYPES = [np.float32, np.float64]
TOLERANCE = {np.float32: 2e-5, np.float64: 1e-12}


def normal(*shape: int, dtype: Any) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def require_initialised_operands(monkeypatch: pytest.MonkeyPatch, *modules: Any) -> None:
    """New memory is NaN, and no microkernel that runs as Python may read it: it might be denormal, which is slow."""
    microkernel = importlib.import_module("tensorgrad.backend.numba.microkernel")
    pack = importlib.import_module("tensorgrad.backend.numba.pack")
    multiply = microkernel.microkernel

    def checked(a: Any, row: int, first: int, last: int, panels: Any, p: int, *rest: Any) -> None:
        assert not np.isnan(a[row : row + microkernel.MR, first:last]).any()
        assert not np.isnan(panels[p, first:last]).any()
        multiply(a, row, first, last, panels, p, *rest)

    functions = {name: getattr(pack, name).py_func for name in ("matrix", "padded_matrix")}
    functions |= {"aligned": lambda n, x: np.full(n, np.nan, x.dtype), "microkernel": checked}
    for module in (microkernel, pack, *modules):
        for name, function in functions.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, function)
