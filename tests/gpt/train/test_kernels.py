"""The kernels that are compiled ahead are exactly those that a training step calls."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from gpt.train.build import make_optimizer
from gpt.train.config import NAMED_CONFIGS, TrainConfig
from gpt.train.kernels import compile_ahead, kernels
from gpt.train.step import TrainingStep
from gpt.train.task import Task

numba = pytest.importorskip("numba")

from tensorgrad.backend.numba.compile_ahead import CALLS  # noqa: E402
from tensorgrad.backend.numba.parallel import Kernel  # noqa: E402
from tensorgrad.backend.numba.strided import Strided  # noqa: E402

OTHER: dict[str, Any] = {"dropout": 0.1, "bias": True, "gelu": "none"}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[], set[Any]]:
    """What was called since the last question: kernels, each with the types that it is compiled for."""
    seen: set[Any] = set()
    for kind in (Kernel, Strided):
        original: Any = kind.__call__

        def call(self: Any, *arguments: Any, original: Any = original) -> None:
            types = arguments[0].dtype if isinstance(self, Strided) else tuple(map(numba.typeof, arguments))
            seen.add((self.py_func.__name__, types))
            original(self, *arguments)

        monkeypatch.setattr(kind, "__call__", call)

    def take() -> set[Any]:
        taken = set(seen)
        seen.clear()
        return taken

    return take


@pytest.mark.parametrize(
    ("settings", "vocab_size"),
    [({}, 8192), (NAMED_CONFIGS["llama-char"], 65), (NAMED_CONFIGS["shakespeare-char-cpu"] | OTHER, 65)],
    ids=["default", "llama-char", "other settings"],
)
def test_they_are_those_of_a_step(settings: dict[str, Any], vocab_size: int, calls: Callable[[], set[Any]]) -> None:
    config = TrainConfig(**settings | {"n_layer": 1, "dtype": "float32", "cuda_graph": False})
    with tg.use_backend("numba") as use:
        model = Task().build_model(config, vocab_size, None)
        model.train()
        take_step = TrainingStep(model, make_optimizer(model, config), config)
        tokens = np.arange(config.batch_size * config.block_size).reshape(config.batch_size, -1) % vocab_size
        calls()
        take_step(tokens, tokens, 1e-3)
        needed = calls()
        for name in kernels(config):
            CALLS[name](use.backend)
    assert calls() == needed


@pytest.mark.parametrize("settings", [{"plain": True}, {"dtype": "bfloat16"}])
def test_other_runs_compile_what_they_need_when_they_need_it(settings: dict[str, Any]) -> None:
    with tg.use_backend("numba"):
        assert compile_ahead(TrainConfig(**settings)) is None


def test_other_backends_compile_nothing() -> None:
    with tg.use_backend("numpy"):
        assert compile_ahead(TrainConfig()) is None
