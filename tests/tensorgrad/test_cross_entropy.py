"""The head and its loss as one op: what the table of ops cannot say."""

import importlib
import tracemalloc
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg

module = importlib.import_module("tensorgrad.ops.cross_entropy")  # tensorgrad.ops.cross_entropy is the function


def operands() -> tuple[tg.Tensor, tg.Tensor, Any]:
    rng = np.random.default_rng(0)
    x = tg.Tensor(rng.standard_normal((2, 3, 4)), requires_grad=True)
    weight = tg.Tensor(rng.standard_normal((5, 4)), requires_grad=True)
    return x, weight, rng.integers(0, 5, (2, 3))


def test_the_logits_have_a_gradient_of_their_own() -> None:
    x, weight, targets = operands()
    dy = np.random.default_rng(1).standard_normal((2, 3, 5))
    tg.linear_cross_entropy(x, weight, targets)[0].backward(dy)
    np.testing.assert_allclose(x.grad, dy @ weight.numpy())
    np.testing.assert_allclose(weight.grad, np.einsum("btv,btc->vc", dy, x.numpy()))


@pytest.mark.parametrize("block", [1, 7, 10, 25, 30, 1000])
def test_blocks_of_any_size_give_the_gradients_of_linear_and_cross_entropy(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, targets = operands()
    tg.cross_entropy(tg.linear(x, weight), targets).backward()
    expected = x.grad, weight.grad
    x.grad = weight.grad = None
    monkeypatch.setattr(module, "BLOCK", block)
    tg.linear_cross_entropy(x, weight, targets)[1].backward()
    np.testing.assert_allclose(x.grad, expected[0], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(weight.grad, expected[1], rtol=1e-12, atol=1e-15)


def test_the_gradient_of_the_logits_is_never_held_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    n_rows, n_classes = 512, 2048
    logits_bytes = n_rows * n_classes * 4
    monkeypatch.setattr(module, "BLOCK", n_rows * n_classes // 16)
    x = tg.normal((n_rows, 8), requires_grad=True)
    weight = tg.normal((n_classes, 8), requires_grad=True)
    logits, loss = tg.linear_cross_entropy(x, weight, np.zeros(n_rows, np.int64))
    tracemalloc.start()
    loss.backward()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < logits_bytes / 2, f"{peak} bytes beside logits of {logits_bytes}"


def test_shapes_that_do_not_fit_are_named() -> None:
    x, weight, targets = operands()
    with pytest.raises(ValueError, match=r"^linear_cross_entropy: x \(2, 3, 4\) does not fit weight \(4, 5\)"):
        tg.linear_cross_entropy(x, weight.numpy().T, targets)
    with pytest.raises(ValueError, match=r"^linear_cross_entropy: targets \(2, 2\) do not fit logits \(2, 3, 5\)"):
        tg.linear_cross_entropy(x, weight, targets[:, :2])


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_table_read_by_number_and_multiplied_gets_one_gradient(backend: str) -> None:
    """The output layer's gradient is there first; that of the rows is added into it, as where it is alone."""
    pytest.importorskip("numba") if backend == "numba" else None
    with tg.use_backend(backend):
        indices = np.array([[3, 1, -1, 3], [0, 3, 1, 4]])
        parts = []
        for use in ("both", "rows", "product"):
            table = tg.Tensor(np.random.default_rng(1).standard_normal((5, 3)), requires_grad=True)
            x = tg.embedding(table if use != "product" else tg.Tensor(table.data), indices % 5)
            _, loss = tg.linear_cross_entropy(x, table if use != "rows" else tg.Tensor(table.data), indices % 5)
            loss.backward()
            parts.append(table.grad)
    both, rows, product = parts
    np.testing.assert_allclose(both, rows + product, rtol=0, atol=1e-15)
