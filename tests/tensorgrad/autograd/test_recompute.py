"""Activation checkpointing: the same bits as an ordinary call, for less memory, whatever the function is made of."""

import gc
import weakref
from collections import namedtuple
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorgrad as tg
from tensorgrad import Tensor, checkpoint, nn
from tensorgrad.distributed import GradientReady

pytestmark = pytest.mark.usefixtures("numpy_backend")

Pair = namedtuple("Pair", ["first", "second"])


def leaf(*shape: int, seed: int = 0) -> Any:
    return Tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


def ordinary(function: Any, *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def equal(a: Any, b: Any) -> bool:
    return (a is None and b is None) or (a.dtype == b.dtype and np.array_equal(a, b))


class Residual(nn.Module):
    """A block with everything in it: parameters, a residual path, dropout."""

    def __init__(self, n: int, seed: int) -> None:
        self.norm = nn.LayerNorm(n).astype(np.float64)
        self.weight = leaf(n, n, seed=seed)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Any, scale: float = 1.0) -> Any:
        return x + scale * self.dropout(tg.gelu(self.norm(x) @ self.weight))


def train(call: Any, n_blocks: int = 3) -> list[Any]:
    """Two backward passes through some blocks, added up; every number that comes out."""
    tg.manual_seed(1)
    blocks, x = [Residual(4, seed) for seed in range(n_blocks)], leaf(2, 5, 4, seed=9)
    numbers = []
    for _ in range(2):
        y = x
        for block in blocks:
            y = call(block, y, scale=0.5)
        loss = (y * y).sum()
        loss.backward()
        numbers.append(loss.numpy())
    gradients = [p.grad for block in blocks for p in block.parameters()]
    return [*numbers, x.grad, *gradients, np.array(tg.random.default_generator.steps[tg.random.Stream.DROPOUT])]


def test_the_same_bits_as_an_ordinary_call() -> None:
    results = zip(train(ordinary), train(checkpoint), strict=True)
    assert all(equal(a, b) for a, b in results)


def test_nested() -> None:
    def halves(function: Any, x: Any, **options: Any) -> Any:
        """Each block checkpointed, and every block inside a checkpoint of its own again."""
        return checkpoint(lambda x: checkpoint(function, x, **options), x)

    assert all(equal(a, b) for a, b in zip(train(ordinary), train(halves), strict=True))


def random_graph(call: Any, choices: list[int]) -> Any:
    """Ops on whatever tensors there are so far, in groups that are called through `call` and see outer tensors too."""
    a, b = leaf(3, seed=1), leaf(3, seed=2)
    there = [a, b, a * b]
    for choice in choices:
        x, y, z = (there[(choice // n) % len(there)] for n in (1, 7, 49))

        def group(x: Any, y: Any, z: Any = z) -> Any:
            inner = tg.sin(x) * y  # z is found outside, by no argument
            return inner + z, inner, tg.tanh(inner * z) - x

        there.extend(call(group, x, y))
    loss = sum((t * (i + 1)).sum() for i, t in enumerate(there[-4:]))
    loss.backward()
    return [a, b], loss


@given(st.lists(st.integers(0, 10**6), max_size=6))
def test_any_graph_gets_the_gradients_of_an_ordinary_call(choices: list[int]) -> None:
    """Bit for bit: everything is added up in the same order."""
    (leaves, loss), (others, other) = random_graph(ordinary, choices), random_graph(checkpoint, choices)
    assert equal(loss.numpy(), other.numpy())
    assert all(equal(a.grad, b.grad) for a, b in zip(leaves, others, strict=True))


@given(st.lists(st.integers(0, 10**6), max_size=6))
def test_gradients_are_reported_once_they_are_complete(choices: list[int]) -> None:
    """As distributed training needs it: every leaf once, with all of its gradient."""
    reported: dict[Any, Any] = {}

    def report(node: Any) -> None:
        assert node not in reported
        reported[node] = node.grad.copy()

    with GradientReady(report):
        leaves, loss = random_graph(checkpoint, choices)
    assert reported.keys() == {x.node for x in leaves if x.grad is not None}
    for x in leaves:
        assert equal(reported.get(x.node), x.grad)


def test_gradients_are_reported_while_backward_goes_on() -> None:
    blocks, x, order = [Residual(4, seed) for seed in range(2)], leaf(2, 4), []
    y = checkpoint(blocks[1], checkpoint(blocks[0], x))
    with GradientReady(lambda node: order.append(node)):
        y.sum().backward()
    places = [[order.index(p.node) for p in block.parameters()] for block in blocks]
    assert max(places[1]) < min(places[0])
    assert order.index(x.node) > max(places[1])


def test_against_pytorch(torch: Any) -> None:
    from torch.utils.checkpoint import checkpoint as theirs

    x, w = leaf(3, 4), leaf(4, 4, seed=1)
    x_, w_ = (torch.tensor(t.numpy(), requires_grad=True) for t in (x, w))
    checkpoint(lambda x: tg.tanh(x @ w) @ w, x).sum().backward()
    theirs(lambda x: torch.tanh(x @ w_) @ w_, x_, use_reentrant=False).sum().backward()
    for ours, their in ((x, x_), (w, w_)):
        np.testing.assert_allclose(ours.grad, their.grad.numpy(), rtol=1e-12)


@pytest.mark.parametrize(
    ("made", "parts"),
    [
        (lambda y, n: (y, 2 * y), lambda r: r),
        (lambda y, n: [y, None, y * n, "word"], lambda r: (r[0], r[2])),
        (lambda y, n: {"y": y, "again": {"y": y}, "n": n}, lambda r: (r["y"], r["again"]["y"])),
        (lambda y, n: Pair(y, (n, y - 1)), lambda r: (r.first, r.second[1])),
    ],
)
def test_results_of_any_structure(made: Any, parts: Any) -> None:
    gradients = []
    for call in (ordinary, checkpoint):
        x = leaf(3)
        result = call(lambda x: made(tg.exp(x), 3), x)
        first, second = parts(result)
        (first * second).sum().backward()
        gradients.append((type(result), x.grad))
    assert gradients[0][0] is gradients[1][0]
    np.testing.assert_allclose(gradients[0][1], gradients[1][1], rtol=1e-14)


def test_a_result_that_nothing_uses_and_one_that_has_no_gradient() -> None:
    x = leaf(3)
    used, _, index = checkpoint(lambda x: (tg.exp(x), tg.sin(x), tg.argmax(x)), x)
    assert not index.requires_grad
    used.sum().backward()
    np.testing.assert_array_equal(x.grad, np.exp(x.numpy()))


def test_a_result_that_is_an_argument_or_a_parameter() -> None:
    x, w = leaf(3), leaf(3, seed=1)
    y = x * 2
    same, weight = checkpoint(lambda y: (y, w), y)
    (same * 3 + weight).sum().backward()
    np.testing.assert_array_equal(x.grad, [6.0] * 3)
    np.testing.assert_array_equal(w.grad, [1.0] * 3)
    weight_grad = w.grad
    checkpoint(lambda: w).sum().backward()
    np.testing.assert_array_equal(weight_grad, [2.0] * 3)


def test_retain_graph_draws_the_same_numbers_every_time() -> None:
    tg.manual_seed(3)
    x = leaf(50)
    y = checkpoint(lambda x: tg.dropout(tg.exp(x), p=0.5), x)
    tg.dropout(x)  # what is drawn in between changes nothing
    y.sum().backward(retain_graph=True)
    first = x.grad.copy()
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, 2 * first)
    np.testing.assert_array_equal(first, y.numpy())  # d exp = exp, where it was kept
    with pytest.raises(RuntimeError, match="checkpoint: backward a second time through a graph that was freed"):
        y.sum().backward()


def test_backward_under_no_grad_and_calls_under_no_grad() -> None:
    x, calls = leaf(2), []

    def function(x: Any) -> Any:
        calls.append(tg.is_grad_enabled())
        return tg.exp(x)

    with tg.no_grad():
        assert not checkpoint(function, x).requires_grad
    y = checkpoint(function, x).sum()
    with tg.no_grad():
        y.backward()
    assert calls == [False, True, True]
    np.testing.assert_array_equal(x.grad, np.exp(x.numpy()))


def test_where_nothing_has_a_gradient_it_is_an_ordinary_call() -> None:
    y = checkpoint(tg.exp, Tensor([1.0]))
    assert not y.requires_grad
    assert checkpoint(lambda: 5) == 5


def test_nothing_but_the_arguments_is_kept() -> None:
    made = []

    def function(x: Any) -> Any:
        for _ in range(4):
            x = tg.sin(x)
            made.append(weakref.ref(x.data))
        return x

    x = leaf(1000)
    y = checkpoint(function, x)
    assert [ref() is not None for ref in made] == [False, False, False, True]  # y itself
    del made[:]
    y.sum().backward()
    assert [ref() for ref in made] == [None] * 4  # no cycle: without the help of gc


def test_no_leak() -> None:
    gc.collect()
    gc.disable()
    try:
        block, x = Residual(4, 0), leaf(2, 4)
        y = checkpoint(block, checkpoint(block, x * 2))
        node = weakref.ref(block)
        y.sum().backward()
        del block
        assert node() is None  # although y is still there
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_a_function_that_draws_other_numbers_is_refused() -> None:
    block, x = Residual(4, 0), leaf(2, 4)
    y = checkpoint(block, x)
    block.eval()
    before = tg.random.default_generator.state_dict()
    with pytest.raises(RuntimeError, match="drew other random numbers than at first; is its module still in the same"):
        y.sum().backward()
    assert tg.random.default_generator.state_dict() == before


def test_a_function_that_gives_something_else_is_refused() -> None:
    sizes = iter([2, 3])
    y = checkpoint(lambda x: tg.tile(x, (next(sizes),)), leaf(2))
    with pytest.raises(RuntimeError, match=r"gave float64 \(4,\), and float64 \(6,\) when recomputed in backward"):
        y.sum().backward()


@pytest.mark.parametrize("which", ["x", "w"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_what_was_overwritten_in_between_is_refused(which: str, depth: int) -> None:
    """An argument, and a weight that is found outside, also deep inside of the function."""
    x, w = leaf(3), leaf(3, seed=1)

    def function(x: Any, depth: int) -> Any:
        return tg.exp(checkpoint(function, x, depth - 1)) if depth else tg.sin(x * w)

    y = function(x, depth)
    with tg.no_grad():
        {"x": x, "w": w}[which][...] = 0.0
    with pytest.raises(RuntimeError, match=r"an array of shape \(3,\) that it saved for backward was overwritten"):
        y.sum().backward()


def test_a_write_to_something_else_is_none_of_its_business() -> None:
    x, other = leaf(3), leaf(3)
    y = checkpoint(tg.exp, x)
    with tg.no_grad():
        other[...] = 0.0
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, np.exp(x.numpy()))


def test_a_deep_chain_of_checkpoints_needs_no_recursion() -> None:
    x = leaf(2)
    y = x
    for _ in range(3000):
        y = checkpoint(lambda y: y * 1.0, y)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, [1.0, 1.0])
