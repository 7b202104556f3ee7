"""Every barrier of the kernels is needed, and the stand-in for a GPU finds a missing one: without it, results differ.

Where a barrier is left out, some order of the threads gives other results than the rest, or a stuck block.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import emulated_cuda
import numpy as np
import pytest
from emulated_cuda import COMPILER, EmulatingLauncher
from fake_cublaslt import FakeCublasLt
from fake_cupy import FakeCupy, fake

from tensorgrad.backend.cupy import CupyBackend, signature
from tensorgrad.backend.cupy.embedding import THREADS
from tensorgrad.backend.cupy.signature import FOLDER
from tests.tensorgrad.backend.cupy.test_attention import BF16, F32, Case
from tests.tensorgrad.backend.cupy.test_kernels import CALLS, Inputs, results
from tests.tensorgrad.backend.cupy.test_sampling import state_for

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
SEEDS = range(4)  # of random orders
ORDERS: list[dict[str, Any]] = [{}, {"backwards": True}, *({"seed": seed} for seed in SEEDS)]
Run = Callable[[CupyBackend], list[np.ndarray]]


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(list(shape)).standard_normal(shape).astype(np.float32)


def call(name: str, *shape: int, dtype: str = "float32") -> Run:
    return lambda k: results(CALLS[name], k, Inputs(shape, dtype, fake))


def attention(dtype: Any, d: int, n_query: int, n_key: int, **options: Any) -> Run:
    return lambda k: Case(dtype, d, n_query, n_key, **options).run(k)


def sort(k: CupyBackend) -> list[np.ndarray]:
    """The kernels of the sort that have barriers, alone: those after them may never end where its results are wrong."""
    rng, n, n_rows = np.random.default_rng(0), 300, 40
    indices, dy = fake(rng.integers(0, n_rows, n)), fake(np.zeros(1, np.float32))
    counts, ranks = fake(np.zeros((1, n_rows), np.int32)), fake(np.zeros(n, np.int32))
    sizes = tuple(map(np.int32, (n, n_rows, -(-n // THREADS) * THREADS)))
    k._start_embedding("rank", (1,), THREADS, (indices, counts, ranks), sizes, dy, indices)
    totals, starts = fake(rng.integers(0, 9, 1100).astype(np.int32)), fake(np.zeros(1101, np.int32))
    k._start_embedding("scan", (1,), 1024, (totals, starts), (np.int32(1100),), dy, indices)
    return [counts.get(), ranks.get(), starts.get()]


def choice(k: CupyBackend) -> list[np.ndarray]:
    logits, state = (
        fake(np.random.default_rng(0).standard_normal((3, 2100)).astype(np.float32)),
        state_for(2100, None, 0),
    )
    tokens = []
    for x, top_k, top_p in ((logits, None, 1.0), (logits, 50, 0.9), (logits * 0, None, 0.5)):
        k.choose(x, state, n_slots=9, temperature=1.0, top_k=top_k, top_p=top_p, repetition_penalty=1.0)
        tokens.append(state.token.get())
    return tokens


def update(k: CupyBackend) -> list[np.ndarray]:
    p, g, m, v = (fake(np.abs(drawn(300 + i))[:300]) for i in range(4))
    options = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "step": 3}
    k.adamw_group([p], [g], [m], [v], [None], skip=False, **options)
    return [p.get()]


def product(k: CupyBackend) -> list[np.ndarray]:
    x, w = fake(drawn(2, 64)), fake(drawn(70, 64))
    return [k.linear_rows(x, w, norm=(x[0].copy(), None, 1e-5, True)).get()]


def step(k: CupyBackend) -> list[np.ndarray]:
    rng, n_done = np.random.default_rng(0), fake(np.zeros(2, np.uint32))
    qkv, keys, values = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((1, 96), (1, 2, 80, 16), (1, 2, 80, 16))
    )
    y = k.attention_step(fake(qkv), fake(keys), fake(values), fake(np.array([70])), n_done, n_head=2, rope_base=1e4)
    return [y.get()]


def sums_and_maxima(k: CupyBackend) -> list[np.ndarray]:
    """A kernel that calls block_sum and block_max of common.cuh one after the other."""
    x, sums, maxima = drawn(2, 96), np.empty((2, 96), np.float32), np.empty((2, 96), np.float32)
    with pytest.MonkeyPatch.context() as patch:
        for module in (signature, emulated_cuda):
            patch.setattr(module, "path_of", lambda source: emulated_cuda.HEADERS / f"{source}.cu")
        k.launcher.launch("examples", "sum_and_max", (2,), (96,), (x, sums, maxima), 0, {"T": "__half"})
    return [sums, maxima]


RUNS: dict[str, list[Run]] = {
    "attention_backward": [attention(BF16, 16, 150, 150)],
    "attention_decode": [attention(F32, 16, 1, 140), step],
    "attention_float": [attention(F32, 32, 70, 70)],
    "attention_forward": [attention(BF16, 16, 70, 200), attention(BF16, 16, 150, 20)],
    "common": [sums_and_maxima, call("softmax", 2, 600)],
    "decoder": [product],
    "embedding": [sort],
    "linear": [call("linear_backward_bias", 37, 272)],
    "normalization": [call("layer_norm_backward_weight", 37, 272), call("layer_norm_backward", 37, 272)],
    "optimizer": [update],
    "sampling": [choice],
}  # fmt: skip
# Of a barrier before this: it orders writes before a count by which another block knows of them. Here blocks run one
# after the other.
BETWEEN_BLOCKS = "atomicInc"
# Found only where a warp is stopped between its last two steps, and another one has not begun.
HARDLY_SEEN = "without any tile, the queries may still be loading"


def barriers() -> Iterator[Any]:
    """(file, line) of every barrier."""
    for path in sorted([*FOLDER.glob("*.cu"), *FOLDER.glob("*.cuh")]):
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, (line, following) in enumerate(zip(lines, lines[1:], strict=False), 1):
            if re.search(r"^[^/]*__syncthreads\(\)", line) and not (BETWEEN_BLOCKS in following or HARDLY_SEEN in line):
                yield pytest.param(path.name, number, id=f"{path.name}:{number}")


def outcome(run: Run, skipped: tuple[str, int] = ("", 0), **order: Any) -> bytes:
    k = CupyBackend(FakeCupy(), EmulatingLauncher(skipped=skipped, **order))
    k.cublaslt = FakeCublasLt()  # type: ignore[assignment]
    try:
        return b"".join(np.ascontiguousarray(x).tobytes() for x in run(k))
    except RuntimeError as error:
        return str(error).encode()


@pytest.mark.parametrize("source", RUNS)
def test_the_order_of_the_threads_changes_no_bit(source: str) -> None:
    for run in RUNS[source]:
        assert len({outcome(run, **order) for order in ORDERS}) == 1


@pytest.mark.parametrize(("file", "line"), list(barriers()))
def test_a_missing_barrier_is_found(file: str, line: int) -> None:
    for run in RUNS[file.partition(".")[0]]:
        expected = outcome(run)
        if any(outcome(run, (file, line), **order) != expected for order in ORDERS):
            return
    pytest.fail("no order of the threads shows it")
