"""The compiled kernels against the plain array code of backend/math.py, value by value."""

import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad.backend.erf import erf as precise_erf
from tensorgrad.backend.runtime import Backend
from tests.tensorgrad.backend.numba.reference import Plain

numba = pytest.importorskip("numba")

from tensorgrad.backend.numba import (  # noqa: E402
    NumbaBackend,
    activation,
    arrays,
    cross_entropy,
    dropout,
    embedding,
    mathematics,
    normalization,
    optimizer,
    parallel,
    reductions,
    softmax,
)
from tensorgrad.backend.numba import compile as compiling  # noqa: E402

PLAIN, FAST = Plain(), NumbaBackend()
ROOT = Path(tg.__file__).parent.parent
FAMILIES = (activation, cross_entropy, dropout, embedding, normalization, optimizer, softmax)
KERNELS = {
    name: value for module in FAMILIES for name, value in vars(module).items() if isinstance(value, parallel.Kernel)
}
SMALL, LARGE = (3, 4, 5), (9, 31, 130)  # for one thread and for all
TOLERANCE = {np.dtype(np.float32): 3e-6, np.dtype(np.float64): 1e-13}
DROP = (0.3, 7, 1, 5)

Call = Callable[[Backend, Any], Any]


class Inputs:
    """Arrays of one shape and dtype. A name always gives the same values, whatever the layout in memory."""

    def __init__(self, shape: tuple[int, ...], dtype: Any = np.float32, layout: str = "C") -> None:
        self.shape, self.dtype, self.layout = shape, np.dtype(dtype), layout
        self.given: list[tuple[np.ndarray, np.ndarray]] = []

    def __getattr__(self, name: str) -> np.ndarray:
        """x, y, dy ...: arrays of the shape; names in capitals: one number per column."""
        shape = self.shape[-1:] if name.isupper() else self.shape
        values = np.random.default_rng(list(name.encode())).standard_normal(shape)
        return self.lay(values.astype(self.dtype))

    def rows(self, name: str) -> np.ndarray:
        """Positive numbers, one per row: (..., 1)."""
        return self.lay(np.abs(Inputs((*self.shape[:-1], 1), self.dtype).__getattr__(name)) + self.dtype.type(0.5))

    def classes(self, n: int, dtype: Any = np.int64) -> np.ndarray:
        """A class per row; class 1, which is ignored, in every fifth."""
        chosen = np.random.default_rng(1).integers(0, n, math.prod(self.shape[:-1])).astype(dtype)
        chosen[::5] = 1
        return self.lay(chosen)

    def lay(self, x: np.ndarray) -> np.ndarray:
        laid = LAYOUTS[self.layout](np.asarray(x))  # NumPy makes scalars of 0-d arrays
        assert np.array_equal(laid, x)
        self.given.append((laid, x.copy()))
        return laid

    def assert_untouched(self) -> None:
        for laid, before in self.given:
            assert np.array_equal(laid, before)


def strided(x: np.ndarray) -> np.ndarray:
    wide = np.zeros((*x.shape, 2), x.dtype)
    wide[..., 1] = x
    return wide[..., 1]


def read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


def misaligned(x: np.ndarray) -> np.ndarray:
    memory = bytearray(x.nbytes + 1)
    laid = np.frombuffer(memory, x.dtype, x.size, 1).reshape(x.shape)
    laid[...] = x
    return laid


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "C": lambda x: x,
    "Fortran": lambda x: np.asfortranarray(x) if x.ndim else x,
    "strided": strided,
    "reversed": lambda x: np.flip(np.flip(x).copy()),
    "read-only": read_only,
    "misaligned": misaligned,
}

# Every kernel, by the method that calls it. `k` is a backend, `a` the inputs.
ELEMENTWISE: dict[str, Call] = {
    "sigmoid": lambda k, a: k.sigmoid(a.x),
    "silu": lambda k, a: k.silu(a.x),
    "silu_backward": lambda k, a: k.silu_backward(a.dy, a.x),
    "swiglu": lambda k, a: k.swiglu(a.x, a.y),
    "swiglu_backward": lambda k, a: k.swiglu_backward(a.dy, a.x, a.y),
    "erf": lambda k, a: k.erf(a.x),
    "gelu": lambda k, a: k.gelu(a.x),
    "gelu_backward": lambda k, a: k.gelu_backward(a.dy, a.x),
    "gelu_tanh": lambda k, a: k.gelu_tanh(a.x),
    "gelu_tanh_backward": lambda k, a: k.gelu_tanh_backward(a.dy, a.x),
    "gelu_tanh_recompute": lambda k, a: k.gelu_tanh_recompute(a.dy.copy(), a.x.copy()),
    "dropout": lambda k, a: k.dropout(a.x, DROP),
    "dropout all": lambda k, a: k.dropout(a.x, (1.0, 7, 1, 5)),
    "dropout_scale": lambda k, a: k.dropout_scale(a.x.shape, DROP, a.x.dtype),
}
ROWWISE: dict[str, Call] = {
    "softmax": lambda k, a: k.softmax(a.x, a.x.ndim - 1),
    "softmax_backward": lambda k, a: k.softmax_backward(a.dy, a.y, -1),
    "log_softmax": lambda k, a: k.log_softmax(a.x, a.x.ndim - 1),
    "log_softmax_backward": lambda k, a: k.log_softmax_backward(a.dy, a.y, -1),
    "layer_norm": lambda k, a: k.layer_norm(a.x, a.W, a.B, 1e-5),
    "layer_norm without": lambda k, a: k.layer_norm(a.x, None, None, 1e-5),
    "layer_norm_backward_x": lambda k, a: k.layer_norm_backward_x(a.dy, a.x, a.W, a.rows("mean"), a.rows("rstd")),
    "layer_norm_backward_weight": lambda k, a: k.layer_norm_backward_weight(a.dy, a.x, a.rows("mean"), a.rows("rstd")),
    "layer_norm_backward": lambda k, a: k.layer_norm_backward(
        a.dy, a.x, a.W, a.rows("mean"), a.rows("rstd"), None, (True, True, True)
    ),
    "layer_norm_backward plus": lambda k, a: k.layer_norm_backward(
        a.dy, a.x, a.W, a.rows("mean"), a.rows("rstd"), a.y, (True, True, False)
    )[:2],
    "linear_backward_bias": lambda k, a: k.linear_backward_bias(a.dy),
    "add_layer_norm": lambda k, a: k.add_layer_norm(a.x, a.y, a.W, a.B, 1e-5),
    "layer_norm_backward_x plus": lambda k, a: k.layer_norm_backward_x(
        a.dy, a.x, a.W, a.rows("mean"), a.rows("rstd"), a.y
    ),
    "rms_norm_backward_x plus": lambda k, a: k.rms_norm_backward_x(a.dy, a.x, a.W, a.rows("rrms"), a.y),
    "rms_norm": lambda k, a: k.rms_norm(a.x, a.W, 1e-6),
    "rms_norm without": lambda k, a: k.rms_norm(a.x, None, 1e-6),
    "rms_norm_backward_x": lambda k, a: k.rms_norm_backward_x(a.dy, a.x, a.W, a.rows("rrms")),
    "rms_norm_backward_weight": lambda k, a: k.rms_norm_backward_weight(a.dy, a.x, a.rows("rrms")),
    "cross_entropy": lambda k, a: cross_entropy_both(k, a, 0.0),
    "cross_entropy smooth": lambda k, a: cross_entropy_both(k, a, 0.1),
    "embedding_backward": lambda k, a: k.embedding_backward(a.dy, a.classes(5) - 5, (5, a.shape[-1])),
    "embedding_backward wide": lambda k, a: k.embedding_backward(
        a.dy, a.classes(5, np.uint8) * 40, (1000, a.shape[-1])
    ),
}
FLAT: dict[str, Call] = {
    "adamw": lambda k, a: adamw(k, a, 0.1),
    "adamw without decay": lambda k, a: adamw(k, a, 0.0),
    "global_norm": lambda k, a: k.global_norm([a.x, a.y, a.W, a.x[..., :0]]),
    "scale": lambda k, a: scaled(k, [a.x.copy(), a.W.copy(), a.x[..., :0].copy()]),
}
CASES = {**ELEMENTWISE, **ROWWISE, **FLAT}


def scaled(k: Backend, arrays: list[Any]) -> Any:
    """The arrays after `scale`."""
    k.scale(arrays, 0.3)
    return tuple(arrays)


def cross_entropy_both(k: Backend, a: Inputs, smoothing: float) -> Any:
    """Forward and backward, with class 1 ignored."""
    logits, targets = a.x.reshape(-1, a.shape[-1]), a.classes(a.shape[-1], np.int32)
    losses, lse = k.cross_entropy(logits, targets, 1, smoothing)
    dlosses = a.rows("dlosses").reshape(-1)
    return losses, lse.sum(axis=1), k.cross_entropy_backward(dlosses, logits, targets, lse, 1, smoothing)


def adamw(k: Backend, a: Inputs, weight_decay: float) -> Any:
    p, m, v = (LAYOUTS[a.layout](x.copy()) for x in (a.p, a.m, np.asarray(np.abs(a.v))))
    if not p.flags.writeable:
        p, m, v = p.copy(), m.copy(), v.copy()
    k.adamw(p, a.g, m, v, lr=0.01, beta1=0, beta2=0.99, eps=1e-8, weight_decay=weight_decay, step=3)
    return p, m, v


def as_tuple(result: Any) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(x) for x in (result if isinstance(result, tuple) else (result,)))


def assert_like_plain(call: Call, a: Inputs) -> None:
    """Compare values with the plain code in float64, and dtype and shape with the plain code in the given dtype."""
    got = as_tuple(call(FAST, a))
    a.assert_untouched()
    exact = as_tuple(call(PLAIN, Exact(a)))
    plain = as_tuple(call(PLAIN, a))
    for value, reference, same in zip(got, exact, plain, strict=True):
        assert value.dtype == same.dtype
        assert value.shape == same.shape
        scale = float(np.abs(reference).max(initial=0)) + 1e-30
        assert float(np.abs(value - reference).max(initial=0)) / scale < TOLERANCE[a.dtype]


class Exact:
    """The values of inputs as float64."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs, self.shape, self.layout = inputs, inputs.shape, "C"

    def __getattr__(self, name: str) -> np.ndarray:
        return getattr(self.inputs, name).astype(np.float64)

    def rows(self, name: str) -> np.ndarray:
        return self.inputs.rows(name).astype(np.float64)

    def classes(self, n: int, dtype: Any = np.int64) -> np.ndarray:
        return self.inputs.classes(n, dtype)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the kernels, and the functions they call, as Python."""
    monkeypatch.setattr(parallel.Kernel, "__call__", lambda self, *arguments: self.py_func(*arguments))
    for module in (arrays, mathematics, reductions, *FAMILIES):
        for name, value in list(vars(module).items()):
            if hasattr(value, "inspect_asm"):
                monkeypatch.setattr(module, name, value.py_func)


# --------------------------------------------------------------------------------------------------
# Values


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shape", [SMALL, LARGE, (1, 1), (2, 5003)], ids=str)
def test_float32(name: str, shape: tuple[int, ...]) -> None:
    assert_like_plain(CASES[name], Inputs(shape))


@pytest.mark.parametrize("name", CASES)
def test_float64(name: str) -> None:
    assert_like_plain(CASES[name], Inputs(SMALL, np.float64))


@pytest.mark.parametrize("name", ["gelu_tanh", "layer_norm"])
def test_float64_in_parallel(name: str) -> None:
    assert_like_plain(CASES[name], Inputs(LARGE, np.float64))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("interpreted")
def test_kernels_run_as_python(name: str) -> None:
    for dtype in (np.float32, np.float64):
        assert_like_plain(CASES[name], Inputs((2, 3, 5), dtype))


def test_every_kernel_has_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    called = set()
    monkeypatch.setattr(parallel.Kernel, "__call__", lambda self, *_: called.add(self.__name__))
    for call in CASES.values():
        call(FAST, Inputs(SMALL))
    FAST.random_bits(5, 0, 0, 0)
    assert called == KERNELS.keys()


@pytest.mark.parametrize("name", [*ELEMENTWISE, "adamw", "global_norm"])
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (7,)], ids=str)
def test_scalars_and_empty_arrays(name: str, shape: tuple[int, ...]) -> None:
    call = CASES[name]
    if name == "global_norm":
        call = lambda k, a: k.global_norm([a.x, a.y])  # noqa: E731
    assert_like_plain(call, Inputs(shape))


@pytest.mark.parametrize("name", [n for n in ROWWISE if n != "cross_entropy smooth"])
def test_no_rows(name: str) -> None:
    assert_like_plain(CASES[name], Inputs((0, 5)))


@pytest.mark.parametrize("axis", [0, 1, -2])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_other_axes(name: str, axis: int) -> None:
    assert_like_plain(lambda k, a: getattr(k, name)(a.x, axis), Inputs(SMALL))
    assert_like_plain(lambda k, a: getattr(k, f"{name}_backward")(a.dy, a.y, axis), Inputs(SMALL))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_layouts(name: str, layout: str) -> None:
    """The bits are those for contiguous arrays, except for updates in place, which the plain code computes."""
    a = Inputs(SMALL, layout=layout)
    got, same = as_tuple(CASES[name](FAST, a)), as_tuple(CASES[name](FAST, Inputs(SMALL)))
    a.assert_untouched()
    for x, y in zip(got, same, strict=True):
        if name.startswith("adamw"):
            np.testing.assert_allclose(x, y, rtol=1e-6)
        else:
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", [n for n in CASES if "backward" in n and "cross" not in n])
def test_gradient_that_is_a_broadcast_scalar(name: str) -> None:
    """The gradient of a sum is such an array: all strides are 0, and it is read-only."""

    class BroadcastScalar(Inputs):
        @property
        def dy(self) -> np.ndarray:
            return np.broadcast_to(self.dtype.type(0.3), self.shape)

    assert_like_plain(CASES[name], BroadcastScalar(SMALL))


@pytest.mark.parametrize("name", CASES)
def test_half_precision_uses_the_plain_code(name: str) -> None:
    for dtype in (np.float16, pytest.importorskip("ml_dtypes").bfloat16):
        got, plain = (as_tuple(CASES[name](k, Inputs(SMALL, dtype))) for k in (FAST, PLAIN))
        for x, y in zip(got, plain, strict=True):
            assert x.dtype == y.dtype
            tolerance = 3e-6 if name == "global_norm" else 0
            np.testing.assert_allclose(x.astype(np.float64), y.astype(np.float64), rtol=tolerance)


@pytest.mark.parametrize("name", ["silu_backward", "softmax_backward", "layer_norm_backward_x", "adamw"])
def test_mixed_dtypes_use_the_plain_code(name: str) -> None:
    class Mixed(Inputs):
        @property
        def x(self) -> np.ndarray:
            return super().__getattr__("x").astype(np.float64)

        y = g = x

    for x, y in zip(*(as_tuple(CASES[name](k, Mixed(SMALL))) for k in (FAST, PLAIN)), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=1e-12)


# --------------------------------------------------------------------------------------------------
# NaN, infinity and large numbers


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bad", [math.nan, -math.nan])
@pytest.mark.parametrize("name", [n for n in CASES if n != "dropout_scale"])
def test_nan_propagates(name: str, bad: float, dtype: Any) -> None:
    """A NaN at any position gives NaN exactly where the plain code does."""
    for place in (0, 17, 129):

        class Bad(Inputs):
            def lay(self, x: np.ndarray) -> np.ndarray:
                if x.dtype.kind == "f" and x.shape == self.shape:
                    x.reshape(-1)[place] = bad  # noqa: B023
                return x

        got, plain = (as_tuple(CASES[name](k, Bad((2, 65), dtype))) for k in (FAST, PLAIN))
        assert any(np.isnan(x).any() for x in got)
        for x, y in zip(got, plain, strict=True):
            np.testing.assert_array_equal(np.isnan(x), np.isnan(y))


@pytest.mark.parametrize("name", ["sigmoid", "erf", "gelu", "gelu_tanh", "silu", "softmax", "log_softmax"])
def test_large_numbers(name: str) -> None:
    call = {"softmax": lambda k, x: k.softmax(x, 0), "log_softmax": lambda k, x: k.log_softmax(x, 0)}.get(
        name, lambda k, x: getattr(k, name)(x)
    )
    for dtype in (np.float32, np.float64):
        x = np.array([-1e12, -200, -88, -20, -1e-30, 0, 1e-30, 20, 88, 200, 1e12], dtype)
        with np.errstate(under="ignore"):
            np.testing.assert_allclose(call(FAST, x), call(PLAIN, x), rtol=2e-6, atol=2e-6)


def test_infinity() -> None:
    x = np.array([math.inf, -math.inf], np.float32)
    assert FAST.sigmoid(x).tolist() == [1, 0]
    assert FAST.erf(x).tolist() == [1, -1]
    assert FAST.softmax(np.array([1, -math.inf, 1], np.float32), 0).tolist() == [0.5, 0, 0.5]
    assert np.isnan(FAST.softmax(np.array([-math.inf, -math.inf], np.float32), 0)).all()
    assert FAST.global_norm([x]) == math.inf
    assert FAST.global_norm([np.full(4, 1e30, np.float32)]) == pytest.approx(
        2e30
    )  # its square is too large for float32


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_scale_works_in_place_on_any_layout(dtype: Any) -> None:
    large = np.ones(LARGE, dtype)
    arrays = [large, np.ones((6, 4), dtype)[::2], np.asfortranarray(np.ones((3, 5), dtype)), np.ones((), dtype)]
    FAST.scale(arrays, 0.25)
    assert all(np.array_equal(x, np.full_like(x, 0.25)) and x.dtype == dtype for x in arrays)


def test_global_norm_of_any_dtype() -> None:
    arrays = [np.array([2, 1]), np.array([2], ">f4"), np.array([4], np.float32), np.array([5], np.float16)]
    assert FAST.global_norm(arrays) == pytest.approx(math.sqrt(50))


def test_ignored_targets_have_no_loss_and_no_gradient() -> None:
    logits = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    targets = np.array([-100, 2, -100])
    losses, lse = FAST.cross_entropy(logits, targets, -100, 0.0)
    assert losses[[0, 2]].tolist() == [0, 0]
    dlogits = FAST.cross_entropy_backward(np.ones(3, np.float32), logits, targets, lse, -100, 0.1)
    assert dlogits[[0, 2]].tolist() == [[0] * 4] * 2
    assert abs(float(dlogits[1].sum())) < 1e-6


# --------------------------------------------------------------------------------------------------
# The functions of mathematics.py


@numba.njit
def exp_of(x: Any, y: Any) -> None:
    for i in range(x.size):
        y[i] = mathematics.exp(x[i])


def all_float32(every: int) -> np.ndarray:
    """Every n-th float32 of both signs, and the extremes: subnormal, largest, infinite, NaN."""
    some = np.arange(0, 0x7F800000, every, dtype=np.uint32)
    ends = [1, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0x7F800000, 0x7FC00000]
    positive = np.concatenate([some, np.array(ends, np.uint32)]).view(np.float32)
    return np.concatenate([positive, -positive])


def units_off(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Errors in units in the last place of the nearest float32."""
    with np.errstate(over="ignore", under="ignore"):
        nearest = exact.astype(np.float32)
    same = (got == nearest) | (np.isnan(got) & np.isnan(nearest))
    with np.errstate(invalid="ignore"):
        off = np.abs(got.astype(np.float64) - exact) / np.spacing(np.abs(nearest)).astype(np.float64)
    return np.where(same, 0, off)


def test_exp_is_accurate_to_one_unit() -> None:
    around = np.linspace(-110, 95, 2_000_001).astype(np.float32)
    x = np.concatenate([all_float32(every=2003), around])
    y = np.empty_like(x)
    exp_of(x, y)
    with np.errstate(over="ignore", under="ignore"):
        assert units_off(y, np.exp(x.astype(np.float64))).max() <= 1.01


def test_exp_at_most_0_is_accurate_to_two_units_and_0_below_minus_87() -> None:
    x = np.concatenate([np.linspace(-87, 0, 1_000_001), [-87.1, -1e30, -np.inf, np.nan]]).astype(np.float32)
    y = np.empty_like(x)
    exp_at_most_0_of(x, y)
    assert units_off(y[:-4], np.exp(x[:-4].astype(np.float64))).max() <= 2
    assert (y[-4:-1] == 0).all() and np.isnan(y[-1])


@numba.njit(error_model="numpy")
def exp_at_most_0_of(x: Any, y: Any) -> None:
    for i in range(x.size):
        y[i] = mathematics.exp_at_most_0(x[i])


def test_erf_is_accurate_to_two_units() -> None:
    x = np.concatenate([all_float32(every=2003), np.linspace(-5, 5, 1_000_001).astype(np.float32)])
    with np.errstate(under="ignore"):
        exact = precise_erf(np, x.astype(np.float64))
    assert units_off(FAST.erf(x), exact).max() <= 2


def test_sigmoid_is_accurate_to_three_units() -> None:
    x = np.linspace(-87, 100, 1_000_001).astype(np.float32)
    assert units_off(FAST.sigmoid(x), 1 / (1 + np.exp(-x.astype(np.float64)))).max() <= 3


@pytest.mark.parametrize("value", [-1e30, -104.0, -88.0, -0.7, 0.0, 1e-40, 1.0, 88.7])
@pytest.mark.usefixtures("interpreted")
def test_mathematics_runs_as_python(value: float) -> None:
    for dtype in (np.float32, np.float64):
        x = dtype(value)
        with np.errstate(under="ignore"):
            assert float(mathematics.exp(x)) == pytest.approx(math.exp(float(x)), rel=2e-7, abs=1e-44)
        assert float(mathematics.erf(x)) == pytest.approx(math.erf(float(x)), rel=3e-7)
        assert reductions.largest(np.array([-3, x, -2e30], dtype)) == max(x, dtype(-3))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86-64 assembly")
@pytest.mark.parametrize("name", ["gelu_backward", "softmax"])
def test_loops_are_vectorised(name: str) -> None:
    """The multiplications and additions of exp and erf are vector instructions, fused where there are such."""
    fresh = numba.njit(error_model="numpy")(KERNELS[name].py_func)
    a = Inputs((1, 4) if name == "softmax" else (4,))
    fresh(*(a.x for _ in range(name.count("backward"))), a.x, a.y.copy(), parallel.ALONE)
    (assembly,) = fresh.inspect_asm().values()
    fused = compiling.has_instructions("fma")
    assert len(re.findall(r"\tvf\w+ps\t.*%[yz]mm" if fused else r"\tmulps\t.*%xmm", assembly)) >= 6


# --------------------------------------------------------------------------------------------------
# Determinism


@pytest.fixture
def threads() -> Iterator[None]:
    before = numba.get_num_threads()
    yield
    numba.set_num_threads(before)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("threads")
def test_any_number_of_threads_gives_the_same_bits(name: str) -> None:
    results = []
    for n in {1, 2, numba.config.NUMBA_NUM_THREADS}:
        if n <= numba.config.NUMBA_NUM_THREADS:
            numba.set_num_threads(n)
            results += [as_tuple(CASES[name](FAST, Inputs(LARGE))) for _ in range(2)]
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            assert x.tobytes() == y.tobytes()


@pytest.mark.parametrize("name", CASES)
def test_one_call_and_one_on_every_thread_give_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for min_parallel in (-1, 2**62):
        monkeypatch.setattr(parallel, "MIN_PARALLEL_ELEMENTS", min_parallel)
        results.append(as_tuple(CASES[name](FAST, Inputs((33, 130)))))
    for x, y in zip(*results, strict=True):
        assert x.tobytes() == y.tobytes()


BITS = """
import hashlib
import numpy as np
from tensorgrad.backend.numba import NumbaBackend, parallel
parallel.MIN_PARALLEL_ELEMENTS = 0
k, x = NumbaBackend(), np.random.default_rng(0).standard_normal((300, 129)).astype(np.float32)
row = np.abs(x[:, :1]) + 0.5
results = k.gelu_backward(x, x), k.layer_norm_backward_x(x, x, x[0], row, row)
print(*(hashlib.sha256(x.tobytes()).hexdigest() for x in results))
"""


def test_compiled_and_cached_code_give_the_same_bits(tmp_path: Path) -> None:
    """Numba caches other machine code than it runs after compiling; it may only differ if LLVM may choose."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    first, second = (
        subprocess.run([sys.executable, "-c", BITS], env=environment, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    )
    assert first == second
    assert len(set(first.split())) == 2


@pytest.mark.parametrize("n", [1, 7, 8, 63, 64, 65, 127, 500])
def test_sums(n: int) -> None:
    """The compiled sums against NumPy's, for rows that are multiples of a vector's length and rows that are not."""
    a, b, x = np.random.default_rng(n).standard_normal((3, n)).astype(np.float32)
    wide = [v.astype(np.float64) for v in (a, b, x)]
    exact = [
        reductions.total(wide[0]),
        reductions.dot(*wide[:2]),
        reductions.dot_about(*wide, 0.3),
        reductions.squares_about(wide[2], 0.3),
        reductions.squares(a),
    ]
    got = all_sums(a, b, x, np.float32(0.3))
    np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-5)
    assert got[-1] == pytest.approx(exact[-1], rel=1e-14)


@numba.njit
def all_sums(a: Any, b: Any, x: Any, mean: Any) -> Any:
    about = reductions.dot_about(a, b, x, mean), reductions.squares_about(x, mean)
    return reductions.total(a), reductions.dot(a, b), *about, reductions.squares(a)


def test_sums_of_strided_rows_are_a_type_error() -> None:
    with pytest.raises(numba.TypingError, match="contiguous"):
        numba.njit(lambda x: reductions.total(x))(np.ones((4, 2))[:, 0])


@pytest.mark.parametrize("p", [0.0, 1e-9, 0.1, 0.5, 1 - 1e-9, 1.0])
@pytest.mark.parametrize("n", [0, 1, 4, 4095, 4096, 4097, 32770, 50001])
def test_dropout_has_the_bits_of_the_plain_code(n: int, p: float) -> None:
    x = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    draw = (p, 2**64 - 3, 1, 2**40 + 9)
    assert FAST.dropout(x, draw).tobytes() == PLAIN.dropout(x, draw).tobytes()


@pytest.mark.parametrize("n", [0, 1, 6, 4096, 32770, 50001])
def test_random_bits_are_those_of_the_plain_code(n: int) -> None:
    for seed, stream, step in ((0, 0, 0), (2**63 + 12345, 3, 2**32 - 1)):
        np.testing.assert_array_equal(FAST.random_bits(n, seed, stream, step), PLAIN.random_bits(n, seed, stream, step))


def test_embedding_gradients_are_added_in_the_order_of_the_indices() -> None:
    dy = np.array([[1e8], [1], [-1e8], [1]], np.float32)
    assert FAST.embedding_backward(dy, np.zeros(4, np.int64), (2, 1)).tolist() == [[1], [0]]


def test_a_model_has_the_losses_of_the_numpy_backend() -> None:
    def losses(name: str) -> list[float]:
        with tg.use_backend(name):
            tg.manual_seed(3)
            table, scale = tg.normal((11, 16), std=0.3, requires_grad=True), tg.ones((16,), requires_grad=True)
            weight = tg.normal((16, 16), std=0.3, requires_grad=True)
            optimizer = tg.optim.AdamW([table, scale, weight], lr=1e-2)
            tokens = np.random.default_rng(0).integers(0, 11, (4, 9))
            seen = []
            for _ in range(20):
                x = tg.layer_norm(tg.embedding(table, tokens[:, :-1]), scale)
                x = tg.dropout(tg.gelu(tg.linear(x, weight), approximate="tanh"), p=0.1)
                loss = tg.cross_entropy(tg.linear(x, table), tokens[:, 1:])
                loss.backward()
                tg.optim.clip_grad_norm(optimizer.params, 0.5)
                optimizer.step()
                optimizer.zero_grad()
                seen.append(loss.item())
            return seen

    np.testing.assert_allclose(losses("numba"), losses("numpy"), rtol=1e-5)
