"""Functions that create tensors."""

from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad import Tensor
from tensorgrad.random import Stream

pytestmark = pytest.mark.usefixtures("numpy_backend")


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (lambda: tg.zeros((2, 3)), np.zeros((2, 3), np.float32)),
        (lambda: tg.zeros(2, np.int64), np.zeros(2, np.int64)),
        (lambda: tg.ones(()), np.ones((), np.float32)),
        (lambda: tg.ones((0, 2), "float16"), np.ones((0, 2), np.float16)),
        (lambda: tg.full((2,), 1.5), np.full(2, 1.5, np.float32)),
        (lambda: tg.full((2,), 3), np.full(2, 3)),
        (lambda: tg.full((2,), True), np.full(2, True)),
        (lambda: tg.full((2,), 3, np.float64), np.full(2, 3.0)),
        (lambda: tg.arange(4), np.arange(4)),
        (lambda: tg.arange(np.int32(4)), np.arange(4)),
        (lambda: tg.arange(1, 4), np.arange(1, 4)),
        (lambda: tg.arange(5, 0, -2), np.arange(5, 0, -2)),
        (lambda: tg.arange(1.5), np.arange(1.5, dtype=np.float32)),
        (lambda: tg.arange(0, 1, 0.25), np.arange(0, 1, 0.25, np.float32)),
        (lambda: tg.arange(3, dtype=np.float64), np.arange(3.0)),
        (lambda: tg.linspace(0, 1, 5), np.linspace(0, 1, 5, dtype=np.float32)),
        (lambda: tg.linspace(2, -2, 3, np.float64), np.linspace(2, -2, 3)),
        (lambda: tg.eye(2), np.eye(2, dtype=np.float32)),
        (lambda: tg.eye(2, 3, np.float64), np.eye(2, 3)),
        (lambda: tg.asarray([1, 2.5]), np.array([1, 2.5], np.float32)),
        (lambda: tg.asarray(np.arange(3), np.float64), np.arange(3.0)),
    ],
)
def test_values_and_dtypes(got: Any, expected: Any) -> None:
    x = got()
    assert isinstance(x, Tensor)
    assert x.dtype == expected.dtype
    assert not x.requires_grad
    np.testing.assert_array_equal(x.numpy(), expected)


def test_empty() -> None:
    assert (tg.empty((2, 3)).shape, tg.empty(4, np.int64).dtype) == ((2, 3), np.int64)


@pytest.mark.parametrize("dtype", [None, np.float32])
def test_like(dtype: Any) -> None:
    x = Tensor(np.arange(6.0).reshape(2, 3))
    expected = np.dtype(dtype or np.float64)
    ys = [tg.zeros_like(x, dtype), tg.ones_like(x, dtype), tg.full_like(x, 2, dtype), tg.empty_like(x, dtype)]
    assert [(y.shape, y.dtype, y.requires_grad) for y in ys] == [((2, 3), expected, False)] * 4
    assert [y.tolist()[1][2] for y in ys[:3]] == [0, 1, 2]
    assert tg.zeros_like(Tensor([True])).dtype == bool
    for fn in (tg.zeros_like, tg.ones_like, tg.empty_like):
        assert fn(x, requires_grad=True).requires_grad
    assert tg.full_like(x, 1.0, requires_grad=True).requires_grad


@pytest.mark.parametrize(
    "make",
    [
        lambda **o: tg.asarray(1.0, **o),
        lambda **o: tg.zeros(2, **o),
        lambda **o: tg.ones(2, **o),
        lambda **o: tg.empty(2, **o),
        lambda **o: tg.full(2, 1.0, **o),
        lambda **o: tg.arange(2.0, **o),
        lambda **o: tg.linspace(0, 1, 2, **o),
        lambda **o: tg.eye(2, **o),
        lambda **o: tg.uniform(2, **o),
        lambda **o: tg.normal(2, **o),
    ],
)
def test_all_can_require_a_gradient(make: Any) -> None:
    x = make(requires_grad=True)
    x.sum().backward()
    np.testing.assert_array_equal(x.grad, np.ones(x.shape))


def test_random_tensors_come_from_the_stream_for_initialisation() -> None:
    tg.manual_seed(5)
    u, n = tg.uniform((2, 3), -1.0, 2.0), tg.normal(4, 10.0, 0.5, np.float64)
    generator = tg.Generator(5)
    np.testing.assert_array_equal(u.numpy(), generator.uniform((2, 3), -1.0, 2.0, stream=Stream.INIT, step=0))
    np.testing.assert_array_equal(n.numpy(), generator.normal(4, 10.0, 0.5, np.float64, stream=Stream.INIT, step=1))
    assert (u.dtype, n.dtype) == (np.float32, np.float64)
    tg.manual_seed(5)
    np.testing.assert_array_equal(tg.uniform((2, 3), -1.0, 2.0).numpy(), u.numpy())
