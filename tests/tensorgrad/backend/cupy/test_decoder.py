"""The kernels of a step of generation, run on the CPU, against the plain mathematics in float64."""

import itertools
from typing import Any

import numpy as np
import pytest
from emulated_cuda import COMPILER, EmulatingLauncher
from fake_cublaslt import FakeCublasLt
from fake_cupy import FakeCupy, fake

from tensorgrad.backend.cupy import CupyBackend, decoder
from tensorgrad.backend.cupy.decoder import MAX_ROWS, Norm
from tensorgrad.backend.runtime import Backend

ml_dtypes = pytest.importorskip("ml_dtypes")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
TOLERANCE = {"float32": 3e-6, "float16": 3e-3, "bfloat16": 2e-2}  # of the largest: inputs of products are rounded


class Plain(Backend):
    """The kernels of `math.py` and nothing else."""

    xp = np
    array_type = np.ndarray


PLAIN = Plain()


def backend_on_cpu(backwards: bool = False) -> CupyBackend:
    k = CupyBackend(FakeCupy(), EmulatingLauncher(backwards))
    k.cublaslt = FakeCublasLt()  # type: ignore[assignment]
    return k


def kernels(k: CupyBackend) -> list[str]:
    assert isinstance(k.launcher, EmulatingLauncher)
    return [launch.kernel for launch in k.launcher.launches]


def drawn(dtype: Any, *shape: int) -> np.ndarray:
    return np.random.default_rng(list(shape)).standard_normal(shape).astype(dtype)


def wide(x: Any) -> Any:
    return None if x is None else x.astype(np.float64)


def assert_near(got: Any, wanted: np.ndarray, dtype: str) -> None:
    assert got.shape == wanted.shape
    assert got.dtype.name == dtype
    assert np.abs(wide(got.get()) - wanted).max() <= TOLERANCE[dtype] * max(1, np.abs(wanted).max())


# rows of x, their length, the rows of each weight, and what is fused with the product
LINEAR: dict[str, tuple[int, int, tuple[int, ...], dict[str, Any]]] = {
    "layer norm, bias": (1, 96, (50,), {"norm": True, "bias": True}),
    "layer norm without bias, GELU": (1, 40, (17,), {"norm": True, "norm_bias": False, "activation": "tanh"}),
    "bias, residual": (2, 2056, (9,), {"bias": True, "residual": True}),
    "RMS norm, three weights": (3, 48, (16, 8, 9), {"norm": True, "centered": False}),
    "RMS norm, SwiGLU": (1, 48, (21, 21), {"norm": True, "centered": False, "activation": "swiglu"}),
    "the other GELU": (1, 8, (3,), {"activation": "none", "bias": True}),
    "no norm": (4, 8, (70,), {}),
    "more rows": (MAX_ROWS + 1, 48, (16, 8, 8), {"norm": True, "residual": True}),
    "more rows, SwiGLU": (MAX_ROWS + 2, 48, (21, 21), {"norm": True, "centered": False, "activation": "swiglu"}),
    "more rows, GELU": (MAX_ROWS + 1, 48, (21,), {"norm": True, "activation": "tanh", "bias": True}),
    "rows that are not aligned": (1, 49, (5,), {"norm": True, "bias": True}),
}


def plain_linear(x: Any, weights: Any, bias: Any, norm: Norm | None, activation: str | None, residual: Any) -> Any:
    if norm is not None:
        x = norm(PLAIN, x)  # type: ignore[arg-type]
    parts = [x @ w.T + (0 if bias is None else bias) for w in weights]
    if activation == "swiglu":
        y = parts[0] / (1 + np.exp(-parts[0])) * parts[1]
    else:
        y = np.concatenate(parts, axis=1)
        y = {None: lambda y: y, "tanh": PLAIN.gelu_tanh, "none": PLAIN.gelu}[activation](y)
    return y if residual is None else y + residual


@pytest.mark.parametrize(("name", "dtype"), [*zip(LINEAR, itertools.cycle(TOLERANCE))])
def test_products_with_all_that_is_fused(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "MAX_BLOCKS", 2)
    rows, n, sizes, options = LINEAR[name]
    centered, activation = options.get("centered", True), options.get("activation")
    x, weights = drawn(dtype, rows, n), [drawn(dtype, size, n) / np.sqrt(n).astype(dtype) for size in sizes]
    n_out = sizes[0] if activation == "swiglu" else sum(sizes)
    bias = drawn(dtype, n_out) if options.get("bias") else None
    residual = drawn(dtype, rows, n_out) if options.get("residual") else None
    scale, shift = drawn(dtype, n), drawn(dtype, n) if centered and options.get("norm_bias", True) else None
    norm = Norm(scale, shift, 1e-5, centered) if options.get("norm") else None
    wide_norm = None if norm is None else Norm(wide(scale), wide(shift), 1e-5, centered)
    wanted = plain_linear(wide(x), list(map(wide, weights)), wide(bias), wide_norm, activation, wide(residual))

    def on(k: CupyBackend) -> Any:
        one = {name: None if y is None else fake(y) for name, y in (("bias", bias), ("residual", residual))}
        on_gpu = None if norm is None else Norm(fake(scale), None if shift is None else fake(shift), 1e-5, centered)
        return k.linear_rows(fake(x), *map(fake, weights), norm=on_gpu, activation=activation, **one)

    k = backend_on_cpu()
    got = on(k)
    assert_near(got, wanted, dtype)
    one_kernel = "more rows" not in name and "not aligned" not in name
    assert (kernels(k) == ["linear_rows"]) is one_kernel
    assert got.get().tobytes() == on(backend_on_cpu(backwards=True)).get().tobytes()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_embedding_of_a_token_at_its_position(dtype: str) -> None:
    wte, wpe, k = drawn(dtype, 7, 300), drawn(dtype, 9, 300), backend_on_cpu()
    token, position = np.array([3, 6, -1]), np.array([8, 0, 2])
    for table in (wpe, None):
        got = k.embed_token(fake(wte), None if table is None else fake(table), fake(token), fake(position))
        rows = wte[[3, 6, 0]]  # after logits that were not finite, any row will do, but one of the table
        np.testing.assert_array_equal(got.get(), rows if table is None else rows + table[position])


ATTENTION: dict[str, dict[str, Any]] = {
    "one part": {"d": 16, "n_slots": 20, "positions": [0, 7, 19]},
    "several parts": {"d": 64, "n_slots": 150, "positions": [0, 63, 64, 149]},
    "heads share keys, rotary": {"d": 64, "n_slots": 130, "positions": [70, 3], "n_head": 6, "n_group": 2,
                                 "rope_base": 10000.0},
    "large heads, rotary": {"d": 128, "n_slots": 70, "positions": [66], "rope_base": 500.0},
    "heads of no power of 2": {"d": 40, "n_slots": 70, "positions": [64], "n_head": 3},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "dtype"), [*zip(ATTENTION, itertools.cycle(TOLERANCE)), ("several parts", "bfloat16")]
)
def test_attention_over_the_cache_up_to_a_position_in_memory(name: str, dtype: str) -> None:
    """What lies behind a row's position is not read: it is nan. The other rows and slots are not written."""
    case = ATTENTION[name]
    d, n_slots, positions = case["d"], case["n_slots"], np.array(case["positions"])
    n_head, n_batch, base = case.get("n_head", 2), len(case["positions"]), case.get("rope_base")
    n_group = case.get("n_group", n_head)
    qkv = drawn(dtype, n_batch, (n_head + 2 * n_group) * d)
    caches = [drawn(dtype, i + 1, n_batch, n_group, n_slots, d)[i] for i in range(2)]
    for cache in caches:
        for b, position in enumerate(positions):
            cache[b, :, position:] = np.nan

    def on(k: CupyBackend) -> tuple[Any, ...]:
        there, n_done = [fake(cache.copy()) for cache in caches], fake(np.zeros(n_batch * n_head, np.uint32))
        y = k.attention_step(fake(qkv), *there, fake(positions), n_done, n_head=n_head, rope_base=base)
        assert not n_done.get().any()
        return y, *there

    y, *after = on(backend_on_cpu())
    for b, position in enumerate(positions):
        q, key, v = np.split(wide(qkv[b]).reshape(-1, 1, d), [n_head, n_head + n_group])  # (H, 1, D), (G, 1, D) twice
        at = np.array([position])
        if base is not None:
            q, key = (PLAIN.rotary_embedding(x, at, base) for x in (q, key))
        for cache, got, own in zip(caches, after, (key, v), strict=True):
            assert_near(got[b, :, position], own[:, 0], dtype)
            others = np.arange(n_slots) != position
            assert got.get()[b][:, others].tobytes() == cache[b][:, others].tobytes()
        keys, values = (
            np.concatenate([wide(cache[b, :, :position]), own], axis=1)
            for cache, own in zip(caches, (key, v), strict=True)
        )
        repeated = (np.repeat(x, n_head // n_group, axis=0)[None] for x in (keys, values))
        wanted, _ = PLAIN.attention(q[None], *repeated, False, None, None, d**-0.5)
        assert_near(y[b], wanted.reshape(-1), dtype)
    for got, back in zip((y, *after), on(backend_on_cpu(backwards=True)), strict=True):
        assert got.get().tobytes() == back.get().tobytes()


def test_what_the_kernels_cannot_do() -> None:
    k, x = backend_on_cpu(), np.ones((2, 8), np.float32)

    def why(*weights: np.ndarray, head: int = 64, vocab: int = 100) -> str | None:
        return k.why_no_step(list(map(fake, weights)), head, vocab)

    assert why(x) is why(x, x, head=128, vocab=2**18) is None
    one_dtype = "the kernels need weights of one dtype, float32, float16 or bfloat16, not "
    assert why(x.astype(np.float64)) == one_dtype + "float64"
    assert why(x, x.astype(np.float16)) == one_dtype + "float32"
    assert k.why_no_step([fake(x), fake(x).T], 64, 9) == "the kernels need weights that are contiguous"
    for head, dtype in ((136, "float16"), (12, "float16"), (6, "float32")):
        said = f"the kernels need heads of at most 128 numbers in pieces of 16 bytes, not {head}"
        assert why(x.astype(dtype), head=head) == said
    assert why(x, vocab=2**18 + 1) == "the kernels choose among at most 262,144 tokens, not 262,145"
