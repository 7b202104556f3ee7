"""Freed memory is used again, and nothing that anybody still refers to ever is."""

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
    """All that a block of a transformer makes on the way, large and small."""
    qkv = tg.linear(tg.layer_norm(x, weights[0], None), weights[1])
    q, key, v = (part.reshape(*x.shape[:-1], 4, -1).permute_dims(0, 2, 1, 3) for part in tg.split(qkv, 3, axis=-1))
    attended = tg.attention(q, key, v, causal=True)
    x = x + attended.permute_dims(0, 2, 1, 3).reshape(*x.shape)
    return [qkv, q, attended, x, tg.gelu(x), tg.softmax(x), x.sum()]


def test_what_is_referred_to_is_never_handed_out_again() -> None:
    """Views of any part of what was made are kept from round to round, at random, while all else is freed and made."""
    choose = random.Random(1)
    rng = np.random.default_rng(1)
    weights = [tg.Tensor(rng.standard_normal(n).astype(np.float32), requires_grad=True) for n in (64, (192, 64))]
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(ROUNDS):
        shape = (choose.choice([1, 4, 12]), choose.choice([16, 64, 100]), 64)
        x = tg.Tensor(rng.standard_normal(shape).astype(np.float32), requires_grad=True)
        made = block(x, weights)
        (made[4].sum() + made[5].sum()).backward()
        arrays = [tensor.data for tensor in made] + [tensor.grad for tensor in (x, *weights)]
        for weight in weights:
            weight.grad = None
        for array in choose.sample(arrays, 3):
            part = array[..., choose.randrange(array.shape[-1]) :] if array.ndim else array
            kept.append((part, part.copy()))
        del x, made, arrays, array, part
        choose.shuffle(kept)
        del kept[60:]
    gc.collect()
    assert len(kept) == 60
    assert all(np.array_equal(part, copy) for part, copy in kept)


def test_a_step_in_the_steady_state_touches_no_new_memory() -> None:
    x = tg.Tensor(np.ones(10_000_000, np.float32), requires_grad=True)  # 40 MB: malloc by itself keeps up to 32

    def step() -> int:
        """The page faults of one."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tg.exp(x).sum().backward()
        x.grad = None
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults = [step() for _ in range(8)]
    assert min(faults[3:]) < 100  # an array alone has 9,766 pages
