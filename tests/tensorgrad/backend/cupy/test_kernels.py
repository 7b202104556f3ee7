"""Every CUDA kernel, run on the CPU and checked against `math.py`; and compiled for the GPU if NVRTC is installed."""

import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from emulated_cuda import COMPILER, EmulatingLauncher
from fake_cupy import FakeArray, FakeCupy, fake

from tensorgrad import backend
from tensorgrad.backend.cupy import CupyBackend, launcher, nvrtc
from tensorgrad.backend.cupy.kernels import columns_per_lane
from tensorgrad.backend.cupy.signature import C_TYPES, FOLDER
from tensorgrad.backend.runtime import Backend

ml_dtypes = pytest.importorskip("ml_dtypes")
emulated = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")

DTYPES = [np.dtype(x) for x in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)]
# of the largest number: a rounding of the result, and of what is added up on the way
TOLERANCE = {"float64": 1e-13, "float32": 3e-6, "float16": 1.5e-3, "bfloat16": 1.2e-2}
SHAPES = [(5, 7), (1, 1), (2, 3, 64), (11, 130), (37, 272)]
DROP = (0.3, 7, 1, 5)


class Plain(Backend):
    """The kernels of `math.py` and nothing else."""

    xp = np
    array_type = np.ndarray


PLAIN = Plain()
Call = Callable[[Any, Any], Any]


class Inputs:
    """Arrays of one shape and dtype, determined by their name; `make` converts them for a backend."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, make: Callable[[Any], Any] = lambda x: x) -> None:
        self.shape, self.dtype, self.make = shape, np.dtype(dtype), make
        self.wide = np.dtype(np.float64 if self.dtype == np.float64 else np.float32)

    def __getattr__(self, name: str) -> Any:
        """x, y, dy ...: full arrays; names in capitals: one number a column."""
        shape = self.shape[-1:] if name.isupper() else self.shape
        return self.make(np.random.default_rng(list(name.encode())).standard_normal(shape).astype(self.dtype))

    def rows(self, name: str) -> Any:
        """Positive numbers, one a row: (..., 1), as wide as kernels compute."""
        values = np.random.default_rng(list(name.encode())).random((*self.shape[:-1], 1)) + 0.5
        return self.make(values.astype(self.wide))

    def flat_rows(self, name: str) -> Any:
        """The same as (rows,)."""
        return self.rows(name).reshape(-1)

    def logits(self) -> Any:
        return (self.x * self.dtype.type(3)).reshape(-1, self.shape[-1])

    def classes(self, n: int, dtype: Any = np.int64) -> Any:
        """A class a row, and some ignored."""
        chosen = np.random.default_rng(1).integers(0, n, math.prod(self.shape[:-1])).astype(dtype)
        chosen[::5] = -100
        return self.make(chosen)

    def indices(self, n: int, dtype: Any = np.int64) -> Any:
        return self.make(np.random.default_rng(2).integers(0, n, self.shape[:-1]).astype(dtype))

    def positive(self) -> Any:
        """A probability a column in every row."""
        e = np.exp(Inputs(self.shape, np.float64).x)
        return self.make((e / e.sum(axis=-1, keepdims=True)).astype(self.dtype))


def cross_entropy_backward(
    k: Any, a: Any, smoothing: float, dtype: Any, in_place: bool, are_apart: bool = False
) -> Any:
    logits = apart(k, a.logits()) if are_apart else a.logits()
    n, wide = logits.shape[-1], Inputs(a.shape, np.float64).logits()
    top = wide.max(axis=-1)
    lse = a.make(np.stack([top, np.log(np.exp(wide).sum(axis=-1)) - top], axis=-1).astype(a.wide))
    out = logits if in_place else None
    return k.cross_entropy_backward(a.flat_rows("dy"), logits, a.classes(n, dtype), lse, -100, smoothing, out)


def apart(k: Any, x: Any) -> Any:
    """The same rows, 64 elements from each other or a multiple of it."""
    n = x.shape[1]
    wide = k.xp.zeros((len(x), -(-n // 64) * 64), x.dtype)
    wide[:, :n] = x
    return wide[:, :n]


CALLS: dict[str, Call] = {
    "sigmoid": lambda k, a: k.sigmoid(a.x),
    "erf": lambda k, a: k.erf(a.x),
    "silu": lambda k, a: k.silu(a.x),
    "silu_backward": lambda k, a: k.silu_backward(a.dy, a.x),
    "gelu": lambda k, a: k.gelu(a.x),
    "gelu_backward": lambda k, a: k.gelu_backward(a.dy, a.x),
    "gelu_tanh": lambda k, a: k.gelu_tanh(a.x),
    "gelu_tanh_backward": lambda k, a: k.gelu_tanh_backward(a.dy, a.x),
    "gelu_tanh_recompute": lambda k, a: k.gelu_tanh_recompute(a.dy.copy(), a.x.copy()),
    "softmax": lambda k, a: k.softmax(a.x, -1),
    "softmax_backward": lambda k, a: k.softmax_backward(a.dy, a.positive(), a.x.ndim - 1),
    "log_softmax": lambda k, a: k.log_softmax(a.x, -1),
    "log_softmax_backward": lambda k, a: k.log_softmax_backward(a.dy, -k.xp.abs(a.y), -1),
    "layer_norm": lambda k, a: k.layer_norm(a.x, a.W, a.B, 1e-5),
    "layer_norm, no weight": lambda k, a: k.layer_norm(a.x, None, None, 1e-5),
    "layer_norm, wide weight": lambda k, a: k.layer_norm(a.x, a.W.astype(a.wide), None, 1e-5),
    "layer_norm, bias alone": lambda k, a: k.layer_norm(a.x, None, a.B, 1e-5),
    "layer_norm_backward_x": lambda k, a: k.layer_norm_backward_x(a.dy, a.x, a.W, a.rows("mean"), a.rows("rstd")),
    "layer_norm_backward_x, no weight": lambda k, a: k.layer_norm_backward_x(
        a.dy, a.x, None, a.rows("mean"), a.rows("rstd")
    ),
    "layer_norm_backward_weight": lambda k, a: k.layer_norm_backward_weight(a.dy, a.x, a.rows("mean"), a.rows("rstd")),
    "layer_norm_backward": lambda k, a: k.layer_norm_backward(
        a.dy, a.x, a.W, a.rows("mean"), a.rows("rstd"), a.y, (True, True, True)
    ),
    "layer_norm_backward, no weight": lambda k, a: k.layer_norm_backward(
        a.dy, a.x, None, a.rows("mean"), a.rows("rstd"), None, (True, True, True)
    ),
    "layer_norm_backward, wide weight": lambda k, a: k.layer_norm_backward(
        a.dy, a.x, a.W.astype(a.wide), a.rows("mean"), a.rows("rstd"), None, (True, True, True)
    ),
    "add_layer_norm": lambda k, a: k.add_layer_norm(a.x, a.y, a.W, a.B, 1e-5),
    "add_layer_norm, no weight": lambda k, a: k.add_layer_norm(a.x, a.y, None, None, 1e-5),
    "layer_norm_backward_x, plus": lambda k, a: k.layer_norm_backward_x(
        a.dy, a.x, a.W, a.rows("mean"), a.rows("rstd"), a.y
    ),
    "add_rms_norm": lambda k, a: k.add_rms_norm(a.x, a.y, a.W, 1e-6),
    "rms_norm_backward_x, plus": lambda k, a: k.rms_norm_backward_x(a.dy, a.x, a.W, a.rows("rrms"), a.y),
    "linear_backward_bias": lambda k, a: k.linear_backward_bias(a.dy),
    "rms_norm": lambda k, a: k.rms_norm(a.x, a.W, 1e-6),
    "rms_norm, no weight": lambda k, a: k.rms_norm(a.x, None, 1e-6),
    "rms_norm_backward_x": lambda k, a: k.rms_norm_backward_x(a.dy, a.x, a.W, a.rows("rrms")),
    "rms_norm_backward_weight": lambda k, a: k.rms_norm_backward_weight(a.dy, a.x, a.rows("rrms")),
    "cross_entropy": lambda k, a: k.cross_entropy(a.logits(), a.classes(a.shape[-1]), -100, 0.0),
    "cross_entropy, smoothed": lambda k, a: k.cross_entropy(a.logits(), a.classes(a.shape[-1], np.int32), -100, 0.1),
    "cross_entropy, rows apart": lambda k, a: k.cross_entropy(apart(k, a.logits()), a.classes(a.shape[-1]), -100, 0.0),
    "cross_entropy_backward, rows apart": lambda k, a: cross_entropy_backward(k, a, 0.1, np.int64, False, True),
    "cross_entropy_backward, rows apart in place": lambda k, a: cross_entropy_backward(k, a, 0, np.int64, True, True),
    "cross_entropy_backward": lambda k, a: cross_entropy_backward(k, a, 0.0, np.int64, False),
    "cross_entropy_backward, smoothed": lambda k, a: cross_entropy_backward(k, a, 0.1, np.int32, False),
    "cross_entropy_backward, in place": lambda k, a: cross_entropy_backward(k, a, 0.1, np.int16, True),
    "embedding": lambda k, a: k.embedding(a.x.reshape(-1, a.shape[-1]), a.indices(a.x.size // a.shape[-1])),
    "embedding, negative": lambda k, a: k.embedding(
        a.x.reshape(-1, a.shape[-1]), a.indices(1, np.int32) - np.int32(1)
    ),
    "embedding_backward": lambda k, a: k.embedding_backward(a.dy, a.indices(7), (9, a.shape[-1])),
    "embedding_backward, one row": lambda k, a: k.embedding_backward(a.dy, a.indices(1, np.int32), (1, a.shape[-1])),
    "dropout": lambda k, a: k.dropout(a.x, DROP),
    "dropout, all": lambda k, a: k.dropout(a.x, (1.0, *DROP[1:])),
    "global_norm": lambda k, a: k.xp.asarray(k.global_norm([a.x, a.y, a.W])),
}  # fmt: skip


def backend_on_cpu(backwards: bool = False) -> CupyBackend:
    return CupyBackend(FakeCupy(), EmulatingLauncher(backwards))


def results(call: Call, k: Any, inputs: Inputs) -> list[np.ndarray]:
    given = call(k, inputs)
    arrays = list(given) if isinstance(given, tuple) else [given]
    assert all(isinstance(x, k.array_type) for x in arrays)
    return [np.array(k.to_numpy(x)) for x in arrays]


def assert_near(got: Any, wanted: Any, tolerance: float) -> None:
    assert got.shape == wanted.shape
    wanted = wanted.astype(np.float64)
    scale = max(1.0, np.abs(wanted).max(initial=0.0))
    np.testing.assert_allclose(got.astype(np.float64), wanted, rtol=0, atol=tolerance * scale)


@emulated
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_a_kernel_equals_the_reference(name: str, dtype: Any) -> None:
    for shape in SHAPES:
        wanted = results(CALLS[name], PLAIN, Inputs(shape, dtype))
        k = backend_on_cpu()
        got = results(CALLS[name], k, Inputs(shape, dtype, fake))
        assert k.launcher.launches, "no kernel was started"
        for a, b in zip(got, wanted, strict=True):
            assert a.dtype == b.dtype or name in ("linear_backward_bias", "global_norm")
            assert_near(a, b, TOLERANCE[dtype.name])
        back = results(CALLS[name], backend_on_cpu(backwards=True), Inputs(shape, dtype, fake))
        for a, b in zip(got, back, strict=True):
            assert a.tobytes() == b.tobytes()


@emulated
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name for name in CALLS if "norm" in name and "global" not in name])
def test_rows_that_a_warp_keeps_in_registers(name: str, dtype: Any, steps: int) -> None:
    shape = (11, steps * 32 * (16 // dtype.itemsize))
    wanted = results(CALLS[name], PLAIN, Inputs(shape, dtype))
    k = backend_on_cpu()
    for a, b in zip(results(CALLS[name], k, Inputs(shape, dtype, fake)), wanted, strict=True):
        assert_near(a, b, TOLERANCE[dtype.name])
    assert dict(k.launcher.launches[0].defines)["COLUMNS"] == str(shape[1])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_a_kernel_on_the_gpu(name: str, dtype: Any) -> None:
    """Close to the reference, and reproducible bit by bit."""
    k = backend.load("cupy")
    for shape in [*SHAPES, (300, 768), (300, 1000)]:
        wanted = results(CALLS[name], PLAIN, Inputs(shape, dtype))
        outcomes = [results(CALLS[name], k, Inputs(shape, dtype, k.asarray)) for _ in range(2)]
        for a, again, b in zip(*outcomes, wanted, strict=True):
            assert_near(a, b, TOLERANCE[dtype.name])
            assert a.tobytes() == again.tobytes()


def misaligned(x: np.ndarray) -> FakeArray:
    """A view that starts one element after the start of its memory."""
    memory = fake(np.zeros(x.size + 1, x.dtype))
    view = memory[1:].reshape(x.shape)
    view.view(np.ndarray)[...] = x
    return view


def strided(x: np.ndarray) -> FakeArray:
    memory = fake(np.zeros((*x.shape, 2), x.dtype))
    memory.view(np.ndarray)[..., 1] = x
    return memory[..., 1]


@emulated
@pytest.mark.parametrize("lay", [misaligned, strided])
@pytest.mark.parametrize("name", [name for name in CALLS if "in place" not in name])
def test_arrays_may_be_misaligned_or_strided(name: str, lay: Any) -> None:
    shape = (6, 64)
    wanted = results(CALLS[name], PLAIN, Inputs(shape, np.float16))
    for a, b in zip(results(CALLS[name], backend_on_cpu(), Inputs(shape, np.float16, lay)), wanted, strict=True):
        assert_near(a, b, TOLERANCE["float16"])


@emulated
@pytest.mark.parametrize("name", CALLS)
def test_no_elements(name: str) -> None:
    """No kernel is launched for empty arrays; where `math.py` raises an error, so does the backend."""
    if "norm" not in name and "soft" not in name and "cross" not in name and "embedding" not in name:
        for got in results(CALLS[name], backend_on_cpu(), Inputs((0, 4), np.float32, fake)):
            assert got.size in (0, 1, 4)
    k = backend_on_cpu()
    assert k.embedding_backward(fake(np.ones((0, 4))), fake(np.ones(0, np.int64)), (3, 4)).sum() == 0


# --- special cases -------------------------------------------------------------------


@emulated
def test_a_sum_over_many_rows_uses_several_blocks() -> None:
    rng = np.random.default_rng(0)
    for rows, n in ((1000, 40), (5000, 3)):
        dy, x = (rng.standard_normal((rows, n)).astype(np.float32) for _ in range(2))
        mean, rstd = rng.random((2, rows, 1)).astype(np.float32)
        k = backend_on_cpu()
        exact = (dy.astype(np.float64) * (x - mean) * rstd).sum(axis=0)
        dweight = k.layer_norm_backward_weight(*map(fake, (dy, x, mean, rstd)))
        assert_near(dweight.view(np.ndarray), exact, 1e-6)
        assert_near(k.linear_backward_bias(fake(dy)).view(np.ndarray), dy.sum(axis=0, dtype=np.float64), 1e-6)
        assert max(launch.grid[1] for launch in k.launcher.launches) > 50


@emulated
@pytest.mark.parametrize(("rows", "n", "warps"), [(5000, 16, 8), (40, 1600, 4), (9, 8192, 1), (9, 8200, 0)])
def test_the_backward_of_layer_norm_reads_its_operands_once(rows: int, n: int, warps: int) -> None:
    """As many warps as fit into shared memory; where none does, a kernel for each gradient."""
    rng = np.random.default_rng(0)
    dy, x, dsum = (rng.standard_normal((rows, n)).astype(ml_dtypes.bfloat16) for _ in range(3))
    mean, rstd = rng.random((2, rows, 1)).astype(np.float32)
    weight = rng.random(n).astype(ml_dtypes.bfloat16)
    k = backend_on_cpu()
    given = (dy, x, weight, mean, rstd, dsum)
    got = k.layer_norm_backward(*map(fake, given), (True, True, True))
    exact = (x.astype(np.float64) for x in given)
    for a, b in zip(got, PLAIN.layer_norm_backward(*exact, (True, True, True)), strict=True):
        assert_near(a.view(np.ndarray), b, 1.2e-2 if a.ndim == 2 else 1e-6)
    first = k.launcher.launches[0]
    assert (first.kernel, first.block[0]) == (
        ("layer_norm_backward", 32 * warps) if warps else ("layer_norm_backward_x", 256)
    )
    assert first.grid[0] == min(-(-rows // 16), 250) or not warps
    only = k.layer_norm_backward(*map(fake, given), (True, False, False))
    assert only[1:] == (None, None) and k.launcher.launches[-1].kernel == "layer_norm_backward_x"


@emulated
@pytest.mark.parametrize(("places", "n_rows", "width"), [(300, 3, 5), (4000, 300, 70), (40000, 11, 1), (257, 70000, 8)])
def test_gradient_of_a_table(places: int, n_rows: int, width: int) -> None:
    """Rows that are read in many segments, by many chunks of the sort, or not at all."""
    rng = np.random.default_rng(0)
    indices = np.minimum(rng.geometric(0.05, places), n_rows).astype(np.int32) - 1 - n_rows
    dy = rng.standard_normal((places, width)).astype(np.float32)
    outcomes = [
        k.embedding_backward(fake(dy), fake(indices), (n_rows, width))
        for k in (backend_on_cpu(), backend_on_cpu(backwards=True))
    ]
    wanted = np.zeros((n_rows, width))
    np.add.at(wanted, indices, dy.astype(np.float64))
    assert_near(outcomes[0].view(np.ndarray), wanted, 1e-6)
    np.testing.assert_array_equal(*(x.view(np.ndarray) for x in outcomes))


@emulated
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropout_equals_the_reference_bit_by_bit(dtype: Any) -> None:
    for size in (1, 7, 8, 1000, 4099):
        for p, seed, stream, step in ((0.1, 2**40 + 3, 1, 5), (0.5, 0, 3, 2**33 + 1)):
            x = np.random.default_rng(0).standard_normal(size).astype(dtype)
            got = backend_on_cpu().dropout(fake(x), (p, seed, stream, step))
            np.testing.assert_array_equal(got.view(np.ndarray), PLAIN.dropout(x, (p, seed, stream, step)))


@emulated
def test_random_bits_and_the_step_offset_on_the_gpu() -> None:
    k = backend_on_cpu()
    for n in (0, 1, 6, 1030):
        np.testing.assert_array_equal(
            k.random_bits(n, 2**63 + 1, 2, 9).view(np.ndarray), PLAIN.random_bits(n, 2**63 + 1, 2, 9)
        )
    k.step_offset = fake(np.array(4, np.uint32))
    np.testing.assert_array_equal(k.random_bits(9, 1, 2, 5).view(np.ndarray), PLAIN.random_bits(9, 1, 2, 9))
    x = np.ones(50, np.float32)
    np.testing.assert_array_equal(k.dropout(fake(x), (0.5, 1, 1, 5)).view(np.ndarray), PLAIN.dropout(x, (0.5, 1, 1, 9)))


@emulated
@pytest.mark.parametrize(
    ("dtype", "kind"),
    [*((dtype, "int64") for dtype in DTYPES), *((DTYPES[0], kind) for kind in ("int32", "float32", "float64"))],
    ids=str,
)
def test_rotary_embedding(dtype: Any, kind: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 5, 14)).astype(dtype)
    for positions in (np.arange(5), np.array([3]), np.array(70000), rng.integers(0, 9999, (2, 1, 5)), np.ones((3, 1))):
        for inverse in (False, True):
            at = positions.astype(kind)
            k = backend_on_cpu()
            got = k.rotary_embedding(fake(x), fake(at), 10000.0, inverse)
            assert len(k.launcher.launches) == 1
            tolerance = max(TOLERANCE[dtype.name], 1e-11)  # an angle of 70000 has no more digits in float64
            assert_near(got.view(np.ndarray), PLAIN.rotary_embedding(x, at, 10000.0, inverse), tolerance)
    plainly = backend_on_cpu()
    plainly.rotary_embedding(fake(x), fake(np.arange(5, dtype=np.int16)), 10000.0)
    assert not plainly.launcher.launches


# --- the optimizer --------------------------------------------------------------------------------

OPTIONS = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "step": 3}
SIZES = [(3, 5), (1,), (40000,), (2, 3, 4), (0, 7)]


def states(dtype: Any, make: Any = lambda x: x, masters: bool = False) -> list[list[Any]]:
    """Parameters, gradients, moments and masters."""
    wide = np.dtype(np.float64 if dtype == np.float64 else np.float32)
    rng = np.random.default_rng(0)
    lists: list[list[Any]] = [[], [], [], [], []]
    for shape in SIZES:
        values = [rng.random(shape) for _ in range(4)]
        types = [dtype, wide if masters else dtype, wide, wide]
        p, g, m, v = (x.astype(t) for x, t in zip(values, types, strict=True))
        for one, x in zip(lists, (p, g, m, v, p.astype(wide) if masters else None), strict=True):
            one.append(None if x is None else make(x))
    return lists


def plain_group(ps: Any, gs: Any, ms: Any, vs: Any, masters: Any, options: dict[str, Any]) -> None:
    for p, g, m, v, master in zip(ps, gs, ms, vs, masters, strict=True):
        PLAIN.adamw(p if master is None else master, g, m, v, **options)
        if master is not None:
            p[...] = master


def flat(lists: list[list[Any]]) -> list[np.ndarray]:
    return [np.array(x.view(np.ndarray)) for one in lists for x in one if x is not None]


@emulated
@pytest.mark.parametrize("masters", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_adamw_of_all_parameters_at_once(dtype: Any, masters: bool) -> None:
    here = states(dtype, masters=masters)
    plain_group(*here, OPTIONS)
    outcomes = []
    for k in (backend_on_cpu(), backend_on_cpu(backwards=True)):
        there = states(dtype, fake, masters)
        k.adamw_group(*there, skip=False, **OPTIONS)
        assert [launch.kernel for launch in k.launcher.launches] == ["adamw"]
        outcomes.append(flat(there))
    for got, back, wanted in zip(*outcomes, flat(here), strict=True):
        assert got.dtype == wanted.dtype
        assert_near(got, wanted, TOLERANCE[wanted.dtype.name])
        assert got.tobytes() == back.tobytes()


@emulated
def test_options_of_adamw_may_be_on_the_gpu() -> None:
    here = states(np.float32)
    plain_group(here[0], [g * np.float32(0.25) for g in here[1]], *here[2:], OPTIONS)
    there, k = states(np.float32, fake), backend_on_cpu()
    options = OPTIONS | {"lr": fake(np.array(0.1)), "step": fake(np.array(3))}
    skip, scale = fake(np.array(True)), fake(np.array(0.25))
    k.adamw_group(*there, skip=skip, grad_scale=scale, **options)
    for got, wanted in zip(flat(there), flat(states(np.float32)), strict=True):
        np.testing.assert_array_equal(got, wanted)
    skip[...] = False
    k.adamw_group(*there, skip=skip, grad_scale=scale, **options)
    for got, wanted in zip(flat(there), flat(here), strict=True):
        assert_near(got, wanted, 3e-6)
    assert len(k.tables) == 1  # not built again for arrays at the same addresses
    k.adamw_group(*there, skip=True, **options)
    assert len(k.launcher.launches) == 2


@emulated
def test_adamw_on_unsupported_arrays() -> None:
    """A strided parameter, and moments wider than the kernel's, are updated in place by `math.py`."""
    for odd in (0, 2):
        here = [[np.arange(12.0).reshape(3, 4).astype(np.float32)] for _ in range(4)] + [[None]]
        there: list[Any] = [[None if x is None else fake(x.copy())] for (x,) in here]
        there[odd] = [strided(here[odd][0])]
        k = backend_on_cpu()
        k.adamw_group(*there, skip=False, **OPTIONS | {"lr": fake(np.array(0.1))})
        plain_group(*here, OPTIONS)
        assert not k.launcher.launches
        for got, wanted in zip(flat(there), flat(here), strict=True):
            assert_near(got, wanted, 3e-6)
    k.adamw_group(*there, skip=fake(np.array(True)), **OPTIONS)
    for got, wanted in zip(flat(there), flat(here), strict=True):
        assert_near(got, wanted, 3e-6)
    master = [fake(np.ones((3, 4)))]
    k.adamw_group(*there[:4], master, skip=False, **OPTIONS)  # a master of float64
    np.testing.assert_array_equal(there[0][0].view(np.ndarray), master[0].view(np.ndarray).astype(np.float32))


@emulated
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_norm_is_clipped_without_synchronisation(factor: float) -> None:
    rng = np.random.default_rng(0)
    dtypes = [np.float32, np.float16, np.float64, ml_dtypes.bfloat16]
    arrays = [(rng.random(n) - 0.5).astype(dtype) for n, dtype in itertools.product((1, 33000, 0), dtypes)]
    exact = math.sqrt(sum((x.astype(np.float64) ** 2).sum() for x in arrays))
    there = [*map(fake, arrays), strided(arrays[0])]
    exact = math.sqrt(exact**2 + float(arrays[0].astype(np.float64) @ arrays[0]))
    k = backend_on_cpu()
    norm = k.clip_norm(there, factor * exact)
    assert k.xp.copied_to_host == 0
    assert float(norm) == pytest.approx(exact, rel=1e-6)
    for x, before in zip(there, [*arrays, arrays[0]], strict=True):
        wanted = before.astype(np.float64) * min(1.0, factor)
        assert_near(x.view(np.ndarray), wanted, max(1e-7, TOLERANCE[before.dtype.name]))  # float32 is summed in float32
        if factor > 1:
            np.testing.assert_array_equal(x.view(np.ndarray), before)


@emulated
@pytest.mark.parametrize("size", [2e20, 1e-30])
def test_the_norm_of_gradients_whose_squares_are_out_of_range(size: float) -> None:
    x = fake(np.full(1000, size, np.float32))
    assert float(backend_on_cpu().global_norm([x])) == pytest.approx(size * math.sqrt(1000), rel=1e-6)


@emulated
@pytest.mark.parametrize("odd", [np.inf, np.nan])
def test_a_norm_that_is_not_finite_scales_nothing(odd: float) -> None:
    x = fake(np.array([1, odd, 3], np.float32))
    assert not math.isfinite(float(backend_on_cpu().clip_norm([x], 1.0)))
    np.testing.assert_array_equal(x.view(np.ndarray), [1, odd, 3])


@emulated
def test_scale_of_arrays() -> None:
    x = fake(np.arange(5, dtype=np.float32))
    backend_on_cpu().scale([x], 0.5)
    np.testing.assert_array_equal(x.view(np.ndarray), np.arange(5) * 0.5)


def test_the_cache_of_tables_is_bounded() -> None:
    k = backend_on_cpu()
    for _ in range(100):
        k._table([(fake(np.ones(3)),)])
        assert len(k.tables) <= 64


@pytest.mark.parametrize(("gib", "exponent"), [(8, 26), (24, 27), (80, 29), (139, 30)])
def test_a_block_of_logits_takes_at_most_a_64th_of_the_memory(
    gib: int, exponent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    k = backend_on_cpu()
    monkeypatch.setattr(k.xp.cuda.runtime, "memGetInfo", lambda: (0, gib * 2**30))
    assert k.logits_block == 2**exponent
    assert gib * 2**30 / 2 < 64 * 2 * k.logits_block <= gib * 2**30


def test_columns_per_lane() -> None:
    x = fake(np.zeros((4, 8), np.float16))
    assert columns_per_lane(8, x) == 8
    assert columns_per_lane(8, x, misaligned(np.zeros((4, 8), np.float16))) == 1
    assert columns_per_lane(7, x) == 1


# --- compiled for the GPU -------------------------------------------------------------------------

ANY_T = [{"T": t} for t in C_TYPES.values()]
LONGEST_KEPT = (192, 384, 768, 768)  # rows of these dtypes that a warp keeps in registers
# every file, with the macros that it is compiled with
BUILDS: dict[str, list[dict[str, str]]] = {
    "activation": ANY_T,
    "linear": [{"T": t, "O": o} for t in C_TYPES.values() for o in ("float", "double")],
    "decoder": [
        {**t, "ROWS": r, "NORM": n, "ACTIVATION": a} for t, r, n, a in zip(ANY_T[1:], "143", "021", "312", strict=True)
    ],
    "cross_entropy": [{**t, "I": i} for t, i in zip(ANY_T, 2 * ["int", "long long"], strict=True)],
    "dropout": ANY_T,
    "embedding": [{**t, "I": i} for t, i in zip(ANY_T, 2 * ["long long", "int"], strict=True)],
    "normalization": [
        {**t, "W": w, "COLUMNS": str(n)}
        for t, longest in zip(ANY_T, LONGEST_KEPT, strict=True)
        for w in {t["T"], "float"} if (t["T"], w) != ("double", "float")
        for n in (0, longest)
    ],
    "optimizer": [*({**t, "G": t["T"]} for t in ANY_T), *({**t, "G": "float"} for t in ANY_T[2:])],
    "rotary_embedding": [{**t, "P": p} for t, p in zip(ANY_T, ("int", "long long", "float", "double"), strict=True)],
    "sampling": ANY_T,
    "softmax": ANY_T,
}
SPILLS: dict[tuple[str, str], int] = {}  # (file, kernel): bytes of registers that may be kept in memory


def test_every_file_is_compiled_here() -> None:
    here = {path.stem for path in FOLDER.glob("*.cu") if not path.stem.startswith("attention")}
    assert here == BUILDS.keys()


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("source", BUILDS)
def test_machine_code_without_warnings_or_spills(source: str, arch: str) -> None:
    try:
        nvrtc.library(), nvrtc.include_folders()
    except nvrtc.Missing as error:
        pytest.skip(str(error))
    for defines in BUILDS[source]:
        _, log = launcher.build(source, arch, tuple(sorted(defines.items())))
        assert "warning" not in log.lower(), f"{defines}: {log}"
        kernels = log.split("Compiling entry function")[1:]
        assert kernels
        for kernel in kernels:
            name = kernel.split("'")[1]
            spilled = sum(map(int, re.findall(r"(\d+) bytes spill", kernel)))
            assert spilled <= SPILLS.get((source, name), 0), f"{defines}: {kernel}"
