"""Gradients of gradients on a stand-in for CuPy are those on NumPy."""

from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad.backend import load
from tests.tensorgrad.test_second_order import FAMILIES, second_derivatives


@pytest.mark.parametrize("name", FAMILIES)
def test_second_derivatives_with_cupy(name: str, gpu: Any) -> None:
    ours = second_derivatives(name, gpu)
    with tg.use_backend("numpy"):
        expected = second_derivatives(name, load("numpy"))
    for dx, right in zip(ours, expected, strict=True):
        np.testing.assert_allclose(dx, right, rtol=1e-9, atol=1e-12)
