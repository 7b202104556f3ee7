"""The next token chosen by kernels is the one that NumPy chooses from the same logits."""

import itertools
from typing import Any

import numpy as np
import pytest
from emulated_cuda import COMPILER, EmulatingLauncher
from fake_cupy import FakeCupy, fake

from gpt.generate.sampling import Sampling
from tensorgrad.backend.cupy import CupyBackend
from tensorgrad.backend.cupy.sampling import DecodingState
from tensorgrad.random import Generator

ml_dtypes = pytest.importorskip("ml_dtypes")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
SEEDS = [7, 2**40 + 1, 2**64 - 1]
STEPS = 3


def state_for(n_classes: int, seen: np.ndarray | None, first: int, n_rows: int = len(SEEDS)) -> DecodingState:
    return DecodingState(
        token=fake(np.zeros(n_rows, np.int64)), position=fake(np.arange(n_rows)),
        step=fake(np.full(n_rows, first, np.uint32)), seeds=fake(np.array(SEEDS[:n_rows], np.uint64)),
        seen=None if seen is None else fake(seen),
    )  # fmt: skip


def on_device(
    logits: list[np.ndarray], seen: Any, first: int, backwards: bool = False, **options: Any
) -> tuple[list[list[int]], DecodingState]:
    """The tokens chosen from each of the logits (B, V), and the state after the last one."""
    k = CupyBackend(FakeCupy(), EmulatingLauncher(backwards))
    defaults: dict[str, Any] = {"temperature": 1.0, "top_k": None, "top_p": 1.0, "repetition_penalty": 1.0}
    state = state_for(logits[0].shape[1], None if seen is None else seen.copy(), first)
    tokens = []
    for x in logits:
        k.choose(fake(x), state, n_slots=4, **{**defaults, **options})
        tokens.append(state.token.get().tolist())
    return tokens, state


def on_host(logits: list[np.ndarray], seen: Any, first: int, **options: Any) -> list[list[int]]:
    sampling, generators = Sampling(**options), [Generator(seed) for seed in SEEDS]
    context = [[] if seen is None else np.flatnonzero(row).tolist() for row in (seen if seen is not None else SEEDS)]
    chosen = []
    for step, x in enumerate(logits, first):
        chosen.append([sampling.choose(x[row], context[row], generators[row], step) for row in range(len(SEEDS))])
        for row, token in enumerate(chosen[-1]):
            context[row].append(token)
    return chosen


DTYPES = ["bfloat16", "float32", "float16", "float64", "bfloat16"]
OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0.0}, {}, {"temperature": 0.7}, {"temperature": 1e-300}, {"top_k": 1}, {"top_k": 40},
    {"top_k": 10**6}, {"top_p": 0.1}, {"top_p": 0.9}, {"temperature": 1.3, "top_k": 20, "top_p": 0.8},
    {"temperature": 0.0, "repetition_penalty": 1.5}, {"repetition_penalty": 1.7, "top_k": 30, "top_p": 0.95},
    {"repetition_penalty": 0.4},
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "options"), [*zip(itertools.cycle(DTYPES), OPTIONS)], ids=str)
def test_the_tokens_are_those_of_numpy(dtype: str, options: dict[str, Any]) -> None:
    """Also from logits of which many are equal, in half precision; whichever thread comes first."""
    for n_classes, spread, first in ((67, 3, 2), (1301, 1, 2**32 - 6)):
        rng = np.random.default_rng(n_classes)
        logits = [(rng.standard_normal((len(SEEDS), n_classes)) * spread).astype(dtype) for _ in range(STEPS)]
        seen = rng.random((len(SEEDS), n_classes)) < 0.3 if "repetition_penalty" in options else None
        wanted = on_host(logits, seen, first, **options)
        for backwards in (False, True):
            tokens, state = on_device(logits, seen, first, backwards, **options)
            assert tokens == wanted
            assert state.position.get().tolist() == [3, 3, 3]  # and not beyond the last slot
            assert state.step.get().tolist() == [first + STEPS] * len(SEEDS)
            if seen is not None:
                expected = seen.copy()
                expected[np.arange(len(SEEDS)), np.array(wanted)] = True
                np.testing.assert_array_equal(state.seen.get(), expected)  # type: ignore[union-attr]


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.5}, {"top_p": 0.75, "top_k": 5}], ids=str)
def test_ties_are_decided_as_by_numpy(levels: int, options: dict[str, Any]) -> None:
    """Of equally likely tokens top-k keeps all, and top-p the first ones."""
    rng = np.random.default_rng(levels)
    logits = [rng.integers(0, levels, (len(SEEDS), 12)).astype(np.float32) for _ in range(STEPS)]
    for first in range(0, 15, STEPS):
        assert on_device(logits, None, first, **options)[0] == on_host(logits, None, first, **options)


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    """Independently of NumPy's sampler."""
    p = np.array([0.5, 0.2, 0.2, 0.1])
    tokens, _ = on_device([np.log(np.tile(p, (3, 1)))] * 60, None, 0)
    counts = np.bincount(np.ravel(tokens), minlength=4)
    assert counts.sum() == 180
    assert (np.abs(counts - 180 * p) < 5 * np.sqrt(180 * p * (1 - p))).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("odd", "at"), [(np.nan, 0), (np.inf, 40), (-np.inf, 1300)])
def test_logits_that_are_not_finite_give_no_token(temperature: float, odd: float, at: int) -> None:
    logits = np.random.default_rng(0).standard_normal((3, 1301)).astype(np.float32)
    logits[1, at] = odd
    ((first, second, third),), _ = on_device([logits], None, 0, temperature=temperature)
    assert second == -1
    assert min(first, third) >= 0


def test_rows_of_logits_may_be_apart() -> None:
    wide = np.random.default_rng(0).standard_normal((3, 80)).astype(np.float32)
    for temperature in (0.0, 1.0):
        wanted = on_host([wide[:, :67]], None, 0, temperature=temperature)
        k = CupyBackend(FakeCupy(), EmulatingLauncher())
        state = state_for(67, None, 0)
        k.choose(fake(wide)[:, :67], state, n_slots=4, temperature=temperature, top_k=None, top_p=1.0,
                 repetition_penalty=1.0)  # fmt: skip
        assert [state.token.get().tolist()] == wanted
