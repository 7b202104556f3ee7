"""Schedules and Adam against PyTorch's; frozen parameters."""

from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad import nn, optim

pytestmark = pytest.mark.usefixtures("numpy_backend")


@pytest.fixture
def optimizer() -> Any:
    a, b = nn.Parameter(np.ones(2)), nn.Parameter(np.ones(2))
    return optim.AdamW([{"params": [a], "lr": 0.1}, {"params": [b], "lr": 1.0}])


def test_lambda_lr_equals_pytorchs(optimizer: Any) -> None:
    torch = pytest.importorskip("torch")
    groups = [{"params": [torch.ones(2)], "lr": lr} for lr in (0.1, 1.0)]
    theirs = torch.optim.lr_scheduler.LambdaLR(torch.optim.SGD(groups), lambda step: 0.9**step)
    ours = optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    for _ in range(3):
        assert ours.get_last_lr() == theirs.get_last_lr()
        ours.step()
        theirs.optimizer.step()
        theirs.step()


def test_warmup_cosine_follows_the_function_and_goes_on_from_a_state(optimizer: Any) -> None:
    options = {"warmup_iters": 2, "lr_decay_iters": 6, "min_lr": 0.01}
    schedule = optim.lr_scheduler.WarmupCosine(optimizer, **options)
    for step in range(8):
        assert schedule.get_last_lr() == [optim.warmup_cosine(step, lr=lr, **options) for lr in (0.1, 1.0)]
        state = schedule.state_dict()
        schedule.step()
    schedule.load_state_dict(state)
    assert schedule.get_last_lr() == [0.01, 0.01]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_equals_pytorchs(weight_decay: float) -> None:
    torch = pytest.importorskip("torch")
    start = np.linspace(-1, 1, 5)
    ours, theirs = nn.Parameter(start.copy()), torch.tensor(start, requires_grad=True)
    a = optim.Adam([ours], lr=0.1, weight_decay=weight_decay)
    b = torch.optim.Adam([theirs], lr=0.1, weight_decay=weight_decay)
    for _ in range(5):
        for p, optimizer in ((ours, a), (theirs, b)):
            optimizer.zero_grad()
            (p * p * p).sum().backward()
            optimizer.step()
    np.testing.assert_allclose(ours.data, theirs.detach().numpy(), rtol=1e-12)


@pytest.mark.parametrize("kind", ["AdamW", "Adam", "SGD"])
def test_frozen_parameters_stay_and_train_again(kind: str) -> None:
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad = False
    before = layer.bias.numpy().copy()
    optimizer = getattr(optim, kind)(layer.parameters(), lr=0.1)
    for frozen in (True, False):
        layer.bias.requires_grad = not frozen
        layer(tg.ones((1, 2))).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert np.array_equal(before, layer.bias.data) == frozen
