"""What the tests of the numba backend share: the plain array code as the reference, and inputs."""

from typing import Any

import numpy as np

from tensorgrad.backend.runtime import Backend


class Plain(Backend):
    """The array code of backend/math.py alone."""

    xp = np
    array_type = np.ndarray


DTYPES = [np.float32, np.float64]
TOLERANCE = {np.float32: 2e-5, np.float64: 1e-12}


def normal(*shape: int, dtype: Any) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)
