"""Training in half precision: the loss curve of float32, exact resume, the loss scale, and refused settings."""

import importlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from gpt.checkpoint import load_checkpoint
from gpt.checkpoint.files import METRICS
from gpt.config import UserError
from gpt.train.config import TrainConfig
from gpt.train.flags import Arguments
from gpt.train.loop import train
from gpt.train.progress import Progress
from gpt.train.run import Run, make_run, new_run

pytest.importorskip("ml_dtypes")

HALVES = ["float16", "bfloat16"]
SMALL: dict[str, Any] = {
    "data": "text.txt", "backend": "numpy", "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16,
    "batch_size": 8, "max_iters": 20, "warmup_iters": 10, "eval_interval": 10, "eval_iters": 2, "lr": 3e-3,
    "min_lr": 3e-4, "tokenizer": "char",
}  # fmt: skip


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Run every test in its own folder, with a text that cannot be memorised in a few hundred steps."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghij"), 1 + i % 6)) for i in range(60)]
    (tmp_path / "text.txt").write_text(" ".join(words[i] for i in rng.zipf(1.5, 20000) % 60))
    with tg.use_backend("numpy"):
        yield tmp_path


def small(**changes: Any) -> TrainConfig:
    return TrainConfig(**{**SMALL, **changes})


def metrics(folder: str) -> list[dict[str, Any]]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in Path(folder, METRICS).read_text().splitlines()]


def arrays_of(run: Run) -> dict[str, bytes]:
    arrays = {**run.model.state_dict(), **run.optimizer.state_dict()["state"]}
    return {name: array.tobytes() for name, array in arrays.items()}


@pytest.fixture(scope="module")
def float32_losses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {}


@pytest.mark.parametrize("dtype", HALVES)
def test_the_loss_curve_stays_within_half_a_percent_of_float32(
    dtype: str, float32_losses: dict[str, Any]
) -> None:  # fmt: skip
    """Compared in means over 25 steps along the whole curve, so that no single batch decides."""

    def curve(dtype: str) -> Any:
        train(new_run(small(dtype=dtype, max_iters=250, eval_interval=250, out=dtype)))
        return np.array([row["loss"] for row in metrics(dtype)]).reshape(-1, 25).mean(axis=1)

    if not float32_losses:
        float32_losses["curve"] = curve("float32")
    expected = float32_losses["curve"]
    assert expected[-1] < 0.75 * expected[0]  # it learns
    np.testing.assert_allclose(curve(dtype), expected, rtol=0.005)


@pytest.mark.parametrize("dtype", HALVES)
def test_weights_are_half_precision_and_sums_are_float32(dtype: str) -> None:
    run = new_run(small(dtype=dtype, max_iters=2, grad_accum=2, bias=True, out="run"))
    seen: list[Any] = []
    step = run.optimizer.step
    run.optimizer.step = lambda *args, **options: (  # type: ignore[method-assign]
        seen.extend(p.grad.dtype for p in run.optimizer.params),
        step(*args, **options),
    )
    train(run)
    assert {p.dtype.name for p in run.model.parameters()} == {dtype}
    assert {array.dtype.name for array in run.optimizer.state_dict()["state"].values()} == {"float32"}
    assert {d.name for d in seen} == {"float32"}
    for p, state in zip(run.optimizer.params, run.optimizer.state, strict=True):
        np.testing.assert_array_equal(p.data, state["master_weight"].astype(dtype))


def stop_after(step: int, patch: pytest.MonkeyPatch) -> None:
    recording = Progress.step

    def step_and_signal(self: Progress, number: int, **step_metrics: Any) -> None:
        recording(self, number, **step_metrics)
        if number == step:
            importlib.import_module("signal").raise_signal(2)

    patch.setattr(Progress, "step", step_and_signal)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_resumed_run_equals_an_uninterrupted_run(dtype: str) -> None:
    whole = new_run(small(dtype=dtype, dropout=0.1, out="whole"))
    train(whole)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(7, patch)
        train(new_run(small(dtype=dtype, dropout=0.1, out="parts")))
    parts = make_run(Arguments(given={}, resume="parts"))
    assert parts.step == 7 and parts.config.dtype == dtype
    train(parts)
    assert arrays_of(parts) == arrays_of(whole)
    assert parts.scaler.state_dict() == whole.scaler.state_dict()
    assert Path("parts", METRICS).read_bytes() == Path("whole", METRICS).read_bytes()


def test_a_loss_scale_that_is_too_large_is_reduced_and_skips_steps() -> None:
    run = new_run(small(dtype="float16", max_iters=30, out="run"))
    run.scaler.load_state_dict({**run.scaler.state_dict(), "scale": 2.0**24})
    before = arrays_of(run)
    seen = []
    step = run.optimizer.step

    def spy(*args: Any, **options: Any) -> None:
        step(*args, **options)
        seen.append(arrays_of(run) == before)

    run.optimizer.step = spy  # type: ignore[method-assign]
    assert train(run) == 0
    rows = metrics("run")
    skipped = [row["grad_norm"] is None for row in rows]
    n_skipped = sum(skipped)
    first = skipped.index(False)  # the first step that was not skipped; the weights change only from here on
    assert 0 < first <= n_skipped < 15
    assert seen[: first + 1] == [True] * first + [False]
    assert run.scaler.get_scale() == 2.0 ** (24 - n_skipped)
    assert run.optimizer.step_count == 30 - n_skipped
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_a_nan_loss_still_stops_the_run() -> None:
    run = new_run(small(dtype="float16", out="run"))
    run.model.wte.weight.data[0, 0] = math.nan
    with pytest.raises(UserError, match="step 1: loss nan"):
        train(run)


@pytest.mark.parametrize("dtype", HALVES)
def test_checkpoints_load_as_float32(dtype: str) -> None:
    run = new_run(small(dtype=dtype, max_iters=3, out="run"))
    train(run)
    loaded = load_checkpoint("run")
    assert {array.dtype.name for array in loaded.weights.values()} == {"float32"}
    for name, array in run.model.state_dict().items():
        np.testing.assert_array_equal(loaded.weights[name], array.astype(np.float32))
    assert loaded.build_model().wte.weight.dtype == np.float32


def test_unsupported_dtypes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"unknown dtype 'half' \(one of auto, float32, tf32, bfloat16, float16\)"):
        small(dtype="half")
    with pytest.raises(UserError, match="dtype tf32: a format of NVIDIA's tensor cores, and numpy is not on a GPU"):
        new_run(small(dtype="tf32", out="run"))
    train(new_run(small(max_iters=1, out="run")))
    with pytest.raises(UserError, match="dtype bfloat16: the run to resume has float32, which cannot be changed"):
        make_run(Arguments(given={"dtype": "bfloat16", "max_iters": 2}, resume="run"))
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(UserError, match="dtype bfloat16: NumPy has no such numbers without ml_dtypes: pip install"):
        new_run(small(dtype="bfloat16", out="other"))
    assert not Path("other").exists()


def test_set_float32_matmul_precision_accepts_the_names_of_pytorch() -> None:
    tg.set_float32_matmul_precision("highest")
    with pytest.raises(ValueError, match="set_float32_matmul_precision: high is tf32, a format of NVIDIA's"):
        tg.set_float32_matmul_precision("high")
    with pytest.raises(ValueError, match="'medium' is not 'highest' or 'high'"):
        tg.set_float32_matmul_precision("medium")
