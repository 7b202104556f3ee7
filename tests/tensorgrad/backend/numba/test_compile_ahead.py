"""The second process, which compiles the kernels for backward and the optimizer."""

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tensorgrad as tg
from tests.processes import HANG_S

numba = pytest.importorskip("numba")

from tensorgrad.backend.numba import compile_ahead  # noqa: E402


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """The commands that would have been started, with an empty cache and two cores."""
    commands: list[Any] = []
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compile_ahead, "cpu_count", lambda: 2)
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: commands.append(command))
    # a start of its own: the process that an earlier test may have started stays referenced
    monkeypatch.setattr(compile_ahead, "start", functools.cache(compile_ahead.start.__wrapped__))
    return commands


def test_it_is_started_once(started: list[Any]) -> None:
    with tg.use_backend("numba") as use:
        use.backend.compile_ahead()
        use.backend.compile_ahead()
    assert started == [[sys.executable, "-m", "tensorgrad.backend.numba.compile_ahead"]]


def test_other_backends_compile_nothing(started: list[Any]) -> None:
    with tg.use_backend("numpy") as use:
        use.backend.compile_ahead()
    assert started == []


def test_it_is_not_started_on_one_core(started: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_ahead, "cpu_count", lambda: 1)
    assert compile_ahead.start() is None and started == []


def test_it_is_not_started_if_the_cache_has_the_kernels(started: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(compile_ahead.backward), "is_kept", lambda _: True)
    assert compile_ahead.start() is None and started == []


def test_a_process_that_cannot_be_started_is_no_error(started: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", fail)
    assert compile_ahead.start() is None


STEP = """
import numpy as np
import tensorgrad as tg
from gpt.fused import FusedGPT
from tensorgrad.backend.numba import activation, compile_ahead, normalization, optimizer
from tensorgrad.backend.numba.attention_backward import backward

compile_ahead.compile_backward()
kernels = [activation.gelu_tanh_recompute, normalization.layer_norm_backward, optimizer.adamw, optimizer.scale,
           optimizer.sums_of_squares]
compiled = lambda: [set(fn.signatures) for kernel in kernels for fn in (kernel.compiled,)]
before = compiled()
assert all(before) and list(backward.compiled) == [np.float32]
tg.use_backend("numba")
config = {"n_layer": 1, "n_head": 4, "n_embd": 256, "block_size": 64, "vocab_size": 65, "dropout": 0.0, "bias": True}
model = FusedGPT(config)
adamw = tg.optim.AdamW(model.parameters())
tokens = np.zeros((8, 64), np.int64)
model.loss(tokens, tokens).backward()
tg.optim.clip_grad_norm(model.parameters(), 1e-3)
adamw.step()
assert compiled() == before
"""


def test_it_compiles_exactly_what_a_training_step_needs() -> None:
    done = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
