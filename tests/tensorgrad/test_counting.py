"""tg.count(): FLOPs against counts by hand, and that counting changes no result."""

from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from gpt.model import GPT
from tensorgrad import Tensor
from tensorgrad.gradcheck.cases import Case, cases

AXIS = {True: "axis", False: "dim"}  # the name of softmax's argument here and in PyTorch

pytestmark = pytest.mark.usefixtures("numpy_backend")


def leaf(*shape: int) -> Tensor:
    return Tensor(np.random.default_rng(sum(shape)).standard_normal(shape), requires_grad=True)


def counted(fn: Any, *inputs: Tensor) -> tuple[tg.Cost, tg.Cost]:
    """The cost of one op, forward and backward."""
    with tg.count() as c:
        y = fn(*inputs)
        y.backward(np.ones(y.shape))
    ((name, forward),) = c.forward.items()
    return forward, c.backward[name]


def test_a_product() -> None:
    forward, backward = counted(tg.matmul, leaf(3, 4), leaf(4, 5))
    assert forward == tg.Cost(calls=1, flops=2 * 60, matmul_flops=2 * 60, bytes=8 * (12 + 20 + 15))
    assert backward == tg.Cost(calls=1, flops=4 * 60, matmul_flops=4 * 60, bytes=8 * (12 + 20 + 15 + 12 + 20))


def test_only_needed_gradients_count() -> None:
    frozen = Tensor(np.ones((4, 5)))
    _, backward = counted(lambda x: tg.matmul(x, frozen), leaf(3, 4))
    assert backward.flops == 2 * 60


def test_arithmetic_with_operators() -> None:
    """multiply computes a b, dy b and dy a; db is summed over the broadcast axis."""
    forward, backward = counted(tg.multiply, leaf(3, 4), leaf(4))
    assert forward.flops == 12
    assert backward.flops == 12 + 12 + 2 * 4


def test_softmax() -> None:
    """Forward: maximum (3 of 4 in a row), subtract, exp, sum, divide. Backward: y dy, its sum, subtract, multiply."""
    forward, backward = counted(tg.softmax, leaf(5, 4))
    assert forward.flops == 5 * (3 + 4 + 4 + 3 + 4)
    assert forward.bytes == 8 * (20 + 20)  # x and y
    assert backward.flops == 5 * (4 + 3 + 4 + 4)
    assert backward.bytes == 8 * (20 + 20 + 20)  # dy, y and dx


def test_layer_norm() -> None:
    """Mean (3 + 1 of a row of 4), subtract, square, mean, add eps, root, reciprocal, multiply; then weight and bias."""
    forward, backward = counted(tg.layer_norm, leaf(5, 4), leaf(4), leaf(4))
    assert forward.flops == 5 * (4 + 4 + 4 + 4 + 1 + 1 + 1 + 4 + 4 + 4)
    assert forward.bytes == 8 * (20 + 4 + 4 + 20 + 5 + 5)  # x, weight, bias and y; each row's mean and 1/std are saved
    assert backward.bytes == 8 * (20 + 20 + 5 + 5 + 4 + 20 + 4 + 4)  # dy, x, mean, 1/std, weight; dx, dweight, dbias


def test_a_gradient_that_two_operands_share_is_written_once() -> None:
    with tg.count() as c:
        total, y = tg.add_layer_norm(leaf(5, 4), leaf(5, 4), leaf(4), leaf(4))
        tg.multiply(total, y).backward(np.ones((5, 4)))
    # x, residual, weight and bias; the sum, y, mean and 1/std
    assert c.forward["add_layer_norm"].bytes == 8 * (20 + 20 + 4 + 4 + 20 + 20 + 5 + 5)
    # dy of both, the sum, mean, 1/std and weight; dx, which is dresidual, dweight and dbias
    assert c.backward["add_layer_norm"].bytes == 8 * (20 + 20 + 20 + 5 + 5 + 4 + 20 + 4 + 4)


def test_integers_and_comparisons_have_no_flops_and_views_no_bytes() -> None:
    x = leaf(3, 4)
    with tg.count() as c:
        tg.argmax(x)
        tg.greater(x, 0.0)
        tg.reshape(x, (12,))
    assert c.total.flops == 0
    assert c.forward["reshape"] == tg.Cost(calls=1)


def test_a_lookup_reads_the_rows_that_it_returns() -> None:
    indices = np.array([7, 0, 7])
    forward, backward = counted(lambda table: tg.embedding(table, indices), leaf(1000, 4))
    assert forward.bytes == 8 * (12 + 12 + 3 + 3)  # rows read and written, indices read and saved
    assert backward == tg.Cost(calls=1)
    forward, _ = counted(lambda x: x[indices], leaf(1000, 4))
    assert 8 * 2 * 12 <= forward.bytes <= 8 * (2 * 12 + 3)


def test_numbers_that_broadcasting_repeats_are_one_in_memory() -> None:
    x = tg.broadcast_to(leaf(3, 1), (3, 1000))
    forward, _ = counted(tg.exp, Tensor(x.data, requires_grad=True))
    assert forward.bytes == 8 * (3 + 3000)


def test_einsum() -> None:
    forward, _ = counted(lambda a, b: tg.einsum("...ij,...jk->...ik", a, b), leaf(2, 3, 4), leaf(2, 4, 5))
    assert forward.matmul_flops == 2 * (2 * 3 * 4 * 5)


def test_the_addition_of_gradients_is_counted_separately() -> None:
    x = leaf(3)
    with tg.count() as c:
        ((x * 2) + (x * 3)).backward(np.ones(3))
    assert c.backward["accumulate"].flops == 3
    assert c.backward["accumulate"].bytes == 8 * 3 * 3  # once: the first gradient of a tensor is taken as it is
    assert c.backward["multiply"].flops == 6


def test_the_addition_of_rows_is_counted_separately() -> None:
    table, indices = leaf(1000, 4), np.array([7, 0, 7])
    with tg.count() as c:
        tg.embedding(table, indices).backward(np.ones((3, 4)))
    assert c.backward["accumulate rows"].bytes == 8 * (1000 * 4 + 3 * 12)  # all are set to 0 first
    with tg.count() as c:
        tg.embedding(table, indices).backward(np.ones((3, 4)))
    assert c.backward["accumulate rows"].bytes == 8 * 3 * 12


def test_a_backward_that_returns_what_was_saved_moves_nothing() -> None:
    """linear_cross_entropy has computed the gradients in forward: 2 FLOPs for each product of y, dx and dweight."""
    x, weight = leaf(5, 4), leaf(7, 4)
    with tg.count() as c:
        tg.linear_cross_entropy(x, weight, np.array([0, 1, 2, 3, 6])).backward()
    assert c.forward["linear_cross_entropy"].matmul_flops == 3 * 2 * 5 * 4 * 7
    assert c.backward["linear_cross_entropy"] == tg.Cost(calls=1)


def test_the_products_are_those_that_pytorch_counts(torch: Any) -> None:
    """Forward and backward of linear layers and of attention written as products."""
    flop_counter = pytest.importorskip("torch.utils.flop_counter")
    shapes = (2, 6, 8), (24, 8), (24,), (2, 2, 6, 4)

    def compute(lib: Any, x: Any, weight: Any, bias: Any, q: Any) -> Any:
        linear = lib.linear if lib is tg else lib.nn.functional.linear
        scores = lib.matmul(q, q.mT)
        return linear(x, weight, bias).sum() + lib.matmul(lib.softmax(scores, **{AXIS[lib is tg]: -1}), q).sum()

    ours = [leaf(*shape) for shape in shapes]
    with tg.count() as c:
        compute(tg, *ours).backward()
    theirs = [torch.tensor(x.numpy(), requires_grad=True) for x in ours]
    with flop_counter.FlopCounterMode(display=False) as counter:
        compute(torch, *theirs).backward()
    assert c.total.matmul_flops == counter.get_total_flops() > 0


def test_a_checkpoint_is_computed_twice() -> None:
    x, w = leaf(3, 4), leaf(5, 4)
    with tg.count() as c:
        tg.checkpoint(tg.linear, x, w).backward(np.ones((3, 5)))
    assert c.forward["linear"].calls == 2
    assert c.forward["linear"].matmul_flops == 2 * 2 * 60


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_the_products_of_a_gpt_step(backend: str) -> None:
    """2 FLOPs for every weight and token forward, 4 backward; attention's two products with their four gradients."""
    B, T, C, L, V = 3, 8, 16, 2, 11
    with tg.use_backend(backend):
        model = GPT({"vocab_size": V, "block_size": T, "n_layer": L, "n_head": 2, "n_embd": C, "dropout": 0.0})
        idx = np.random.default_rng(0).integers(0, V, (B, T))
        with tg.count() as c:
            model(idx, idx)[1].backward()
    weights, attention = B * T * (12 * C * C * L + V * C), L * 2 * B * T * T * C
    assert sum(cost.matmul_flops for cost in c.forward.values()) == 2 * (weights + attention)
    recomputed = L * 2 * B * T * T * C if "attention" in c.backward else 0  # the scores, by the fused op
    assert sum(cost.matmul_flops for cost in c.backward.values()) == 4 * (weights + attention) + recomputed


@pytest.mark.parametrize("case", cases.values(), ids=repr)
def test_counting_changes_no_result(case: Case) -> None:
    def run(example: Any) -> list[Any]:
        tg.manual_seed(1)
        inputs = example.tensors(tg.get_backend(), "float64")
        outputs = example.run(case.op, *inputs)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        for y in outputs:
            if y.requires_grad:
                y.backward(np.ones(y.shape), retain_graph=True)
        leaves = [x for x in inputs if isinstance(x, Tensor)]
        found = [*(y.data for y in outputs), *(x.grad for x in leaves if x.grad is not None)]
        assert all(type(array) is np.ndarray for array in found)
        return found

    for example in case.examples:
        with tg.count():
            counted = run(example)
        for x, y in zip(counted, run(example), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12)


def test_nested_counts_and_an_op_after_them() -> None:
    x = leaf(3, 4)
    with tg.count() as outer:
        with tg.count() as inner:
            tg.exp(x)
        tg.exp(x)
    tg.exp(x)
    assert (outer.total.flops, inner.total.flops) == (24, 12)
    assert "exp" in str(outer)
