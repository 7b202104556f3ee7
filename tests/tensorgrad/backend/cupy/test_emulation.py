"""The emulation of CUDA itself: it computes what a GPU would, and finds the mistakes that it is there to find."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_cuda import COMPILER, EmulatingLauncher, library

from tensorgrad.backend.cupy import launcher, signature

ml_dtypes = pytest.importorskip("ml_dtypes")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")

SOURCE = Path(__file__).parent / "cuda_emulation" / "examples.cu"
HALVES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]


@pytest.fixture(autouse=True)
def examples(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use examples.cu instead of a file of the backend."""
    monkeypatch.setattr(signature, "path_of", lambda source: SOURCE)
    monkeypatch.setattr("emulated_cuda.path_of", lambda source: SOURCE)
    launcher.read.cache_clear()
    library.cache_clear()
    yield
    launcher.read.cache_clear()
    library.cache_clear()


def run(kernel: str, threads: int, *args: Any, dtype: Any = np.float16, shared: int = 0, blocks: int = 1) -> None:
    """In both orders: from the first thread to the last, and from the last to the first."""
    before = [x.copy() for x in args]
    outcomes = []
    for backwards in (False, True):
        for x, start in zip(args, before, strict=True):
            if isinstance(x, np.ndarray):
                x[...] = start
        EmulatingLauncher(backwards).launch(
            "examples", kernel, (blocks,), (threads,), args, shared, {"T": launcher.c_type(dtype)}
        )
        outcomes.append([x.copy() for x in args if isinstance(x, np.ndarray)])
    for forwards, back in zip(*outcomes, strict=True):
        np.testing.assert_array_equal(forwards.view(np.uint8), back.view(np.uint8))


def drawn(*shape: int, dtype: Any = np.float32, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("threads", [32, 96, 1024])
def test_block_sum_and_max(threads: int) -> None:
    x, sums, tops = drawn(3, threads), np.empty((3, threads), np.float32), np.empty((3, threads), np.float32)
    run("sum_and_max", threads, x, sums, tops, blocks=3)
    np.testing.assert_allclose(sums, np.broadcast_to(x.sum(axis=1, keepdims=True), x.shape), rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(tops, np.broadcast_to(x.max(axis=1, keepdims=True), x.shape))


def test_launches_of_two_python_threads_do_not_overlap() -> None:
    """Tests use threads in place of the processes of a group."""

    def launch() -> None:
        x, sums, tops = drawn(200, 128), np.empty((200, 128), np.float32), np.empty((200, 128), np.float32)
        run("sum_and_max", 128, x, sums, tops, blocks=200)
        np.testing.assert_array_equal(tops, np.broadcast_to(x.max(axis=1, keepdims=True), x.shape))

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(launch) for _ in range(8)]:
            done.result()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_matrix_product_of_fragments(dtype: Any) -> None:
    a, b = drawn(16, 16, dtype=dtype), drawn(16, 8, dtype=dtype, seed=1)
    c = drawn(16, 8, seed=2)
    for transposed in (0, 1):
        operand, y = np.ascontiguousarray(b if transposed else b.T), np.empty((16, 8), np.float32)
        run("product", 32, a, operand, c, y, np.int32(transposed), dtype=dtype)
        np.testing.assert_allclose(y, a.astype(np.float32) @ b.astype(np.float32) + c, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision_is_rounded_like_numpy(dtype: Any) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 4096, dtype=np.uint32)
    x = bits.view(np.float32)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 65519.99, 65520, 1e-8]
    x = np.concatenate([x[np.isfinite(x)], special]).astype(np.float32)
    y = np.empty(x.size, dtype)
    run("round_all", 64, x, y, np.int32(x.size), dtype=dtype)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(y.astype(np.float32), x.astype(dtype).astype(np.float32), strict=True)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("reads_too_early", "arrays are not equal"),
        ("leaves_before_the_barrier", r"stuck: of 64 threads 32 are done, 32 wait for the block, 0 for their warp"),
        ("shuffles_in_a_branch", r"stuck: of 64 threads \d+ are done, \d+ wait for the block, \d+ for their warp"),
        ("writes_outside", r"kernel writes_outside: wrote outside of an array of 256 bytes"),
        ("writes_outside_of_shared", "wrote beyond its 256 bytes of shared memory"),
        ("wants_alignment", "ldmatrix: a row is not aligned to 16 bytes"),
    ],
)
def test_mistakes_are_found(kernel: str, message: str) -> None:
    with pytest.raises((RuntimeError, AssertionError), match=f"(?i){message}"):
        run(kernel, 64, drawn(64), np.zeros(64, np.float32), shared=256)
    run("correct", 64, drawn(64), np.zeros(64, np.float32), shared=256)  # and nothing of it is left behind


@pytest.mark.parametrize("kernel", ["reads_what_nobody_wrote", "forgets_to_wait", "reads_outside"])
def test_uninitialised_memory_is_nan(kernel: str) -> None:
    y = np.zeros(64, np.float32)
    run(kernel, 64, drawn(64), y, shared=256)
    assert np.isnan(y).any()
