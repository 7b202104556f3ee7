"""Gradients of gradients against finite differences, formulas and PyTorch."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from gpt.config import GPTConfig
from gpt.fused import FusedGPT
from gpt.model import GPT
from tensorgrad import Tensor, ops
from tensorgrad.backend import load
from tensorgrad.gradcheck.cases import Case, Example, cases

FAMILIES = ["exp", "matmul", "softmax", "layer_norm", "getitem", "cross_entropy", "attention", "mlp", "embedding"]
EXAMPLES = 5  # of every op: the first ones cover its options

of_every_op = pytest.mark.parametrize("case", [case for case in cases.values() if case.gradient], ids=repr)


def requires_grad(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def gradient_of(case: Case, example: Example, k: Any) -> tuple[Callable[..., Any], list[Tensor]]:
    """A function that returns the gradients of an op, and its inputs: the op's, and dy for each of its outputs."""
    given = example.tensors(k, np.float64)
    places = [i for i, x in enumerate(given) if requires_grad(x)]

    def outputs(tensors: list[Any]) -> list[Tensor]:
        result = example.run(case.op, *tensors)
        return [y for y in (result if isinstance(result, list | tuple) else [result]) if requires_grad(y)]

    def gradient(*flat: Tensor) -> Any:
        inputs = list(given)
        for i, x in zip(places, flat, strict=False):
            inputs[i] = x if x.requires_grad else Tensor(x.data, requires_grad=True)
        with tg.enable_grad(), tg.higher_order():
            total = sum(ops.sum(y * dy) for y, dy in zip(outputs(inputs), flat[len(places) :], strict=True))
            nothing = sum(ops.sum(x) * 0.0 for x in flat)  # where the gradient is constant it has to be a result, too
            found = tg.gradients(total, [inputs[i] for i in places], create_graph=True)
        return [dx + nothing for dx in found]

    rng = np.random.default_rng(0)
    dys = [Tensor(k.asarray(rng.normal(size=y.shape)), requires_grad=True) for y in outputs(given)]
    return gradient, [*(given[i] for i in places), *dys]


def second_derivatives(name: str, k: Any) -> list[Any]:
    """The gradient of the sum of squares of an op's gradient, on the current backend, as NumPy arrays."""
    gradient, inputs = gradient_of(cases[name], cases[name].examples[1], k)
    with tg.higher_order():
        found = gradient(*inputs)
        return [k.to_numpy(dx.data) for dx in tg.gradients(sum(ops.sum(dx * dx) for dx in found), inputs)]


@of_every_op
def test_the_gradient_of_every_op_has_a_gradient(case: Case) -> None:
    checked = [x for x in case.examples if "infinity" not in x.name][:EXAMPLES]  # 0 times infinity is nan
    for example in checked:
        gradient, inputs = gradient_of(case, example, load("numpy"))
        if len(inputs) > 1:
            assert tg.gradcheck(gradient, *inputs), example


@pytest.mark.parametrize("name", FAMILIES)
def test_second_derivatives_with_numba(name: str) -> None:
    with tg.use_backend("numba"):
        ours = second_derivatives(name, load("numba"))
    for dx, expected in zip(ours, second_derivatives(name, load("numpy")), strict=True):
        np.testing.assert_allclose(dx, expected, rtol=1e-9, atol=1e-12)


def nested(fn: Callable[..., Tensor], order: int) -> Callable[..., Tensor]:
    """The derivative of that order of a function from numbers to numbers, each from its own."""
    for _ in range(order):
        fn = tg.grad(functools.partial(lambda f, x: ops.sum(f(x)), fn))
    return fn


def test_third_derivatives_are_their_formulas() -> None:
    x = np.linspace(-1.5, 1.5, 7)
    np.testing.assert_allclose(nested(lambda x: tg.exp(2 * x), 3)(x).data, 8 * np.exp(2 * x), rtol=1e-13)
    t = np.tanh(x)
    np.testing.assert_allclose(nested(tg.tanh, 3)(x).data, (1 - t * t) * (6 * t * t - 2), rtol=1e-12)
    s = 1 / (1 + np.exp(-x))  # softmax of [x, 0]
    third = s * (1 - s) * (1 - 6 * s + 6 * s * s)
    of_pair = nested(lambda x: tg.softmax(tg.stack([x, x * 0], axis=-1))[:, 0], 3)
    np.testing.assert_allclose(of_pair(x).data, third, rtol=1e-12)


@pytest.mark.parametrize("fn", [tg.exp, tg.tanh, tg.softmax], ids=["exp", "tanh", "softmax"])
def test_the_second_gradient_passes_gradcheck(fn: Callable[..., Tensor]) -> None:
    weights = np.random.default_rng(1).normal(size=(2, 3))

    def second(x: Tensor) -> Tensor:
        with tg.enable_grad():
            start = x if x.requires_grad else Tensor(x.data, requires_grad=True)
            return nested(lambda x: fn(x) * weights, 2)(start)

    assert tg.gradcheck(second, Tensor(np.random.default_rng(0).normal(size=(2, 3)), requires_grad=True), full=True)


TINY = GPTConfig(block_size=6, vocab_size=11, n_layer=2, n_head=2, n_embd=8, dropout=0.5, bias=True)


@pytest.mark.parametrize("make", [GPT, FusedGPT])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_hessian_vector_product_of_a_gpt_with_dropout(make: type[GPT], recompute: bool) -> None:
    tg.manual_seed(0)
    model = make(TINY)
    model.astype(np.float64)
    model.recompute = recompute
    rng = np.random.default_rng(0)
    params = list(model.parameters())
    for p in params:
        p.data += 0.3 * rng.normal(size=p.shape)
    tokens, vs = rng.integers(11, size=(3, 7)), [rng.normal(size=p.shape) for p in params]

    def gradient(create_graph: bool) -> tuple[Tensor, ...]:
        tg.manual_seed(5)  # the same dropout
        with tg.higher_order():
            found: tuple[Tensor, ...] = tg.gradients(
                model.loss(tokens[:, :-1], tokens[:, 1:]), params, create_graph=create_graph
            )
        return found

    dot = sum(ops.sum(dx * v) for dx, v in zip(gradient(True), vs, strict=True))
    product = tg.gradients(dot, params)
    eps, sides = 1e-6, []
    for step in (eps, -2 * eps):
        for p, v in zip(params, vs, strict=True):
            p.data += step * v
        sides.append([dx.data for dx in gradient(False)])
    for hv, right, left in zip(product, *sides, strict=True):
        expected = (right - left) / (2 * eps)
        np.testing.assert_allclose(hv.data, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
    assert all(p.grad is None for p in params)


def test_vjp_jvp_and_hvp() -> None:
    rng = np.random.default_rng(0)
    a, b, da, db = (rng.normal(size=(3, 3)) for _ in range(4))

    def fn(a: Any, b: Any) -> Any:
        return tg.tanh(a @ b) * b

    y, pull = tg.vjp(fn, a, b)
    u = rng.normal(size=(3, 3))
    _, tangent = tg.jvp(fn, (a, b), (da, db))
    eps = 1e-6
    expected = (np.tanh((a + eps * da) @ (b + eps * db)) * (b + eps * db)
                - np.tanh((a - eps * da) @ (b - eps * db)) * (b - eps * db)) / (2 * eps)  # fmt: skip
    np.testing.assert_allclose(tangent.data, expected, rtol=1e-7, atol=1e-8)
    ua, ub = pull(u)  # <u, J v> = <J^T u, v>
    assert (u * tangent.data).sum() == pytest.approx((ua.data * da).sum() + (ub.data * db).sum())
    np.testing.assert_array_equal(y.data, np.tanh(a @ b) * b)
    matrix = a + a.T  # the Hessian of x^T a x
    (hv,) = tg.hvp(lambda x: ops.sum(x * (Tensor(a) @ x)), [b[0]], [db[0]])
    np.testing.assert_allclose(hv.data, matrix @ db[0], rtol=1e-12)


def test_arguments_of_grad() -> None:
    x, y = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    fn = lambda x, y: ops.sum(x * x * y)  # noqa: E731
    dx, dy = tg.grad(fn, argnums=(0, 1))(x, y)
    np.testing.assert_array_equal(dx.data, 2 * x * y)
    np.testing.assert_array_equal(dy.data, x * x)
    np.testing.assert_array_equal(tg.grad(fn, argnums=1)(x, y).data, x * x)
    np.testing.assert_array_equal(tg.grad(lambda x, y: ops.sum(x), argnums=1)(Tensor(x), y).data, [0.0, 0.0])
    np.testing.assert_array_equal(tg.grad(lambda x: Tensor(1.0))(x).data, [0.0, 0.0])


def test_a_parameter_that_the_function_closes_over_gets_its_gradient() -> None:
    w = Tensor(np.array([0.5, -0.3]), requires_grad=True)
    x = np.array([1.0, 2.0])
    penalty = ops.sum(tg.square(tg.grad(lambda x: ops.sum(tg.tanh(x * w)))(x)))
    penalty.backward()

    def value(w: np.ndarray) -> float:
        return float((((1 - np.tanh(x * w) ** 2) * w) ** 2).sum())

    assert isinstance(w.grad, np.ndarray)
    for i, step in enumerate(np.eye(2) * 1e-6):
        assert w.grad[i] == pytest.approx((value(w.data + step) - value(w.data - step)) / 2e-6, rel=1e-7)


def test_gradients_are_those_of_backward_and_leave_grad_alone() -> None:
    x = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    x.grad = np.array([7.0, 7.0])
    h = x * 3.0
    dh, dx = tg.gradients(ops.sum(h * h), [h, x])
    np.testing.assert_array_equal(dh.data, 2 * h.data)
    np.testing.assert_array_equal(dx.data, 6 * h.data)
    np.testing.assert_array_equal(x.grad, [7.0, 7.0])
    assert tg.gradients(x, x, [1.0, 2.0]).tolist() == [1.0, 2.0]
    assert tg.gradients(ops.sum(x), x).tolist() == [1.0, 1.0]


def test_what_cannot_be_done_is_refused() -> None:
    x, other = (Tensor(np.array([1.0, 2.0]), requires_grad=True) for _ in range(2))
    y = ops.sum(tg.exp(x))
    with pytest.raises(RuntimeError, match=r"the gradient of sum cannot be recorded: .* `with tg.higher_order\(\):`"):
        tg.gradients(y, x, create_graph=True)
    y = ops.sum(tg.exp(x))
    with pytest.raises(RuntimeError, match="input 1"):
        tg.gradients(y, [x, other])
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        tg.gradients(y, x)
    with pytest.raises(RuntimeError, match=r"shape \(2,\) is not a scalar"):
        tg.gradients(tg.exp(x), x)
    with pytest.raises(ValueError, match=r"gradient of shape \(3,\) for a tensor of shape \(2,\)"):
        tg.gradients(tg.exp(x), x, np.ones(3))
    with pytest.raises(RuntimeError, match="no tensor that requires a gradient"):
        tg.gradients(Tensor([1.0]), x)


def test_an_operand_that_was_overwritten_is_refused() -> None:
    x = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    with tg.higher_order():
        y = ops.sum(x + 1.0)
        with tg.no_grad():
            x[...] = 3.0
        with pytest.raises(RuntimeError, match="overwritten in place"):
            tg.gradients(y, x, create_graph=True)
