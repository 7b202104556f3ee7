"""Freed memory is reused; memory that is still referred to is not."""

import gc
import random
import resource
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad.memory import keep_freed_memory

if not keep_freed_memory():
    pytest.skip("freed memory is kept on glibc only", allow_module_level=True)

ROUNDS = 40


@pytest.fixture(autouse=True, params=["numpy", "numba"])
def backend(request: pytest.FixtureRequest) -> Any:
    if request.param == "numba":
        pytest.importorskip("numba")
    with tg.use_backend(request.param):
        yield


def block(x: Any, weights: list[Any]) -> list[Any]:
    """The results of a transformer block, large and small."""
    qkv = tg.linear(tg.layer_norm(x, weights[0], None), weights[1])
    q, key, v = (part.reshape(*x.shape[:-1], 4, -1).permute_dims(0, 2, 1, 3) for part in tg.split(qkv, 3, axis=-1))
    attended = tg.attention(q, key, v, causal=True)
    x = x + attended.permute_dims(0, 2, 1, 3).reshape(*x.shape)
    return [qkv, q, attended, x, tg.gelu(x), tg.softmax(x), x.sum()]


def test_memory_that_is_referred_to_is_never_reused() -> None:
    """Random views of results are kept from round to round, while everything else is freed and allocated again."""
    choose = random.Random(1)
    rng = np.random.default_rng(1)
    weights = [tg.Tensor(rng.standard_normal(n).astype(np.float32), requires_grad=True) for n in (64, (192, 64))]
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(ROUNDS):
        shape = (choose.choice([1, 4, 12]), choose.choice([16, 64, 100]), 64)
        x = tg.Tensor(rng.standard_normal(shape).astype(np.float32), requires_grad=True)
        results = block(x, weights)
        (results[4].sum() + results[5].sum()).backward()
        arrays = [tensor.data for tensor in results] + [tensor.grad for tensor in (x, *weights)]
        for weight in weights:
            weight.grad = None
        for array in choose.sample(arrays, 3):
            part = array[..., choose.randrange(array.shape[-1]) :] if array.ndim else array
            kept.append((part, part.copy()))
        del x, results, arrays, array, part
        choose.shuffle(kept)
        del kept[60:]
    gc.collect()
    assert len(kept) == 60
    assert all(np.array_equal(part, copy) for part, copy in kept)


def test_a_step_in_the_steady_state_touches_no_new_memory() -> None:
    x = tg.Tensor(np.ones(10_000_000, np.float32), requires_grad=True)  # 40 MB: by default malloc keeps up to 32

    def step() -> int:
        """Return the number of page faults of a step."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tg.exp(x).sum().backward()
        x.grad = None
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults = [step() for _ in range(8)]
    assert min(faults[3:]) < 100  # one new array would cause 9,766
