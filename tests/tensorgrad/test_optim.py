"""Optimisers against PyTorch's, step by step; their state; gradient clipping; the learning-rate schedule."""

import json
import math
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad import Tensor, nn, optim

pytestmark = pytest.mark.usefixtures("numpy_backend")

SHAPES = [(4, 3), (5,), (), (2, 1, 3)]


def parameters(dtype: Any = np.float32) -> list[Any]:
    rng = np.random.default_rng(0)
    return [Tensor(np.array(rng.standard_normal(shape), dtype), requires_grad=True) for shape in SHAPES]


def gradients(step: int, dtype: Any = np.float32) -> list[Any]:
    """Gradients of very different sizes; the last parameter has none."""
    rng = np.random.default_rng(step + 1)
    arrays = [np.array(rng.standard_normal(shape) * 10.0 ** (i - 2), dtype) for i, shape in enumerate(SHAPES[:-1])]
    return [*arrays, None]


def set_gradients(params: list[Any], grads: list[Any]) -> None:
    for p, g in zip(params, grads, strict=True):
        p.grad = g


CASES = [
    ("AdamW", {"lr": 0.05}),
    ("AdamW", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3}),
    ("AdamW", {"lr": 0.02, "betas": (0.0, 0.0), "weight_decay": 0.0}),
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.05, "momentum": 0.7, "weight_decay": 0.2}),
    ("SGD", {"lr": 0.05, "momentum": 0.7, "weight_decay": 0.2, "nesterov": True}),
]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_twenty_steps_equal_pytorchs(kind: str, options: Any, dtype: Any, torch: Any) -> None:
    """With two groups, one of which has a schedule."""
    ours = parameters(dtype)
    theirs = [torch.tensor(p.data, requires_grad=True) for p in ours]
    optimizer = getattr(optim, kind)([{"params": ours[:2], "weight_decay": 0.5}, {"params": ours[2:]}], **options)
    other = getattr(torch.optim, kind)([{"params": theirs[:2], "weight_decay": 0.5}, {"params": theirs[2:]}], **options)
    for step in range(20):
        set_gradients(ours, gradients(step, dtype))
        set_gradients(theirs, [None if g is None else torch.from_numpy(g) for g in gradients(step, dtype)])
        for groups in (optimizer.param_groups, other.param_groups):
            groups[0]["lr"] = options["lr"] / (step + 1)
        optimizer.step()
        other.step()
        for p, their_p in zip(ours, theirs, strict=True):
            assert p.dtype == dtype
            tolerance = 1e-12 if dtype == np.float64 else 2e-5
            np.testing.assert_allclose(p.data, their_p.detach().numpy(), rtol=tolerance, atol=tolerance)


def test_the_first_step_by_hand() -> None:
    """Bias correction cancels the factors 1 - beta of both moments: the step is lr g / (|g| + eps)."""
    p = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    p.grad = np.array([0.3, -4.0])
    optim.AdamW([p], lr=0.1, weight_decay=0.5, eps=0.01).step()
    expected = np.array([1.0, 2.0]) * (1 - 0.1 * 0.5) - 0.1 * p.grad / (abs(p.grad) + 0.01)
    np.testing.assert_allclose(p.data, expected, rtol=1e-14)


def test_decay_is_decoupled() -> None:
    """It multiplies a parameter by 1 - lr decay whatever its gradient is, and does not enter the moments."""
    p = Tensor(np.array([3.0]), requires_grad=True)
    p.grad = np.zeros(1)
    optimizer = optim.AdamW([p], lr=0.1, weight_decay=0.2)
    for _ in range(3):
        optimizer.step()
    np.testing.assert_allclose(p.data, 3 * (1 - 0.02) ** 3, rtol=1e-14)
    assert not optimizer.state[0]["exp_avg"].any()


def test_parameters_are_written_in_place_unless_they_have_no_gradient() -> None:
    for make in (optim.AdamW, optim.SGD):
        params = parameters()
        arrays = [p.data for p in params]
        before = [a.copy() for a in arrays]
        optimizer = make(params, lr=0.1)
        set_gradients(params, gradients(0))
        optimizer.step()
        for p, array, old in zip(params, arrays, before, strict=True):
            assert p.data is array
            assert (p.data != old).all() == (p.grad is not None)
        np.testing.assert_array_equal(params[0].grad, gradients(0)[0])  # gradients are not changed
        optimizer.zero_grad()
        assert all(p.grad is None for p in params)


def test_a_parameter_that_is_frozen_later() -> None:
    layer = nn.Linear(2, 2)
    optimizer = optim.AdamW(layer.parameters(), lr=0.1)
    layer.bias.requires_grad = False
    before = layer.bias.data.copy()
    layer(tg.ones((1, 2))).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    np.testing.assert_array_equal(layer.bias.data, before)
    assert layer.weight.grad is None


# --- state ----------------------------------------------------------------------------------------


def run(optimizer: Any, params: list[Any], start: int, stop: int) -> None:
    for step in range(start, stop):
        set_gradients(params, gradients(step))
        optimizer.step()


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_a_restored_state_continues_bit_for_bit(kind: str, options: Any) -> None:
    params, make = parameters(), getattr(optim, kind)
    optimizer = make(params, **options)
    run(optimizer, params, 0, 5)
    saved = [p.data.copy() for p in params]
    state = optimizer.state_dict()
    scalars = json.loads(json.dumps({"step": state["step"], "param_groups": state["param_groups"]}))
    state = {**scalars, "state": {name: array.copy() for name, array in state["state"].items()}}
    run(optimizer, params, 5, 10)
    resumed = [Tensor(array, requires_grad=True) for array in saved]
    other = make(resumed, lr=123.0)
    other.load_state_dict(state)
    assert other.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    run(other, resumed, 5, 10)
    for a, b in zip(params, resumed, strict=True):
        np.testing.assert_array_equal(a.data, b.data)


def test_names_and_dtypes_of_the_state() -> None:
    params = parameters(np.float16)
    optimizer = optim.AdamW([{"params": params[:1], "lr": 0.5}, {"params": params[1:]}])
    state = optimizer.state_dict()
    assert state["step"] == 0
    assert state["param_groups"] == [
        {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01} for lr in (0.5, 1e-3)
    ]
    assert list(state["state"]) == [f"{name}.{i}" for i in range(4) for name in ("exp_avg", "exp_avg_sq")]
    for name, array in state["state"].items():
        assert array.shape == SHAPES[int(name.split(".")[1])]
        assert array.dtype == np.float32  # the moments of parameters in half precision


def test_states_that_do_not_fit_change_nothing() -> None:
    params = parameters()
    optimizer = optim.AdamW(params, lr=0.1)
    run(optimizer, params, 0, 2)

    def changed(**parts: Any) -> Any:
        state = optimizer.state_dict()
        good = {"step": 9, "param_groups": state["param_groups"],
                "state": {name: array + 1 for name, array in state["state"].items()}}  # fmt: skip
        return {**good, **parts}

    options, moments = changed()["param_groups"][0], changed()["state"]
    without = {name: array for name, array in moments.items() if name != "exp_avg.1"}
    before = {name: array.copy() for name, array in optimizer.state_dict()["state"].items()}
    for state, message in (
        (changed(param_groups=[options, options]), "AdamW: 2 groups, 1 are needed"),
        (changed(param_groups=[{**options, "momentum": 0.9}]), "AdamW: option momentum of a group is missing or unexp"),
        (changed(param_groups=[{"lr": 0.1}]), "AdamW: option betas of a group is missing or unexpected"),
        (changed(param_groups=[{**options, "lr": -1.0}]), "AdamW: lr -1.0 is not a finite number from 0 up"),
        (changed(param_groups=[{**options, "lr": math.nan}]), "AdamW: lr nan is not a finite number from 0 up"),
        (changed(state=without), "AdamW: exp_avg.1 is missing or unexpected"),
        (changed(state={**moments, "more.0": 1}), "AdamW: more.0 is missing or unexpected"),
        (changed(state={**moments, "exp_avg.1": np.zeros(1)}), r"AdamW: exp_avg.1 \(1,\), \(5,\) is needed"),
    ):
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(state)
    assert optimizer.step_count == 2
    assert optimizer.param_groups[0]["lr"] == 0.1
    for name, array in optimizer.state_dict()["state"].items():
        np.testing.assert_array_equal(array, before[name])


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: optim.AdamW([]), ValueError, "AdamW: no parameters"),
        (lambda p: optim.AdamW([{"params": []}]), ValueError, "AdamW: no parameters"),
        (lambda p: optim.AdamW(p), TypeError, "AdamW: a Tensor is not a list of parameters or groups"),
        (lambda p: optim.SGD({"params": [p]}), TypeError, "SGD: a dict is not a list of parameters or groups"),
        (lambda p: optim.AdamW([p, p]), ValueError, "AdamW: a parameter is given twice"),
        (lambda p: optim.AdamW([{"params": [p]}, {"params": [p]}]), ValueError, "AdamW: a parameter is given twice"),
        (lambda p: optim.AdamW([p.detach()]), ValueError, "AdamW: a parameter does not require a gradient"),
        (lambda p: optim.AdamW([p.data]), ValueError, "AdamW: a parameter does not require a gradient"),
        (lambda p: optim.AdamW([p * 2]), ValueError, "AdamW: a parameter is the result of an op"),
        (lambda p: optim.AdamW([p], lr=-1.0), ValueError, "AdamW: lr -1.0 is not a finite number from 0 up"),
        (lambda p: optim.AdamW([p], eps=-1.0), ValueError, "AdamW: eps -1.0 is not a finite number from 0 up"),
        (lambda p: optim.AdamW([p], betas=(0.9, 1.0)), ValueError, r"AdamW: betas \(0.9, 1.0\) are not in \[0, 1\)"),
        (lambda p: optim.SGD([p], momentum=-0.1), ValueError, "SGD: momentum -0.1 is not a finite number from 0 up"),
        (lambda p: optim.SGD([{"params": [p], "weight_decay": -1}]), ValueError, "SGD: weight_decay -1 is not a fin"),
        (lambda p: optim.SGD([p], nesterov=True), ValueError, "SGD: nesterov needs a momentum above 0"),
        (lambda p: optim.AdamW([p]).set_lr(math.nan), ValueError, "AdamW: lr nan is not a finite number from 0 up"),
        (lambda p: optim.SGD([{"params": [p], "beta": 1}]), TypeError, "SGD: unknown option 'beta' of a group"),
    ],
)
def test_bad_arguments(make: Any, error: type[Exception], message: str) -> None:
    p = Tensor(np.ones(2), requires_grad=True)
    with pytest.raises(error, match=message):
        make(p)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("kind", "option"),
    [(optim.AdamW, option) for option in ("lr", "eps", "weight_decay", "betas")]
    + [(optim.SGD, option) for option in ("lr", "momentum", "weight_decay")],
)  # fmt: skip
def test_an_option_that_is_not_finite_raises(kind: Any, option: str, bad: float) -> None:
    p = Tensor(np.ones(2), requires_grad=True)
    for value in [(bad, 0.9), (0.9, bad)] if option == "betas" else [bad]:
        for make in (lambda v: kind([p], **{option: v}), lambda v: kind([{"params": [p], option: v}])):
            with pytest.raises(ValueError, match=f"^{kind.__name__}: {option} .* (is not a finite|are not in)"):
                make(value)


def test_one_tensor_is_a_group() -> None:
    p = Tensor(np.ones(2), requires_grad=True)
    assert optim.SGD([{"params": p}]).params[0] is p


def test_an_optimiser_needs_an_update() -> None:
    p = Tensor(np.ones(2), requires_grad=True)
    p.grad = np.ones(2)
    with pytest.raises(TypeError, match="Optimizer defines no update"):
        optim.Optimizer([p], {}).step()


# --- clipping -------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_norm", [0.1, 1.0, 1e6, math.inf])
def test_clipping_equals_pytorchs(max_norm: float, torch: Any) -> None:
    ours = parameters()
    theirs = [torch.tensor(p.data, requires_grad=True) for p in ours]
    set_gradients(ours, gradients(0))
    set_gradients(theirs, [None if g is None else torch.from_numpy(g) for g in gradients(0)])
    norm = optim.clip_grad_norm(iter(ours), max_norm)
    assert type(norm) is float
    assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(theirs, max_norm)), rel=1e-6)
    for p, their_p in zip(ours[:-1], theirs[:-1], strict=True):
        np.testing.assert_allclose(p.grad, their_p.grad.numpy(), rtol=1e-5)
    assert ours[-1].grad is None


def test_the_norm_is_that_of_all_elements() -> None:
    params = parameters(np.float64)
    set_gradients(params, gradients(0, np.float64))
    everything = np.concatenate([g.reshape(-1) for g in gradients(0, np.float64)[:-1]])
    norm = optim.clip_grad_norm(params, 0.1)
    assert norm == pytest.approx(np.sqrt((everything**2).sum()), rel=1e-12)
    assert optim.clip_grad_norm(params, 0.1) == pytest.approx(0.1, rel=1e-4)


def test_gradients_in_half_precision_have_a_norm_beyond_its_range() -> None:
    p = Tensor(np.ones(1000, np.float16), requires_grad=True)
    p.grad = np.full(1000, 300, np.float16)  # squared, that is more than float16 can hold
    assert optim.clip_grad_norm([p], 1.0) == pytest.approx(300 * math.sqrt(1000), rel=1e-6)
    np.testing.assert_allclose(p.grad.astype(float), 1 / math.sqrt(1000), rtol=1e-2)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_small_factor_keeps_its_digits_in_half_precision(dtype: str, backend: str) -> None:
    pytest.importorskip("ml_dtypes")
    p = Tensor(np.ones(1000, dtype), requires_grad=True)
    p.grad = np.full(1000, 60000, dtype)
    with tg.use_backend(backend):
        optim.clip_grad_norm([p], 1.0)
    rounding = {"float16": 1e-3, "bfloat16": 5e-3}[dtype]
    np.testing.assert_allclose(p.grad.astype(float), 1 / math.sqrt(1000), rtol=rounding)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_returned_and_scales_nothing(bad: float) -> None:
    p = Tensor(np.ones(3), requires_grad=True)
    p.grad = np.array([1.0, bad, 2.0])
    assert not math.isfinite(optim.clip_grad_norm([p], 0.1))
    np.testing.assert_array_equal(p.grad, [1, bad, 2])


def test_clipping_without_gradients_and_without_a_limit() -> None:
    p = Tensor(np.ones(3), requires_grad=True)
    assert optim.clip_grad_norm([p], 1.0) == 0
    for max_norm in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"clip_grad_norm: max_norm {max_norm} is not above 0"):
            optim.clip_grad_norm([p], max_norm)


def test_one_tensor_is_clipped() -> None:
    p = Tensor(np.ones(2), requires_grad=True)
    p.grad = np.array([3.0, 4.0])
    assert optim.clip_grad_norm(p, 1.0) == 5
    np.testing.assert_allclose(p.grad, [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["AdamW", "Adam", "SGD"])
@pytest.mark.parametrize("max_norm", [0.1, 1e6])
def test_a_factor_given_to_the_step_equals_clipping_before_it(
    max_norm: float, kind: str, dtype: str, backend: str
) -> None:
    """Bit by bit, and the gradients stay as they are."""
    after = []
    with tg.use_backend(backend):
        for fused in (False, True):
            params = parameters(dtype)
            optimizer = getattr(optim, kind)(params, lr=0.1, weight_decay=0.1)
            for seed in (0, 1):
                given = gradients(seed, dtype)
                set_gradients(params, given)
                if fused:
                    norm, factor = optim.norm_and_factor(params, max_norm)
                    assert factor == pytest.approx(min(1, max_norm / norm), rel=1e-4)
                    optimizer.step(grad_scale=factor)
                    for p, g in zip(params, given, strict=True):
                        assert p.grad is g
                else:
                    optim.clip_grad_norm(params, max_norm)
                    optimizer.step()
            state = optimizer.state_dict()["state"].items()
            after.append([p.data.tobytes() for p in params] + [(name, x.tobytes()) for name, x in state])
    assert after[0] == after[1]


def test_the_factor_of_gradients_without_a_limit_and_without_a_finite_norm() -> None:
    p = Tensor(np.ones(2), requires_grad=True)
    assert optim.norm_and_factor(p, 1.0) == (0.0, 1.0)
    p.grad = np.array([3.0, 4.0])
    assert optim.norm_and_factor(p, math.inf) == (5.0, 1.0)
    p.grad = np.array([3.0, math.nan])
    assert optim.norm_and_factor(p, 1.0)[1] == 1.0
    with pytest.raises(ValueError, match="norm_and_factor: max_norm 0 is not above 0"):
        optim.norm_and_factor(p, 0)


def test_a_used_generator_raises() -> None:
    p = Tensor(np.ones(2), requires_grad=True)
    p.grad = np.array([3.0, 4.0])
    params = (p for _ in range(1))
    assert optim.clip_grad_norm(params, 1.0) == 5
    for nothing in (params, []):
        with pytest.raises(ValueError, match="^clip_grad_norm: no parameters; a generator gives them only once"):
            optim.clip_grad_norm(nothing, 1.0)


# --- the schedule ---------------------------------------------------------------------------------


def nanogpts_rate(it: int, top: float, bottom: float, warmup: int, decay: int) -> float:
    """As nanoGPT's train.py describes it: warm up, then a cosine, then the minimum."""
    if it < warmup:
        return top * (it + 1) / (warmup + 1)
    if it > decay:
        return bottom
    ratio = (it - warmup) / (decay - warmup)
    return bottom + (top - bottom) * (1 + math.cos(math.pi * ratio)) / 2


def test_the_schedule_equals_nanogpts() -> None:
    rates = [optim.warmup_cosine(i, lr=1e-3, min_lr=1e-4, warmup_iters=10, lr_decay_iters=50) for i in range(60)]
    assert rates == pytest.approx([nanogpts_rate(i, 1e-3, 1e-4, 10, 50) for i in range(60)], rel=1e-12)
    assert rates[10] == max(rates) == pytest.approx(1e-3)
    assert rates[30] == pytest.approx(5.5e-4)
    assert rates[50:] == pytest.approx([1e-4] * 10)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_schedules_without_warm_up_or_decay() -> None:
    assert optim.warmup_cosine(0, lr=1.0, min_lr=0.1, warmup_iters=0, lr_decay_iters=10) == 1.0
    assert optim.warmup_cosine(5, lr=1.0, min_lr=0.1, warmup_iters=5, lr_decay_iters=5) == 0.1  # and not 0 / 0
