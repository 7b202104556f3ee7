"""Counting and timing on a GPU: what is counted is what is counted on the CPU, and times are those of CUDA's events."""

from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad.backend.clock import clock_of


def step() -> tuple[Any, list[Any]]:
    """The loss of a small computation in which a gradient is added to a table, and all its gradients."""
    rng = np.random.default_rng(0)
    x, weight = (tg.asarray(rng.normal(size=shape).astype("float32"), requires_grad=True) for shape in ((4, 8), (9, 8)))
    indices = tg.asarray(np.array([1, 1, 3, 0]))
    hidden = tg.layer_norm(tg.embedding(weight, indices) + x)
    loss = tg.cross_entropy(tg.linear(hidden, weight), indices)
    loss.backward()
    return loss.data, [x.grad, weight.grad]


def test_counts_are_those_of_the_cpu(gpu: Any) -> None:
    with tg.count() as on_gpu:
        loss, gradients = step()
    assert {type(x) for x in (loss, *gradients)} == {gpu.array_type}
    with tg.use_backend("numpy"), tg.count() as on_cpu:
        expected, expected_gradients = step()
    assert (on_gpu.forward, on_gpu.backward) == (on_cpu.forward, on_cpu.backward)
    assert on_gpu.total.matmul_flops == 3 * 2 * 4 * 8 * 9
    for got, want in zip((loss, *gradients), (expected, *expected_gradients), strict=True):
        np.testing.assert_array_equal(gpu.to_numpy(got), want)


def test_a_gradient_from_before_stays_on_the_gpu(gpu: Any) -> None:
    x = tg.asarray(np.ones(3, "float32"), requires_grad=True)
    (x * 2).backward(gpu.asarray(np.ones(3, "float32")))
    with tg.count():
        (x * 2).backward(gpu.asarray(np.ones(3, "float32")))
    assert type(x.grad) is gpu.array_type
    np.testing.assert_array_equal(gpu.to_numpy(x.grad), [4, 4, 4])


def test_the_clock_reads_events_that_have_happened(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA answers in milliseconds, and only after the later event has been waited for."""
    cuda = gpu.xp.cuda

    def elapsed(start: Any, end: Any) -> float:
        assert end.synchronized
        return 250.0

    monkeypatch.setattr(cuda, "get_elapsed_time", elapsed)
    clock = clock_of(gpu)
    start, end = clock.stamp(), clock.stamp()
    assert not end.synchronized
    assert clock.seconds(start, end) == 0.25
