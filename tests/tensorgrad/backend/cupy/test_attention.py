"""Attention's kernels, run on the CPU, against the plain mathematics in float64: all paths, shapes, dtypes, layouts."""

import math
import re
from typing import Any

import numpy as np
import pytest
from emulated_cuda import COMPILER, EmulatingLauncher, RecordingLauncher
from fake_cublaslt import FakeCublasLt
from fake_cupy import FakeCupy, fake
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tensorgrad.backend.arrays import Dropout
from tensorgrad.backend.cupy import CupyBackend, launcher, nvrtc
from tensorgrad.backend.runtime import Backend

ml_dtypes = pytest.importorskip("ml_dtypes")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")

F16, BF16, F32 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
# of the largest value: weights and results are rounded once each, gradients go through rounded weights
TOLERANCE = {F32: 2e-6, F16: 2e-3, BF16: 1.6e-2}
DROP: Dropout = (0.3, 7, 1, 5)


class Plain(Backend):
    """The kernels of `math.py` and nothing else."""

    xp = np
    array_type = np.ndarray


def backend(launcher: RecordingLauncher) -> CupyBackend:
    k = CupyBackend(FakeCupy(), launcher)
    k.cublaslt = FakeCublasLt()  # for what is left to the plain mathematics
    return k


class Case:
    """Operands of one shape: q (B, H, T, D) and key, v (B, G, S, D), in a layout that a model produces."""

    def __init__(
        self, dtype: Any, d: int, n_query: int, n_key: int | None = None, *, n_head: int = 2,
        n_group: int | None = None, n_batch: int = 1, causal: bool = True, mask: Any = None,
        dropout: Dropout | None = None, packed: bool = False,
    ) -> None:  # fmt: skip
        n_key, n_group = n_key or n_query, n_group or n_head
        self.options = (causal, mask, dropout, 1 / math.sqrt(d))
        rng = np.random.default_rng(d + n_query)
        shape = (n_batch, n_query, n_head, d)

        def drawn(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape).astype(dtype)

        if packed:  # parts of one projection, (B, T, 3, H, D)
            assert (n_key, n_group) == (n_query, n_head)
            whole = drawn(n_batch, n_query, 3, n_head, d)
            self.operands = [whole[:, :, i].transpose(0, 2, 1, 3) for i in range(3)]
        else:
            self.operands = [drawn(*shape).transpose(0, 2, 1, 3)]
            self.operands += [drawn(n_batch, n_group, n_key + 3, d)[:, :, :n_key] for _ in range(2)]  # of a cache
        self.dy = drawn(*shape).transpose(0, 2, 1, 3)

    def run(self, k: CupyBackend) -> list[np.ndarray]:
        """y, lse, dq, dkey and dv by the kernels."""
        causal, mask, *rest = self.options
        q, key, v, dy = (fake(x) for x in (*self.operands, self.dy))
        options = (causal, None if mask is None else fake(mask), *rest)
        y, lse = k.attention(q, key, v, *options)
        gradients = k.attention_backward(dy, q, key, v, y, lse, *options)
        return [x.view(np.ndarray) for x in (y, lse, *gradients)]

    def truth(self) -> list[np.ndarray]:
        """The same in float64."""
        q, key, v, dy = (x.astype(np.float64) for x in (*self.operands, self.dy))
        with np.errstate(invalid="ignore"):
            y, lse = Plain().attention(q, key, v, *self.options)
            return [y, lse, *Plain().attention_backward(dy, q, key, v, y, lse, *self.options)]

    def least(self, name: str) -> float:
        """The size of what is summed: of differences of such numbers nothing may be left.

        With a single key all gradients of scores are 0, but each is rounded, and dkey adds up those of all queries.
        """
        (_, n_head, n_query, _), (_, n_group, n_key, _) = (x.shape for x in self.operands[:2])
        if name not in ("dq", "dkey"):
            return 0.1
        n_summed = n_key if name == "dq" else n_query * n_head // n_group
        return max(1.0, 2 * math.sqrt(n_summed) / n_key)

    def check(self) -> CupyBackend:
        """Close to the truth, and the same bits whichever thread and block comes first."""
        k = backend(EmulatingLauncher())
        got, dtype = self.run(k), self.operands[0].dtype
        for name, mine, exact in zip(("y", "lse", "dq", "dkey", "dv"), got, self.truth(), strict=True):
            assert mine.shape == exact.shape, name
            assert mine.dtype == (F32 if name == "lse" else dtype), name
            wide = mine.astype(np.float64)
            assert np.array_equal(np.isneginf(wide), np.isneginf(exact)), name  # of a row that sees nothing
            wide, exact = (np.where(np.isneginf(exact), 0, x) for x in (wide, exact))
            size = max(np.abs(exact).max(), self.least(name))
            assert np.abs(wide - exact).max() <= TOLERANCE[dtype] * size, name
        for mine, again in zip(got, self.run(backend(EmulatingLauncher(backwards=True))), strict=True):
            assert np.array_equal(mine.view(np.uint8), again.view(np.uint8))
        return k


def kernels(k: CupyBackend) -> list[str]:
    assert isinstance(k.launcher, EmulatingLauncher)
    return [launch.kernel for launch in k.launcher.launches]


TENSOR_CORES = ["attention_forward", "attention_backward_query", "attention_backward_key"]
WITHOUT = ["attention_forward_float", "attention_backward_query_float", "attention_backward_key_float"]
VISIBLE = np.arange(300) < np.array([5, 300, 0])[:, None, None, None]  # texts of different lengths, as KVCache has them

# Heads of all sizes, and numbers of queries and keys that no tile divides
CASES: dict[str, dict[str, Any]] = {
    "of a projection": {"d": 64, "n_query": 200, "packed": True},
    "one key more": {"d": 64, "n_query": 128, "n_key": 129},
    "all see all": {"d": 64, "n_query": 70, "n_key": 150, "causal": False},
    "the first see nothing": {"d": 64, "n_query": 150, "n_key": 70},
    "heads share keys": {"d": 64, "n_query": 33, "n_key": 65, "n_head": 6, "n_group": 2, "n_batch": 2},
    "one key": {"d": 64, "n_query": 5, "n_key": 1},
    "dropout": {"d": 64, "n_query": 70, "n_key": 72, "n_batch": 2, "packed": False, "dropout": DROP},
    "dropout, blocks not aligned": {"d": 64, "n_query": 37, "n_key": 71, "n_group": 1, "dropout": DROP},
    "all dropped": {"d": 64, "n_query": 9, "n_key": 12, "dropout": (1.0, 7, 1, 5)},
    "small head": {"d": 32, "n_query": 140, "packed": True},
    "head of no power of 2": {"d": 80, "n_query": 37, "n_key": 150},
    "head of half a step": {"d": 40, "n_query": 70, "n_key": 67},
    "large head": {"d": 128, "n_query": 70, "n_key": 90, "n_group": 1},
    "large head, dropout": {"d": 128, "n_query": 37, "n_key": 37, "dropout": DROP},
}


@needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_tensor_cores_in_bfloat16(name: str) -> None:
    assert kernels(Case(BF16, **CASES[name]).check()) == TENSOR_CORES


@needs_compiler
@pytest.mark.parametrize("name", ["of a projection", "the first see nothing", "dropout", "large head"])
def test_tensor_cores_in_float16(name: str) -> None:
    assert kernels(Case(F16, **CASES[name]).check()) == TENSOR_CORES


@needs_compiler
@pytest.mark.parametrize("name", [name for name in CASES if "half a step" not in name])
def test_float32(name: str) -> None:
    assert kernels(Case(F32, **CASES[name]).check()) == WITHOUT


@needs_compiler
def test_half_precision_with_unaligned_rows() -> None:
    assert kernels(Case(BF16, 20, 70, dropout=DROP).check()) == WITHOUT


@needs_compiler
@pytest.mark.parametrize("dtype", [F16, BF16, F32], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        {"d": 64, "n_query": 1, "n_key": 1000, "n_head": 3, "n_batch": 2},
        {"d": 80, "n_query": 4, "n_key": 77, "n_group": 1},
        {"d": 64, "n_query": 3, "n_key": 2},
        {"d": 64, "n_query": 1, "n_key": 1},
        {"d": 64, "n_query": 1, "n_key": 300, "n_batch": 3, "causal": False, "mask": VISIBLE},
        {"d": 64, "n_query": 2, "n_key": 300, "n_batch": 3, "mask": VISIBLE[:, :, :, ::-1]},
        {"d": 64, "n_query": 2, "n_key": 300, "n_batch": 1, "causal": False, "mask": VISIBLE[0, 0]},
    ],
    ids=["parts", "few queries", "the first sees nothing", "one key", "lengths", "mask and causal", "one mask for all"],
)
def test_few_queries_over_many_keys(dtype: Any, case: dict[str, Any]) -> None:
    k = Case(dtype, **case).check()
    assert kernels(k)[0] == "attention_decode"
    assert k.n_done is None or not k.n_done.any()  # ready for the next launch


@needs_compiler
@given(
    dtype=st.sampled_from([BF16, F32]),
    n_query=st.integers(5, 140),
    n_key=st.integers(1, 140),
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2)]),
    causal=st.booleans(),
    dropped=st.booleans(),
)
@example(dtype=F32, n_query=139, n_key=1, heads=(4, 2), causal=False, dropped=False)
@settings(max_examples=15)
def test_any_shape(dtype: Any, n_query: int, n_key: int, heads: tuple[int, int], causal: bool, dropped: bool) -> None:
    n_head, n_group = heads
    dropout = DROP if dropped else None
    Case(dtype, 64, n_query, n_key, n_head=n_head, n_group=n_group, causal=causal, dropout=dropout).check()


@needs_compiler
def test_unsupported_layouts_are_copied() -> None:
    """Non-contiguous rows, unaligned rows, and a gradient that is one broadcast number."""
    case = Case(BF16, 64, 40)
    whole = case.operands[0]
    gaps = np.repeat(whole, 2, axis=-1)[..., ::2]
    shifted = np.empty(whole.size + 1, BF16)[1:].reshape(whole.shape)
    shifted[...] = case.operands[1]
    case.operands[:2], case.dy = [gaps, shifted], np.broadcast_to(BF16.type(0.5), whole.shape)
    assert kernels(case.check()) == TENSOR_CORES


@needs_compiler
def test_more_heads_than_one_group_of_heads() -> None:
    Case(BF16, 32, 130, 130, n_head=35, n_batch=2).check()


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": np.dtype(np.float64)},
        {"d": 136},
        {"scale": -1.0},
        {"mask": np.ones((20, 20), bool)},
    ],
    ids=["float64", "head", "scale", "mask"],
)
def test_unsupported_operands_are_computed_by_math_py(change: dict[str, Any]) -> None:
    k = backend(recorder := RecordingLauncher())
    dtype, d = change.get("dtype", F32), change.get("d", 64)
    q, key, v, dy = (fake(np.ones((1, 2, 20, d), dtype)) for _ in range(4))
    mask = change.get("mask")
    options = (True, None if mask is None else fake(mask), None, change.get("scale", 0.125))
    y, lse = k.attention(q, key, v, *options)
    k.attention_backward(dy, q, key, v, y, lse, *options)
    np.testing.assert_allclose(y.view(np.ndarray), 1, rtol=1e-5)
    assert "attention" not in " ".join(launch.kernel for launch in recorder.launches)


# --- compilation -------------------------------------------------------------------------

HALF = ["attention_forward", "attention_backward"]
BUILDS = [
    *((source, "__nv_bfloat16", head, 0, "sm_90") for source in HALF for head in (32, 64, 80, 96, 128)),
    *((source, "__nv_bfloat16", head, 1, "sm_90") for source in HALF for head in (32, 64, 80, 96, 128)),
    *((source, "__half", 64, 0, arch) for source in HALF for arch in ("sm_80", "sm_90")),
    *((source, "__nv_bfloat16", head, 1, "sm_80") for source in HALF for head in (64, 128)),
    *((source, "__nv_bfloat16", head, 0, "sm_80") for source in HALF for head in (16, 80)),
    *(("attention_float", "float", head, dropout, "sm_80") for head in (32, 64, 128) for dropout in (0, 1)),
    *(("attention_decode", number, 64, 0, "sm_90") for number in ("float", "__nv_bfloat16")),
]


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: " ".join(map(str, build)))
def test_kernels_compile_without_a_warning_or_a_spill(build: tuple[str, str, int, int, str]) -> None:
    source, number, head, dropout, arch = build
    try:
        nvrtc.library()
        nvrtc.include_folders()
    except nvrtc.Missing as error:
        pytest.skip(str(error))
    defines = (("DROPOUT", str(dropout)), ("HEAD", str(head)), ("T", number))
    _, said = launcher.build(source, arch, defines if "decode" not in source else defines[1:])
    assert "warning" not in said
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert spills
    assert set(spills) == {("0", "0")}
