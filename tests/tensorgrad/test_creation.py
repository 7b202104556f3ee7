"""Functions that create tensors."""

import subprocess
import sys
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


# --- dtypes ---------------------------------------------------------------------------------------

DTYPED = [
    lambda dtype: tg.asarray([1, 2], dtype),
    lambda dtype: tg.Tensor([1, 2], dtype=dtype),
    lambda dtype: tg.zeros(2, dtype),
    lambda dtype: tg.ones(2, dtype),
    lambda dtype: tg.empty(2, dtype),
    lambda dtype: tg.full(2, 1, dtype),
    lambda dtype: tg.full_like(tg.ones(2), 1, dtype),
    lambda dtype: tg.zeros_like(tg.ones(2), dtype),
    lambda dtype: tg.empty_like(tg.ones(2), dtype),
    lambda dtype: tg.arange(0, 2, 1, dtype),
    lambda dtype: tg.linspace(0, 1, 2, dtype),
    lambda dtype: tg.eye(2, dtype=dtype),
    lambda dtype: tg.uniform(2, dtype=dtype),
    lambda dtype: tg.normal(2, dtype=dtype),
    lambda dtype: tg.ones(2).astype(dtype),
    lambda dtype: tg.nn.Linear(2, 2).astype(dtype).weight,
]


@pytest.mark.parametrize("make", DTYPED)
def test_dtypes_of_other_numbers_raise(make: Any) -> None:
    with pytest.raises(TypeError, match=r"^\w+: dtype complex64 is not supported: only bool, integers and floating"):
        make("complex64")
    with pytest.raises(TypeError, match=r"^\w+: dtype 'float23' is unknown: give one of NumPy's, such as 'float32'"):
        make("float23")


@pytest.mark.parametrize(
    "make",
    [
        lambda: tg.full(2, 1j),
        lambda: tg.full_like(tg.ones(2), 1j),
        lambda: tg.linspace(0, 1j, 3),
        lambda: tg.ones(2).__setitem__(0, 1j),
        lambda: tg.ones(2).__setitem__(slice(None), np.array([1j, 2])),
        lambda: tg.pad(tg.ones(2), pad_width=1, constant=1j),
    ],
)
def test_complex_numbers_raise(make: Any) -> None:
    with pytest.raises(TypeError, match="is not supported: give a real number|dtype complex128 is not supported"):
        make()


WITHOUT_ML_DTYPES = """
import sys
sys.modules["ml_dtypes"] = None
import tensorgrad as tg
for make in (lambda: tg.zeros(2, "bfloat16"), lambda: tg.ones(2).astype("bfloat16")):
    try:
        make()
    except TypeError as error:
        print(error)
"""


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_bfloat16_needs_ml_dtypes() -> None:
    error = "dtype 'bfloat16' is unknown: NumPy has no such numbers without ml_dtypes: pip install ml_dtypes\n"
    assert run(WITHOUT_ML_DTYPES) == f"zeros: {error}astype: {error}"


def test_bfloat16_is_known_without_importing_ml_dtypes() -> None:
    pytest.importorskip("ml_dtypes")
    assert run("import tensorgrad as tg; print(tg.zeros(2, 'bfloat16').dtype)") == "bfloat16\n"


@pytest.mark.parametrize("make", DTYPED)
def test_bfloat16_everywhere(make: Any) -> None:
    pytest.importorskip("ml_dtypes")
    assert make("bfloat16").dtype.name == "bfloat16"


def test_rand_and_randn_are_uniform_and_normal() -> None:
    for short, long in ((tg.rand, tg.uniform), (tg.randn, tg.normal)):
        tg.manual_seed(3)
        expected = long((2, 3)).numpy()
        for shape in ((2, 3), [(2, 3)], [[2, 3]]):
            tg.manual_seed(3)
            np.testing.assert_array_equal(short(*shape).numpy(), expected)
    assert tg.randn().shape == ()
    assert tg.rand(2, dtype="float64", requires_grad=True).requires_grad
