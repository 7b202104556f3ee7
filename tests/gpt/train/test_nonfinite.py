"""Nonfinite steps: they are explained, saved, replayed in float64, and stop the run or are skipped."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from gpt.checkpoint import load_checkpoint
from gpt.checkpoint.files import METRICS
from gpt.checkpoint.steps import steps_after
from gpt.config import UserError
from gpt.train import loop as trainer
from gpt.train.config import TrainConfig
from gpt.train.flags import Arguments
from gpt.train.loop import train
from gpt.train.nonfinite import BATCH, find_cause, replay
from gpt.train.run import Run, make_run, new_run
from gpt.train.saver import first_nonfinite

SMALL: dict[str, Any] = {
    "data": "text.txt", "backend": "numpy", "n_layer": 2, "n_head": 2, "n_embd": 16, "dropout": 0.1,
    "block_size": 8, "batch_size": 4, "grad_accum": 2, "max_iters": 12, "eval_interval": 4, "eval_iters": 1,
    "tokenizer": "char",
}  # fmt: skip


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 30)
    with tg.use_backend("numpy"):
        yield tmp_path


def small(out: str = "run", **changes: Any) -> Run:
    return new_run(TrainConfig(**{**SMALL, "out": out, **changes}))


@contextmanager
def overflow_at(run: Run, step: int) -> Iterator[None]:
    """Make the weights of one layer far too large in that step, and restore them before the next."""
    weight, whole = run.model.h[1].mlp.c_fc.weight.data, []
    drawing = trainer.batch_of

    def draw(*arguments: Any) -> Any:
        if run.step == step - 1:
            whole.append(weight.copy())
            weight[...] *= 1e36
        elif run.step == step:
            weight[...] = whole[0]
        return drawing(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "batch_of", draw)
        yield


def metrics() -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in Path("run", METRICS).read_text().splitlines()]


def test_a_run_stops_before_a_nonfinite_gradient_reaches_the_weights() -> None:
    run = small()
    with overflow_at(run, 6), pytest.raises(UserError) as error:
        train(run)
    message = str(error.value)
    assert message.startswith("step 6: loss ")
    assert "in h.1.mlp" in message
    assert "python train.py --replay run/nonfinite-000006 repeats it in float64" in message
    assert "\n" not in message
    assert first_nonfinite(run.optimizer.state_dict()["state"]) is None
    assert [folder.name for folder in steps_after("run", 0)] == ["step-000004"]
    assert len(metrics()) == 5


def test_a_nonfinite_parameter_is_named_and_stops_even_a_run_that_skips() -> None:
    run = small(on_nonfinite="skip")
    run.model.h[0].attn.c_attn.weight.data[3, 2] = math.nan
    with pytest.raises(UserError, match=r"step 1: loss nan, .*linear in h\.0\.attn\.c_attn: .*") as error:
        train(run)
    assert "parameter h.0.attn.c_attn.weight of shape (48, 16) has 1 of 768 not finite, first nan at (3, 2)" in str(
        error.value
    )


def test_skipped_steps_change_nothing_and_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    run = small(on_nonfinite="skip")
    with overflow_at(run, 6):
        assert train(run) == 0
    rows = metrics()
    assert [row.get("skipped", 0) for row in rows] == [0] * 5 + [1] * 7
    assert rows[5]["loss"] is None or rows[5]["grad_norm"] is None
    assert run.optimizer.step_count == 11
    lines = [line for line in capsys.readouterr().out.splitlines() if "This and later such steps are skipped" in line]
    assert len(lines) == 1
    assert load_checkpoint("run").state.skipped == 1
    resumed = make_run(Arguments(given={"max_iters": 13, "data": "text.txt"}, resume="run"))
    train(resumed)
    assert metrics()[-1]["skipped"] == 1


def test_replay_repeats_the_step_in_float32_and_float64(capsys: pytest.CaptureFixture[str]) -> None:
    run = small()
    with overflow_at(run, 6), pytest.raises(UserError) as error:
        train(run)
    culprit = str(error.value).split(": ", 2)[2].split(". python")[0]
    for path in ("run/nonfinite-000006", f"run/nonfinite-000006/{BATCH}"):
        capsys.readouterr()
        assert replay(path) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "replay   step 6, 8 windows of 8 tokens"
        assert lines[1].startswith("float32  loss ")
        assert lines[2].strip() == culprit  # including the dropout masks
        assert lines[3].startswith("float64  loss ")
        assert "nan" not in lines[3]
        assert "inf" not in lines[3]
        assert lines[4].strip().startswith("largest gradients: ")
        assert lines[5] == "result   the values exceed the range of float32: the mathematics is correct"


def test_replay_reports_that_float64_does_not_help(capsys: pytest.CaptureFixture[str]) -> None:
    run = small()
    run.model.wte.weight.data[...] = math.nan
    with pytest.raises(UserError):
        train(run)
    assert replay("run/nonfinite-000001") == 0
    out = capsys.readouterr().out
    assert out.count("parameter wte.weight of shape") == 2
    assert out.endswith("result   float64 does not help: the weights, the batch or the mathematics are at fault\n")


def test_replay_needs_a_saved_batch() -> None:
    train(small(max_iters=1))
    for path in ("run", "run/step-000001", "missing"):
        with pytest.raises(UserError, match=f"^{path}: no batch.safetensors in it: --replay needs"):
            replay(path)


def test_a_damaged_batch_is_refused() -> None:
    run = small()
    run.model.wte.weight.data[...] = math.nan
    with pytest.raises(UserError):
        train(run)
    file = Path("run/nonfinite-000001", BATCH)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match=f"{BATCH}: damaged"):
        replay("run/nonfinite-000001")


def test_weights_made_infinite_by_an_update_are_not_saved() -> None:
    run = small(lr=1e39, warmup_iters=0, eval_interval=1)
    with pytest.raises(UserError, match=r"step 1: the update has made \S+ not finite, so it is not saved"):
        train(run)
    assert steps_after("run", -1) == []


def test_a_nonfinite_norm_of_finite_gradients_is_explained() -> None:
    run = small()
    name, parameter = next(iter(run.model.named_parameters()))
    rng = tg.random.default_generator.state_dict()

    def compute() -> None:
        parameter.grad = np.full_like(parameter.data, 1e30)

    assert f"the norm of the gradient is not: parameter {name} has one of 1e+30" in find_cause(
        run.model, compute, rng
    )


def test_an_error_that_is_not_reproduced_is_blamed_on_the_hardware() -> None:
    run = small()
    parameter = next(iter(run.model.parameters()))
    rng = tg.random.default_generator.state_dict()

    def compute() -> None:
        parameter.grad = np.ones_like(parameter.data)

    assert find_cause(run.model, compute, rng).startswith("everything is finite when computed again: check")
