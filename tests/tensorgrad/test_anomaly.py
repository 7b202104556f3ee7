"""detect_anomaly: the first op whose result or gradient is not finite, by its name, module and parameter."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad import nn
from tensorgrad.autograd import op
from tensorgrad.autograd.mode import mode


@pytest.fixture(autouse=True, params=["numpy", "numba"])
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with tg.use_backend(request.param), np.errstate(all="ignore"):
        yield


class MLP(nn.Module):
    def __init__(self) -> None:
        self.layers = [nn.Linear(4, 4), nn.Linear(4, 4)]
        self.norm = nn.LayerNorm(4)

    def forward(self, x: tg.Tensor) -> tg.Tensor:
        for layer in self.layers:
            x = tg.relu(layer(x))
        return self.norm(x)


@op
def exploding(k: Any, x: Any, *, at: int) -> Any:
    """Return x; one element of the gradient is infinite."""

    def backward(dy: Any) -> Any:
        dx = dy.copy()
        dx[at] = np.inf
        return dx

    return x.copy(), backward


@op
def halves(k: Any, x: Any) -> Any:
    """Return both halves of x; the gradient of the second is divided by zero."""
    n = len(x) // 2
    return [x[:n].copy(), x[n:].copy()], lambda dys: np.concatenate([dys[0], dys[1] / 0])


def caught(model: nn.Module | None, compute: Any) -> tg.NonFiniteError:
    with pytest.raises(tg.NonFiniteError) as error, tg.detect_anomaly(model):
        compute()
    assert mode.observers == ()
    assert "\n" not in str(error.value)
    return error.value


def test_the_check_does_not_change_finite_gradients() -> None:
    model, x = MLP(), tg.normal((3, 4))
    model(x).sum().backward()
    before = {name: p.grad for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = None
    with tg.detect_anomaly(model):
        model(x).sum().backward()
    for name, p in model.named_parameters():
        np.testing.assert_array_equal(p.grad, before[name])


def test_the_first_result_that_is_not_finite_raises() -> None:
    model = MLP()
    model.layers[0].weight.data[...] = 1e30
    error = caught(model, lambda: model(tg.full((3, 4), 1e30)))
    assert (error.op, error.module, error.parameter, error.phase) == ("linear", "layers.0", None, "forward")
    assert str(error) == (
        "linear in layers.0: its result of shape (3, 4) has 12 of 12 not finite, first inf at (0, 0); "
        "its input is finite, up to 1e+30"
    )


def test_a_parameter_that_is_not_finite_is_named_at_its_first_use() -> None:
    model = MLP()
    model.layers[1].weight.data[2, 3] = np.nan
    error = caught(model, lambda: model(tg.ones((3, 4))))
    assert (error.op, error.module, error.parameter) == ("linear", "layers.1", "layers.1.weight")
    assert "parameter layers.1.weight of shape (4, 4) has 1 of 16 not finite, first nan at (2, 3) already" in str(error)


def test_outside_of_modules_and_without_a_model() -> None:
    error = caught(None, lambda: tg.log(tg.zeros((2,))))
    assert (error.op, error.module, error.parameter) == ("log", "", None)
    model = MLP()
    model.layers[1].weight.data[...] = np.inf
    assert caught(None, lambda: model(tg.ones((3, 4)))).module == "Linear"  # without a model, the class is named


def test_the_gradient_of_an_operand() -> None:
    model, x = MLP(), tg.ones((4,), requires_grad=True)
    error = caught(model, lambda: exploding(tg.exp(x), at=2).sum().backward())
    assert (error.op, error.phase, error.parameter) == ("exploding", "backward", None)
    assert str(error) == (
        "backward of exploding: the gradient of an operand of shape (4,) has 1 of 4 not finite, first inf at (2,); "
        "the incoming gradient is finite, up to 1"
    )


def test_the_gradient_of_a_parameter() -> None:
    model = MLP()
    scale = tg.full((3, 4), 1e38, requires_grad=True)

    def compute() -> None:
        (model.layers[1](tg.full((3, 4), 1e10)) * scale).sum().backward()

    for p in model.parameters():
        p.data[...] = 0
    error = caught(model, compute)
    assert (error.op, error.module, error.parameter) == ("linear", "layers.1", "layers.1.weight")
    assert "backward of linear in layers.1: the gradient of parameter layers.1.weight of shape (4, 4) has" in str(error)


def test_a_sum_of_finite_gradients_that_is_not_finite() -> None:
    model = MLP()
    model.w = tg.full((1,), 1.0, requires_grad=True)  # type: ignore[attr-defined]
    w: tg.Tensor = model.w  # type: ignore[attr-defined]

    def sum_of_leaf() -> None:
        (w * 3e38).sum().backward()
        (w * 3e38).sum().backward()

    error = caught(model, sum_of_leaf)
    assert (error.op, error.parameter) == ("multiply", "w")
    assert "the parts of the gradient of w are finite, but their sum is not" in str(error)

    w.grad = None

    def sum_at_a_result() -> None:
        z = tg.exp(w - 1)
        (z * 3e38 + (z - 1) * 1e38).sum().backward()

    error = caught(model, sum_at_a_result)
    assert (error.op, error.phase) == ("exp", "backward")
    assert "the gradients that arrive at its result are finite, but their sum is not" in str(error)


def test_multi_output_ops() -> None:
    model, x = MLP(), tg.ones((4,), requires_grad=True)

    def compute() -> None:
        a, b = halves(x)
        (a.sum() + b.sum()).backward()

    error = caught(model, compute)
    assert (error.op, error.phase) == ("halves", "backward")


def test_recomputed_ops_are_checked_and_named_by_their_module() -> None:
    model, x = MLP(), tg.ones((3, 4), requires_grad=True)
    error = caught(model, lambda: exploding(tg.checkpoint(model, x).reshape((12,)), at=0).sum().backward())
    assert error.op == "exploding"

    class Bad(nn.Module):
        def __init__(self) -> None:
            self.inner = MLP()

        def forward(self, x: tg.Tensor) -> Any:
            return exploding(self.inner(x).reshape((12,)), at=0)

    bad = Bad()
    error = caught(bad, lambda: tg.checkpoint(bad, x).sum().backward())
    assert (error.op, error.phase) == ("exploding", "backward")


def test_integers_and_empty_arrays_are_finite() -> None:
    with tg.detect_anomaly():
        tg.argmax(tg.ones((2, 2)))
        tg.sum(tg.zeros((0, 3)), axis=0)


def test_nested_contexts_and_an_op_after_an_error() -> None:
    with tg.detect_anomaly():
        with tg.detect_anomaly():
            pass
        with pytest.raises(tg.NonFiniteError):
            tg.log(tg.zeros((1,)))
    assert not np.isfinite(tg.log(tg.zeros((1,))).numpy()).any()
