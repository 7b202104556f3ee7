"""Mixed precision: the scaler against PyTorch's, step by step; master weights; gradients in float32."""

import json
import math
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad import Tensor, optim
from tensorgrad.amp import GradScaler

pytestmark = pytest.mark.usefixtures("numpy_backend")

ml_dtypes = pytest.importorskip("ml_dtypes")
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
HALVES = [np.dtype("float16"), BFLOAT16]
OPTIONS: dict[str, Any] = {"init_scale": 64.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 3}


def with_gradient(p: Any, value: float) -> Any:
    p.grad = np.array([value, 1.0], np.float32)
    return p


# --- GradScaler -----------------------------------------------------------------------------------


def test_the_scaler_equals_pytorchs(torch: Any) -> None:
    """Twelve steps, among them overflows of each kind: equal scale, counter and parameters after each."""
    ours, theirs = Tensor(np.ones(2, np.float32), requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer, other = optim.AdamW([ours], lr=0.1), torch.optim.AdamW([theirs], lr=0.1)
    scaler, their_scaler = GradScaler(**OPTIONS), torch.amp.GradScaler("cpu", **OPTIONS)
    their_scaler.scale(torch.ones(1))  # creates its scale
    values = [3.0, -1.0, np.inf, 2.0, 4.0, np.nan, 1.0, 2.0, 3.0, 1.0, -np.inf, 5.0]
    for value in values:
        with_gradient(ours, value)
        theirs.grad = torch.tensor([value, 1.0])
        scaler.step(optimizer)
        their_scaler.step(other)
        scaler.update()
        their_scaler.update()
        assert scaler.state_dict() == their_scaler.state_dict()
        np.testing.assert_allclose(ours.data, theirs.detach().numpy(), rtol=1e-6)
    assert optimizer.step_count == sum(map(np.isfinite, values))
    assert scaler.get_scale() != OPTIONS["init_scale"]


def test_unscale_divides_once() -> None:
    p = with_gradient(Tensor(np.ones(2, np.float32), requires_grad=True), 32.0)
    optimizer, scaler = optim.SGD([p], lr=1.0), GradScaler(**OPTIONS)
    scaler.unscale_(optimizer)
    assert p.grad is not None and p.grad.tolist() == [0.5, 1 / 64]
    with pytest.raises(RuntimeError, match="unscale_ was called a second time"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert p.data.tolist() == [0.5, 1 - 1 / 64]
    with pytest.raises(RuntimeError, match="step was called a second time"):
        scaler.step(optimizer)
    scaler.update()
    scaler.unscale_(optimizer)


def test_the_gradient_is_multiplied_by_the_scale() -> None:
    p = Tensor(np.array(3.0, np.float32), requires_grad=True)
    GradScaler(**OPTIONS).scale(p * p).backward()
    assert p.grad is not None and float(p.grad) == 6 * 64


def test_a_step_is_skipped_if_one_of_many_gradients_is_not_finite() -> None:
    params = [Tensor(np.ones(2, np.float32), requires_grad=True) for _ in range(3)]
    optimizer, scaler = optim.AdamW([{"params": params[:1]}, {"params": params[1:]}], lr=0.1), GradScaler(**OPTIONS)
    with_gradient(params[0], 1.0)
    with_gradient(params[1], np.nan)  # the third has no gradient
    scaler.step(optimizer)
    scaler.update()
    assert all(p.data.tolist() == [1, 1] for p in params)
    assert not any(array.any() for array in optimizer.state_dict()["state"].values())
    assert optimizer.step_count == 0 and scaler.get_scale() == 32


def test_two_optimizers_share_a_scale() -> None:
    """Each step is skipped for an overflow in its own gradients; any overflow lowers the scale."""
    params = [with_gradient(Tensor(np.ones(2, np.float32), requires_grad=True), value) for value in (np.inf, 1.0)]
    optimizers, scaler = [optim.SGD([p], lr=1.0) for p in params], GradScaler(**OPTIONS)
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()
    assert [optimizer.step_count for optimizer in optimizers] == [0, 1]
    assert scaler.get_scale() == 32


def test_without_gradients_nothing_overflows() -> None:
    p = Tensor(np.ones(2, np.float32), requires_grad=True)
    optimizer, scaler = optim.AdamW([p]), GradScaler(**OPTIONS)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.state_dict()["_growth_tracker"] == 1


def test_the_scale_does_not_grow_beyond_float32() -> None:
    p = with_gradient(Tensor(np.ones(2, np.float32), requires_grad=True), 1.0)
    scaler = GradScaler(init_scale=2.0**127, growth_interval=1)
    scaler.step(optim.SGD([p], lr=1.0))
    scaler.update()
    assert scaler.get_scale() == 2.0**127


def test_a_scaler_that_is_not_enabled_does_nothing() -> None:
    p = with_gradient(Tensor(np.ones(2, np.float32), requires_grad=True), 1.0)
    optimizer, scaler = optim.SGD([p], lr=1.0), GradScaler(enabled=False)
    loss = tg.ones(())
    assert scaler.scale(loss) is loss
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert p.data.tolist() == [0, 0] and scaler.get_scale() == 1 and scaler.state_dict() == {}
    scaler.load_state_dict({})


def test_a_scaler_continues_from_its_state() -> None:
    scaler, other = GradScaler(init_scale=8.0, growth_interval=7), GradScaler()
    p = Tensor(np.ones(2, np.float32), requires_grad=True)
    for value in (1.0, 1.0):
        scaler.step(optim.SGD([with_gradient(p, value)], lr=1.0))
        scaler.update()
    other.load_state_dict(json.loads(json.dumps(scaler.state_dict())))
    assert other.state_dict() == scaler.state_dict()
    assert scaler.state_dict()["_growth_tracker"] == 2


def test_wrong_use_and_wrong_options() -> None:
    with pytest.raises(RuntimeError, match="update was called before any step"):
        GradScaler().update()
    wrong = {"init_scale": 0.0, "growth_factor": 1.0, "backoff_factor": 1.0, "growth_interval": 0}
    for option, limit in wrong.items():
        for value in (limit, math.nan) if option == "backoff_factor" else (limit, math.nan, math.inf):
            if (option, value) != ("growth_interval", math.inf):  # the scale never grows
                with pytest.raises(ValueError, match="GradScaler: init_scale"):
                    GradScaler(**{option: value})
    scaler = GradScaler(**OPTIONS)
    for state in ({}, {**scaler.state_dict(), "more": 1}):
        with pytest.raises(ValueError, match="is missing or unexpected"):
            scaler.load_state_dict(state)
    with pytest.raises(ValueError, match="growth_interval 0"):
        scaler.load_state_dict({**scaler.state_dict(), "growth_interval": 0})
    assert scaler.state_dict() == GradScaler(**OPTIONS).state_dict()
    p = Tensor(np.ones(2, np.float16), requires_grad=True)
    p.grad = np.ones(2, np.float16)
    with pytest.raises(ValueError, match="gradients in half precision cannot be unscaled"):
        scaler.unscale_(optim.AdamW([p]))


# --- gradients of another dtype -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_gradients_in_float32_add_up_exactly(dtype: Any) -> None:
    """1 + 2^-12 is not a half-precision number: in half precision the sum of the gradients would be 1."""
    p = Tensor(np.ones(1, dtype), requires_grad=True)
    p.grad_dtype = np.float32
    for factor in (1.0, 2.0**-12):
        (p * Tensor(np.array([factor], dtype))).sum().backward()
    assert p.grad is not None and p.grad.dtype == np.float32 and p.grad_dtype == np.float32
    assert p.grad.tolist() == [1 + 2.0**-12]
    p.grad = np.ones(1)
    assert p.grad.dtype == np.float32


@pytest.mark.parametrize("dtype", HALVES)
def test_the_gradient_of_a_table_is_not_rounded_on_its_way(dtype: Any) -> None:
    """One row is read 100 times; the sum of what arrives has more digits than the table."""
    dy = np.random.default_rng(0).standard_normal((100, 4)).astype(dtype)
    table = Tensor(np.ones((3, 4), dtype), requires_grad=True)
    table.grad_dtype = "float32"
    tg.embedding(table, np.full(100, 1)).backward(dy)
    np.testing.assert_allclose(table.grad[1], dy.astype(np.float64).sum(axis=0), rtol=1e-5)
    assert (table.grad[1] != table.grad[1].astype(dtype)).any()


def test_grad_dtype_is_the_tensors_dtype_unless_set() -> None:
    p = Tensor(np.ones(1, np.float16), requires_grad=True)
    assert p.grad_dtype == np.float16
    p.grad = np.ones(1)
    p.grad_dtype = "float32"
    assert p.grad is not None and p.grad.dtype == np.float32
    assert tg.ones(2).grad_dtype is None
    with pytest.raises(RuntimeError, match="grad_dtype: only tensors created with requires_grad"):
        tg.ones(2).grad_dtype = np.float32


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_gradients_of_weights_are_not_rounded_to_half(dtype: Any) -> None:
    """Those of a linear layer, a norm, an embedding and the output layer are compared with float64's."""
    rng = np.random.default_rng(0)
    shapes = {"table": (7, 8), "scale": (8,), "shift": (8,), "weight": (8, 8), "bias": (8,)}
    numbers = {name: (rng.standard_normal(shape) / 4).astype(dtype) for name, shape in shapes.items()}
    idx, targets = rng.integers(0, 7, (3, 5)), rng.integers(0, 7, (3, 5))
    grads = []
    for kind in (dtype, np.dtype("float64")):
        p = {name: Tensor(x.astype(kind), requires_grad=True) for name, x in numbers.items()}
        for leaf in p.values():
            leaf.grad_dtype = np.float64 if kind == np.float64 else np.float32
        x = tg.layer_norm(tg.embedding(p["table"], idx), p["scale"], p["shift"])
        x = tg.linear(x, p["weight"], p["bias"])
        tg.linear_cross_entropy(x, p["table"], targets).backward()
        grads.append({name: leaf.grad for name, leaf in p.items()})
    for name, grad in grads[0].items():
        assert grad is not None and grad.dtype == np.float32
        assert (grad != grad.astype(dtype)).mean() > 0.5, f"{name}: rounded"
        tolerance = 0.05 if dtype == BFLOAT16 else 0.01
        np.testing.assert_allclose(grad, grads[1][name], rtol=0, atol=tolerance * np.abs(grads[1][name]).max())


# --- master weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_updates_too_small_for_half_precision_add_up_in_the_master_weights(dtype: Any) -> None:
    """A thousand updates of 1e-5 from 1: without master weights each of them is rounded away."""
    ends = {}
    for masters in (False, True):
        p = Tensor(np.ones(1, dtype), requires_grad=True)
        optimizer = optim.AdamW([p], lr=1e-5, weight_decay=0.0, master_weights=masters)
        for _ in range(1000):
            p.grad = np.ones(1)
            optimizer.step()
        ends[masters] = float(p.data[0])
    assert ends[False] == 1.0
    assert ends[True] == pytest.approx(0.99, rel=float(ml_dtypes.finfo(dtype).eps))
    assert optimizer.state[0]["master_weight"].tolist() == pytest.approx([0.99], rel=1e-4)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_master_weights_equal_a_float32_parameter(dtype: Any) -> None:
    start = np.linspace(-1, 1, 12).astype(dtype)
    half, single = Tensor(start.copy(), requires_grad=True), Tensor(start.astype(np.float32), requires_grad=True)
    optimizers = [optim.AdamW([p], lr=0.01, master_weights=True) for p in (half, single)]
    for step in range(10):
        gradient = np.random.default_rng(step).standard_normal(12).astype(np.float32)
        for p, optimizer in zip((half, single), optimizers, strict=True):
            p.grad = gradient.copy()
            optimizer.step()
        np.testing.assert_array_equal(optimizers[0].state[0]["master_weight"], single.data)
        np.testing.assert_array_equal(half.data, single.data.astype(dtype))
    assert "master_weight" not in optimizers[1].state[0]  # a float32 parameter needs no copy


def test_master_weights_are_part_of_the_state() -> None:
    def create() -> tuple[Any, Any]:
        p = Tensor(np.ones(3, np.float16), requires_grad=True)
        return p, optim.AdamW([p], lr=1e-3, master_weights=True)

    def run(p: Any, optimizer: Any, start: int, stop: int) -> None:
        for step in range(start, stop):
            p.grad = np.random.default_rng(step).standard_normal(3)
            optimizer.step()

    whole, first, second = create(), create(), create()
    run(*whole, 0, 8)
    run(*first, 0, 5)
    second[0].data[...] = first[0].data
    second[1].load_state_dict(first[1].state_dict())
    run(*second, 5, 8)
    assert second[1].state_dict()["state"].keys() == {"exp_avg.0", "exp_avg_sq.0", "master_weight.0"}
    for name, array in second[1].state_dict()["state"].items():
        np.testing.assert_array_equal(array, whole[1].state_dict()["state"][name])
    np.testing.assert_array_equal(second[0].data, whole[0].data)
    with pytest.raises(ValueError, match=r"AdamW: master_weight\.0 is missing or unexpected"):
        optim.AdamW([Tensor(np.ones(3, np.float16), requires_grad=True)]).load_state_dict(first[1].state_dict())


def test_a_skipped_step_changes_nothing() -> None:
    for make in (optim.AdamW, optim.SGD):
        p = Tensor(np.ones(2, np.float32), requires_grad=True)
        optimizer = make([p], lr=0.1)
        for skip in (True, np.array(True)):
            with_gradient(p, 1.0)
            optimizer.step(skip=skip)
        assert p.data.tolist() == [1, 1] and optimizer.step_count == 0
        optimizer.step(skip=np.array(False))
        assert optimizer.step_count == 1 and p.data.tolist() != [1, 1]


def test_capturable_keeps_the_results() -> None:
    """It keeps the step count and the learning rate in arrays that are written in place, on any backend."""
    ends = []
    for capturable in (False, True):
        p = Tensor(np.ones(3, np.float32), requires_grad=True)
        optimizer = optim.AdamW([{"params": [p], "weight_decay": 0.5}], lr=1.0)
        optimizer.set_lr(0.25)
        if capturable:
            optimizer.capturable()
        for step in range(4):
            optimizer.set_lr(0.1 / (step + 1))
            p.grad = np.random.default_rng(step).standard_normal(3).astype(np.float32)
            optimizer.step(skip=step == 2)
        state = optimizer.state_dict()
        ends.append((p.data.tolist(), state["step"], state["param_groups"], optimizer.step_count))
        json.dumps(state["param_groups"])
    assert ends[0] == ends[1]
    assert ends[0][1] == 3
