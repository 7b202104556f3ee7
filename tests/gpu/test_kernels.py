"""Every op over its cases, and the kernels at the sizes of a GPT, on a GPU against float64 on the CPU."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tensorgrad.backend.runtime import Backend
from tensorgrad.gradcheck.cases import cases
from tensorgrad.gradcheck.precision import TOLERANCE, compare
from tensorgrad.random import default_generator

ml_dtypes = pytest.importorskip("ml_dtypes")
DTYPES = ["float64", "float32", "float16", "bfloat16"]
# of the largest number of an array: what is rounded on the way is rounded once or twice
OF_LARGEST = {"float64": 1e-12, "float32": 1e-5, "float16": 4e-3, "bfloat16": 3.2e-2}
DROP = (0.3, 7, 1, 5)
SHARES = 4  # of all ops, so that several processes can take them


class Plain(Backend):
    """The kernels of `math.py` and nothing else."""

    xp = np
    array_type = np.ndarray


@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_op_over_its_examples(place: Any, dtype: str, share: int) -> None:
    """Results and gradients by the dtype table; all examples on a GPU and, in bfloat16, on the stand-in."""
    wrong = []
    for case in list(cases.values())[share::SHARES]:
        for example in place.size(case.examples, case.examples if dtype == "bfloat16" else case.examples[:1]):
            default_generator.manual_seed(0)
            difference = compare(case, example, dtype, place.k)
            if not difference.error <= TOLERANCE[dtype]:
                wrong.append(f"{case.name}, {example.name}: {difference.describe('expected', 'got')}")
    assert wrong == []


# --- at the sizes of a GPT ------------------------------------------------------------------------

Call = Callable[[Any, Any, Any], Any]  # backend, a function that draws, a function that takes integers below a number


def drawing(k: Any, dtype: Any, exact: bool) -> tuple[Any, Any]:
    """The same numbers rounded to dtype: on backend k in that dtype, or exactly in float64."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        x = rng.standard_normal(shape, np.float32).astype(dtype)
        return x.astype(np.float64) if exact else k.asarray(x)

    def below(n: int, *shape: int) -> Any:
        return k.asarray(rng.integers(0, n, shape))

    return draw, below


def attention(k: Any, draw: Any, size: tuple[int, int, int], dropout: Any = None, n_key: int | None = None) -> Any:
    """y and the three gradients of heads of 64 numbers."""
    heads, n_query, d = size
    q, key, v = draw(2, heads, n_query, d), *(draw(2, heads, n_key or n_query, d) for _ in range(2))
    options = (True, None, dropout, 1 / math.sqrt(d))
    y, lse = k.attention(q, key, v, *options)
    if n_key is not None:
        return y, lse
    return y, lse, *k.attention_backward(draw(2, heads, n_query, d), q, key, v, y, lse, *options)


def normalization(k: Any, draw: Any, rows: int, n: int) -> Any:
    x, dy, dsum, weight, bias = *(draw(rows, n) for _ in range(3)), draw(n), draw(n)
    y, mean, rstd = k.layer_norm(x, weight, bias, 1e-5)
    gradients = k.layer_norm_backward(dy, x, weight, mean, rstd, dsum, (True, True, True))
    dx = k.layer_norm_backward_x(dy, x, weight, mean, rstd)
    return y, mean, rstd, *gradients, dx, k.rms_norm(x, weight, 1e-6)[0]


def cross_entropy(k: Any, draw: Any, below: Any, rows: int, n: int) -> Any:
    logits, targets = draw(rows, n), below(n, rows)
    losses, lse = k.cross_entropy(logits, targets, -100, 0.0)
    dlosses = k.xp.ones_like(losses)
    return losses, lse, k.cross_entropy_backward(dlosses, logits, targets, lse, -100, 0.0)


def products(k: Any, draw: Any, rows: int, n_in: int, n_out: int) -> Any:
    x, weight, bias, dy = draw(rows, n_in), draw(n_out, n_in), draw(n_out), draw(rows, n_out)
    y = k.linear(x, weight, bias)
    return y, k.linear_backward_x(dy, weight), k.linear_backward_weight(dy, x), k.linear_backward_bias(dy)


def gelu_in_products(k: Any, draw: Any, rows: int, n: int) -> Any:
    """By cuBLASLt in half precision."""
    x, dy, first, second, bias = draw(rows, n), draw(rows, n), draw(4 * n, n), draw(n, 4 * n), draw(4 * n)
    y, h = k.linear_gelu_tanh(x, first, bias)
    return y, h.copy(), *k.linear_gelu_tanh_backward(dy, second, draw(rows, 4 * n), None, True)


CALLS: dict[str, Callable[[Any, Any, Any, Any], Any]] = {
    "attention": lambda k, draw, below, at: attention(k, draw, at.size((12, 1024, 64), (2, 70, 64))),
    "attention, large head": lambda k, draw, below, at: attention(k, draw, at.size((3, 777, 128), (1, 33, 128))),
    "attention with dropout": lambda k, draw, below, at: attention(k, draw, at.size((4, 516, 64), (1, 36, 64)), DROP),
    "attention over a cache": lambda k, draw, below, at: attention(k, draw, (12, 1, 64), None, at.size(1024, 300)),
    "normalization": lambda k, draw, below, at: normalization(k, draw, *at.size((4099, 768), (9, 96))),
    "gelu": lambda k, draw, below, at: k.gelu_tanh_backward(draw(at.size(4096, 8), 3072), draw(at.size(4096, 8), 3072)),
    "cross_entropy": lambda k, draw, below, at: cross_entropy(k, draw, below, *at.size((1024, 50304), (5, 515))),
    "embedding": lambda k, draw, below, at: k.embedding_backward(
        draw(at.size(8192, 70), 768), below(at.size(50304, 11), at.size(8192, 70)), (at.size(50304, 11), 768)
    ),
    "dropout": lambda k, draw, below, at: k.dropout(draw(at.size(4096, 5), 769), DROP),
    "products": lambda k, draw, below, at: products(k, draw, *at.size((4096, 768, 3072), (20, 24, 40))),
    "GELU in products": lambda k, draw, below, at: gelu_in_products(k, draw, *at.size((4096, 768), (20, 24))),
    "GELU in products, odd": lambda k, draw, below, at: gelu_in_products(k, draw, *at.size((1021, 765), (7, 9))),
    "products, odd": lambda k, draw, below, at: products(k, draw, *at.size((1021, 765, 2305), (7, 9, 5))),
}


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("name", CALLS)
def test_kernels_at_the_sizes_of_a_gpt(place: Any, name: str, dtype: str) -> None:
    call, plain = CALLS[name], Plain()
    runs = [several(call(place.k, *drawing(place.k, np.dtype(dtype), False), place)) for _ in range(2)]
    exact = several(call(plain, *drawing(plain, np.dtype(dtype), True), place))
    for mine, again, truth in zip(*runs, exact, strict=True):
        got = place.k.to_numpy(mine)
        assert got.tobytes() == place.k.to_numpy(again).tobytes(), "not the same bits twice"
        error = np.abs(got.astype(np.float64) - truth).max() / np.abs(truth).max()
        assert error <= OF_LARGEST[dtype], f"{error:.2e}"


def several(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def test_the_optimizer_step_and_the_norm(place: Any) -> None:
    shapes = place.size([(50304, 768), (768,), (3072, 768), (1,)], [(33, 70), (70,), (1,)])
    rng = np.random.default_rng(0)
    host = [[rng.standard_normal(shape, np.float32) for shape in shapes] for _ in range(4)]
    host[3] = [np.abs(v) for v in host[3]]
    there = [[place.k.asarray(x) for x in group] for group in host]
    norm = float(place.k.to_numpy(place.k.xp.asarray(place.k.global_norm(there[1]))))
    assert norm == pytest.approx(math.sqrt(sum(float((x.astype(np.float64) ** 2).sum()) for x in host[1])), rel=1e-5)
    options = {"lr": 0.01, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "step": 3, "grad_scale": 0.25}
    plain = Plain()
    for arrays, mine in zip(zip(*host, strict=True), zip(*there, strict=True), strict=True):
        exact = [x.astype(np.float64) for x in arrays]
        plain.adamw(*exact, **options)  # type: ignore[arg-type]
        place.k.adamw(*mine, **options)
        for got, truth in zip(mine, exact, strict=True):
            np.testing.assert_allclose(place.k.to_numpy(got), truth, rtol=1e-4, atol=1e-6)
