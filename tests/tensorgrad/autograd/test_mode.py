"""no_grad and enable_grad: nested, as decorators, and on several threads."""

import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad import Tensor, nn, optim
from tests.processes import HANG_S

pytestmark = pytest.mark.usefixtures("numpy_backend")


def leaf(*values: float) -> Any:
    return Tensor(np.array(values, np.float64), requires_grad=True)


def random(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


def test_nothing_is_recorded_or_kept_under_no_grad() -> None:
    x = leaf(1, 2)
    with tg.no_grad():
        y = tg.exp(x)
        array = weakref.ref(y.data)
        z = y * x
    del y
    assert array() is None
    assert not z.requires_grad
    assert [part.requires_grad for part in tg.no_grad()(tg.split)(x, 2)] == [False, False]


def test_nested_blocks() -> None:
    seen = [tg.is_grad_enabled()]
    with tg.no_grad():
        seen.append(tg.is_grad_enabled())
        with tg.enable_grad():
            seen.append(tg.is_grad_enabled())
            with tg.no_grad():
                seen.append(tg.is_grad_enabled())
            seen.append(tg.is_grad_enabled())
        seen.append(tg.is_grad_enabled())
    seen.append(tg.is_grad_enabled())
    assert seen == [True, False, True, False, True, False, True]


def test_one_block_entered_twice() -> None:
    block = tg.no_grad()
    with block:
        with block:
            assert not tg.is_grad_enabled()
        assert not tg.is_grad_enabled()
    assert tg.is_grad_enabled()


def test_a_block_left_by_an_exception() -> None:
    for block in (tg.no_grad(), tg.enable_grad()):
        with pytest.raises(KeyError), block:
            raise KeyError
        assert tg.is_grad_enabled()


def test_decorators() -> None:
    @tg.no_grad()
    def silent(n: int) -> list[bool]:
        """It calls itself, with recording on for a while."""
        if n == 0:
            return [tg.is_grad_enabled()]
        with tg.enable_grad():
            inner = silent(n - 1)
        return [*inner, tg.is_grad_enabled()]

    @tg.enable_grad()
    def loud() -> bool:
        return tg.is_grad_enabled()

    @tg.no_grad()
    def failing() -> None:
        raise KeyError

    assert silent(3) == [False] * 4
    assert tg.is_grad_enabled()
    assert tg.no_grad()(loud)()
    assert silent.__name__ == "silent"
    assert silent.__doc__ is not None
    with pytest.raises(KeyError):
        failing()
    assert tg.is_grad_enabled()


def test_a_generator_cannot_be_decorated() -> None:
    def numbers() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match="no_grad: numbers is a generator"):
        tg.no_grad()(numbers)


def test_threads_record_on_their_own() -> None:
    seen: dict[str, bool] = {}
    inside, done = threading.Event(), threading.Event()

    def silent() -> None:
        with tg.no_grad():
            inside.set()
            done.wait(10)
            seen["silent"] = tg.is_grad_enabled()

    thread = threading.Thread(target=silent)
    thread.start()
    assert inside.wait(10)
    seen["main"] = tg.is_grad_enabled() and (leaf(1) * 2).requires_grad
    done.set()
    thread.join()
    assert seen == {"main": True, "silent": False}


def test_threads_train_as_one_after_another() -> None:
    def losses(seed: int) -> list[float]:
        layer = nn.Linear(4, 4)
        for p in layer.parameters():
            p.data[...] = random(*p.shape, seed=seed)
        optimizer = optim.AdamW(layer.parameters(), lr=0.1)
        seen = []
        for _ in range(20):
            loss = tg.cross_entropy(layer(tg.tanh(layer(Tensor(random(8, 4, seed=9))))), np.arange(8) % 4)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seen.append(loss.item())
        return seen

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(losses, range(8))) == [losses(seed) for seed in range(8)]


def test_threads_share_one_decorated_function() -> None:
    barrier = threading.Barrier(4, timeout=HANG_S)

    @tg.no_grad()
    def meet() -> None:
        barrier.wait()  # all are inside
        barrier.wait()

    after: list[bool] = []
    threads = [threading.Thread(target=lambda: (meet(), after.append(tg.is_grad_enabled()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert after == [True] * 4
