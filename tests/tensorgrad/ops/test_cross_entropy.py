"""linear_cross_entropy: its blocks, its gradients that are computed in forward, and its memory."""

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad.autograd import note_write


def operands() -> tuple[tg.Tensor, tg.Tensor, Any]:
    rng = np.random.default_rng(0)
    x = tg.Tensor(rng.standard_normal((2, 3, 4)), requires_grad=True)
    weight = tg.Tensor(rng.standard_normal((5, 4)), requires_grad=True)
    return x, weight, rng.integers(0, 5, (2, 3))


def both_gradients(loss: tg.Tensor, *leaves: tg.Tensor) -> list[Any]:
    """The gradients of the leaves, which are then set to None."""
    loss.backward()
    gradients = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    return gradients


def assert_close(got: list[Any], expected: list[Any]) -> None:
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)


@pytest.fixture(params=["numpy", "numba"])
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    pytest.importorskip("numba") if request.param == "numba" else None
    with tg.use_backend(request.param):
        yield


USES: dict[str, Callable[[tg.Tensor], tg.Tensor]] = {
    "alone": lambda loss: loss,
    "times a number": lambda loss: loss * -2.5,
    "used twice": lambda loss: loss * loss + 3 * loss,
}


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("block", [1, 7, 10, 25, 30, 1000])
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("targets", ["all", "some ignored", "all ignored"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_it_equals_cross_entropy_of_linear(
    block: int, use: str, reduction: Any, targets: str, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, t = operands()
    t = {"all": t, "some ignored": np.where(t > 2, 7, t), "all ignored": np.full_like(t, 7)}[targets]
    options: Any = {"ignore_index": 7, "label_smoothing": smoothing, "reduction": reduction}
    monkeypatch.setattr(tg.get_backend(), "logits_block", block)
    losses = [tg.cross_entropy(tg.linear(x, weight), t, **options), tg.linear_cross_entropy(x, weight, t, **options)]
    with tg.no_grad():
        losses.append(tg.linear_cross_entropy(x, weight, t, **options))
    assert_close([loss.numpy() for loss in losses[1:]], [losses[0].numpy()] * 2)
    expected, got = (both_gradients(USES[use](loss), x, weight) for loss in losses[:2])
    assert_close(got, expected)
    assert expected[0].any() == (targets != "all ignored")


@pytest.mark.parametrize("block", [10, 1000])
def test_with_a_loss_for_every_row_it_is_equal_too(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, targets = operands()
    monkeypatch.setattr(tg.get_backend(), "logits_block", block)
    rows = tg.Tensor(np.random.default_rng(1).standard_normal(targets.shape))
    losses = [
        tg.cross_entropy(tg.linear(x, weight), targets, reduction="none"),
        tg.linear_cross_entropy(x, weight, targets, reduction="none"),
    ]
    np.testing.assert_allclose(losses[1].numpy(), losses[0].numpy(), rtol=1e-12)
    expected, got = (both_gradients((loss * rows).sum(), x, weight) for loss in losses)
    assert_close(got, expected)


@pytest.mark.usefixtures("backend")
def test_gradients_add_up_over_calls() -> None:
    x, weight, targets = operands()
    expected = both_gradients(tg.cross_entropy(tg.linear(x, weight), targets), x, weight)
    for factor in (1, 1, 0.5):
        (factor * tg.linear_cross_entropy(x, weight, targets)).backward()
    assert_close([x.grad, weight.grad], [2.5 * gradient for gradient in expected])


@pytest.mark.usefixtures("backend")
def test_a_second_backward_through_a_retained_graph_is_bitwise_equal() -> None:
    """The arrays of the first backward belong to the leaves, which write into them: the second computes new ones."""
    x, weight, targets = operands()
    for dy in (1.0, 3.0):
        loss = tg.linear_cross_entropy(x, weight, targets)
        loss.backward(np.array(dy), retain_graph=True)
        first = [x.grad.copy(), weight.grad.copy()]
        x.grad += 1
        weight.grad += 1
        x.grad = weight.grad = None
        loss.backward(np.array(dy), retain_graph=True)
        np.testing.assert_array_equal(x.grad, first[0])
        np.testing.assert_array_equal(weight.grad, first[1])
        loss.backward(np.array(dy))
        assert_close([x.grad, weight.grad], [2 * gradient for gradient in first])
        x.grad = weight.grad = None
        with pytest.raises(RuntimeError, match="linear_cross_entropy: backward a second time through a graph"):
            loss.backward()


def test_only_needed_gradients_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are counted: one for the logits, and one for each operand that requires a gradient."""
    x, weight, targets = operands()
    k, products = tg.get_backend(), []
    for name in ("linear", "linear_backward_x", "linear_backward_weight"):
        kernel = getattr(k, name)
        monkeypatch.setattr(k, name, lambda *a, name=name, kernel=kernel: products.append(name) or kernel(*a))
    more = {"x": ["linear_backward_x"], "weight": ["linear_backward_weight"], "": []}
    for operand, expected in more.items():
        products.clear()
        loss = tg.linear_cross_entropy(
            x if operand == "x" else x.detach(), weight if operand == "weight" else weight.detach(), targets
        )
        assert products == ["linear", *expected]
        assert loss.requires_grad == bool(operand)
    with tg.no_grad():
        products.clear()
        assert not tg.linear_cross_entropy(x, weight, targets).requires_grad
        assert products == ["linear"]


def test_it_works_inside_a_checkpoint() -> None:
    x, weight, targets = operands()
    expected = both_gradients(tg.linear_cross_entropy(x, weight, targets) * 3, x, weight)
    got = both_gradients(tg.checkpoint(tg.linear_cross_entropy, x, weight, targets) * 3, x, weight)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_operand_that_is_overwritten_before_backward_raises() -> None:
    x, weight, targets = operands()
    loss = tg.linear_cross_entropy(x, weight, targets)
    weight.data[...] = 0
    note_write(weight.data)
    with pytest.raises(RuntimeError, match=r"linear_cross_entropy: an array of shape \(5, 4\) that it saved"):
        loss.backward()


def test_ctx_cannot_be_passed_as_an_argument() -> None:
    x, weight, targets = operands()
    with pytest.raises(TypeError, match="linear_cross_entropy: got an unexpected keyword argument 'ctx'"):
        tg.linear_cross_entropy(x, weight, targets, ctx=None)


def peak_of(step: Callable[[], Any]) -> int:
    step()  # first, so that caches exist
    tracemalloc.start()
    try:
        step()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("backend")
def test_neither_all_logits_nor_their_gradient_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    n_rows, n_classes = 512, 2048
    logits_bytes = n_rows * n_classes * 4
    monkeypatch.setattr(tg.get_backend(), "logits_block", n_rows * n_classes // 16)
    x = tg.normal((n_rows, 8), requires_grad=True)
    weight = tg.normal((n_classes, 8), requires_grad=True)
    targets = np.zeros(n_rows, np.int64)

    def evaluate() -> None:
        with tg.no_grad():
            tg.linear_cross_entropy(x, weight, targets)

    steps: dict[str, Callable[[], Any]] = {
        "training": lambda: tg.linear_cross_entropy(x, weight, targets).backward(),
        "times a number": lambda: (2 * tg.linear_cross_entropy(x, weight, targets)).backward(),
        "evaluation": evaluate,
    }
    for what, step in steps.items():
        assert (peak := peak_of(step)) < logits_bytes / 2, f"{what}: {peak} bytes, and all logits are {logits_bytes}"
    plain = peak_of(lambda: tg.cross_entropy(tg.linear(x, weight), targets).backward())
    assert plain > 2 * logits_bytes  # tracemalloc sees them


def test_shapes_that_do_not_fit_are_named() -> None:
    x, weight, targets = operands()
    with pytest.raises(ValueError, match=r"^linear_cross_entropy: x \(2, 3, 4\) does not fit weight \(4, 5\)"):
        tg.linear_cross_entropy(x, weight.numpy().T, targets)
    with pytest.raises(ValueError, match=r"^linear_cross_entropy: targets \(2, 2\) do not fit logits \(2, 3, 5\)"):
        tg.linear_cross_entropy(x, weight, targets[:, :2])


@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_a_table_that_is_also_the_output_layer_gets_the_sum_of_both_gradients(name: str) -> None:
    """The sparse gradient of its rows is added to the gradient of the output layer, which arrives first."""
    pytest.importorskip("numba") if name == "numba" else None
    with tg.use_backend(name):
        indices = np.array([[3, 1, -1, 3], [0, 3, 1, 4]])
        parts = []
        for use in ("both", "rows", "product"):
            table = tg.Tensor(np.random.default_rng(1).standard_normal((5, 3)), requires_grad=True)
            x = tg.embedding(table if use != "product" else tg.Tensor(table.data), indices % 5)
            head = table if use != "rows" else tg.Tensor(table.data)
            tg.linear_cross_entropy(x, head, indices % 5).backward()
            parts.append(table.grad)
    both, rows, product = parts
    np.testing.assert_allclose(both, rows + product, rtol=0, atol=1e-15)


@pytest.mark.parametrize("block", [10, 1000])
@pytest.mark.parametrize("use", USES)
def test_on_a_gpu_it_is_equal_without_synchronisation(
    block: int, use: str, gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tg.use_backend("numpy"):
        here = operands()
        expected = both_gradients(USES[use](tg.cross_entropy(tg.linear(*here[:2]), here[2])), *here[:2])
    monkeypatch.setattr(gpu, "logits_block", block)
    x, weight = (tg.Tensor(gpu.asarray(leaf.numpy()), requires_grad=True) for leaf in here[:2])
    targets = gpu.asarray(here[2])
    before = gpu.xp.copied_to_host
    got = both_gradients(USES[use](tg.linear_cross_entropy(x, weight, targets)), x, weight)
    assert gpu.xp.copied_to_host == before
    assert_close([gpu.to_numpy(gradient) for gradient in got], expected)
