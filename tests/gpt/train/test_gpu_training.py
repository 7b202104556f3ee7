"""The training loop on the cupy backend, with a fake CuPy and its kernels emulated on the CPU.

This does not measure time. It shows that the code that runs on a GPU computes the same results as on the CPU.
"""

import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_cupy
import numpy as np
import pytest

import tensorgrad as tg
from gpt.checkpoint.files import METRICS
from gpt.config import UserError
from gpt.train.config import TrainConfig
from gpt.train.config_file import read_config
from gpt.train.describe import describe
from gpt.train.flags import Arguments
from gpt.train.loop import batch_of, train
from gpt.train.progress import Progress
from gpt.train.run import Run, make_run, new_run

SMALL: dict[str, Any] = {
    "data": "text.txt", "n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8, "batch_size": 2, "grad_accum": 2,
    "dropout": 0.1, "max_iters": 10, "warmup_iters": 2, "eval_interval": 10, "eval_iters": 1, "lr": 1e-2,
    "min_lr": 1e-3, "log_interval": 4, "async_save": False, "dtype": "float32", "cuda_graph": False,
    "tokenizer": "char",
}  # fmt: skip


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: Any) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 30)
    yield
    tg.use_backend("cupy")


def small(out: str, backend: str = "cupy", **changes: Any) -> Run:
    return new_run(TrainConfig(**{**SMALL, "out": out, "backend": backend, **changes}))


def metrics(folder: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, METRICS).read_text().splitlines()]


def weights(run: Run) -> dict[str, bytes]:
    arrays = {**run.model.state_dict(), **run.optimizer.state_dict()["state"]}
    return {name: np.asarray(tg.Tensor(x).numpy()).tobytes() for name, x in arrays.items()}


def test_losses_equal_those_on_the_cpu() -> None:
    """With the same seed, weights, data and dropout masks."""
    train(small("gpu"))
    train(small("cpu", backend="numpy"))
    ours, theirs = metrics("gpu"), metrics("cpu")
    assert [row["step"] for row in ours] == list(range(1, 11))
    for row, expected in zip(ours, theirs, strict=True):
        assert row.keys() == expected.keys()
        assert row["lr"] == expected["lr"]
        assert row["loss"] == pytest.approx(expected["loss"], rel=2e-5)
        assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)


def test_a_step_does_not_wait_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two reports of the loss the host reads no value from the GPU."""
    run, read_steps = small("run", grad_clip=0.5), []
    monkeypatch.setattr(fake_cupy, "waits", lambda x: read_steps.append(run.step))
    train(run)
    # 4 and 8 by --log-interval, 10 for the validation, and after it the checkpoint
    during = {step for step in read_steps if step < 9}
    assert during == {3, 7}
    assert read_steps.count(3) == read_steps.count(7) == 1  # all metrics of four steps are read at once


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_recorded_step_trains_bit_for_bit_like_an_eager_step(dtype: str) -> None:
    eager, recorded = (small(str(graph), dtype=dtype, cuda_graph=graph) for graph in (False, True))
    for run in (eager, recorded):
        tg.manual_seed(1337)
        train(run)
    assert weights(recorded) == weights(eager)
    assert Path("True", METRICS).read_bytes() == Path("False", METRICS).read_bytes()
    assert recorded.scaler.state_dict() == eager.scaler.state_dict()


def test_a_recorded_run_is_resumed_exactly() -> None:
    whole = small("whole", cuda_graph=True, max_iters=12)
    train(whole)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(6, patch)
        train(small("parts", cuda_graph=True, max_iters=12))
    parts = make_run(Arguments(given={}, resume="parts"))
    assert parts.step == 6
    train(parts)
    assert weights(parts) == weights(whole)
    assert Path("parts", METRICS).read_bytes() == Path("whole", METRICS).read_bytes()


def stop_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Send SIGINT during that step, before its metrics are read from the GPU."""
    drawing = tg.random.Generator.integers

    def draw(self: Any, *arguments: Any, **options: Any) -> Any:
        if options.get("step") == step - 1:
            signal.raise_signal(signal.SIGINT)
        return drawing(self, *arguments, **options)

    patch.setattr(tg.random.Generator, "integers", draw)


def test_metrics_are_flushed_after_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(6, monkeypatch)
    assert train(small("run")) == 130
    assert [row["step"] for row in metrics("run")] == [1, 2, 3, 4, 5, 6]


def test_metrics_are_flushed_before_saving_if_the_data_disappears(monkeypatch: pytest.MonkeyPatch) -> None:
    run = small("run")

    def draw(*arguments: Any) -> Any:
        if run.step == 5:
            raise UserError("the data is gone")
        return batch_of(*arguments)

    monkeypatch.setattr("gpt.train.loop.batch_of", draw)
    with pytest.raises(UserError, match="the data is gone"):
        train(run)
    assert run.saved_step == 5
    assert [row["step"] for row in metrics("run")] == [1, 2, 3, 4, 5]


def poison(step: int, patch: pytest.MonkeyPatch, run: Run) -> None:
    """Make the weights nan while that step is staged, and restore them before the next step."""
    staging = type(tg.get_backend()).stage
    weight = run.model.wte.weight.data
    kept: list[Any] = []

    def stage(self: Any, *arrays: Any) -> Any:
        if kept:
            weight[...] = kept.pop()
        if run.step == step - 1:
            kept.append(weight.copy())
            weight[...] = weight * math.nan
        return staging(self, *arrays)

    patch.setattr(type(tg.get_backend()), "stage", stage)


def test_a_nonfinite_step_is_found_when_its_metrics_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    run = small("run", on_nonfinite="stop")
    poison(2, monkeypatch, run)
    with pytest.raises(UserError, match="step 2: loss nan, gradient norm nan"):
        train(run)
    assert run.step == 3  # the fourth step had started
    assert Path("run", "nonfinite-000002").is_dir()


def test_a_skipped_nonfinite_step_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    run = small("run", on_nonfinite="skip")
    poison(2, monkeypatch, run)
    assert train(run) == 0
    assert run.skipped == 1 and run.optimizer.step_count == 9
    assert [row.get("skipped") for row in metrics("run")] == [None, 1, *[1] * 8]
    assert all(np.isfinite(np.frombuffer(raw, np.float32)).all() for raw in weights(run).values())


def test_incompatible_settings_are_refused() -> None:
    with pytest.raises(UserError, match="cuda_graph: numpy is not on a GPU, .*: give --no-cuda-graph, or"):
        small("run", backend="numpy", cuda_graph=True)
    with pytest.raises(ValueError, match="cuda_graph does not work with log_ratios: a replayed step does not show"):
        small("run", cuda_graph=True, log_ratios=True)
    with pytest.raises(ValueError, match="log_interval must be at least 1, not 0"):
        small("run", log_interval=0)
    assert not Path("run").exists()


def by_default(out: str = "run", **changes: Any) -> Run:
    """A run that leaves dtype and cuda_graph to be decided."""
    return small(out, **{"dtype": "auto", "cuda_graph": None, **changes})


def test_a_gpu_gets_bfloat16_and_a_recorded_step_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """With float32 master weights; config.toml has what was decided, and a resumed run keeps it."""
    run = by_default(max_iters=6)
    assert {p.dtype.name for p in run.model.parameters()} == {"bfloat16"}
    assert run.optimizer.state[0]["master_weight"].dtype == "float32"
    recorded = []
    record = tg.get_backend().record
    monkeypatch.setattr(tg.get_backend(), "record", lambda *step, **how: recorded.append(step) or record(*step, **how))
    train(run)
    assert len(recorded) == 1 and not tg.get_backend().cublaslt.unaligned
    written = read_config("run/config.toml")
    assert (written["dtype"], written["cuda_graph"]) == ("bfloat16", True)
    assert "dtype bfloat16, cuda_graph True" in " ".join(" ".join(describe(by_default("other"))).split())
    for given in ({}, {"dtype": "auto"}):
        resumed = make_run(Arguments(given={"max_iters": 8, **given}, resume="run"))
        assert (resumed.config.dtype, resumed.config.cuda_graph) == ("bfloat16", True)
    with pytest.raises(UserError, match="dtype float32: the run to resume has bfloat16, which cannot be changed"):
        make_run(Arguments(given={"max_iters": 8, "dtype": "float32"}, resume="run"))


@pytest.mark.parametrize(
    ("changes", "decided"),
    [
        ({"dtype": "float32"}, ("float32", True)),
        ({"cuda_graph": False}, ("bfloat16", False)),
        ({"log_ratios": True}, ("bfloat16", False)),
        ({"plain": True}, ("bfloat16", False)),
        ({"backend": "numpy"}, ("float32", False)),
    ],
)
def test_what_is_given_or_impossible_is_not_decided(changes: dict[str, Any], decided: tuple[str, bool]) -> None:
    config = by_default(**changes).config
    assert (config.dtype, config.cuda_graph) == decided


def test_an_old_gpu_gets_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_cupy.FakeDevice, "compute_capability", "75")
    assert by_default().config.dtype == "float32"


@pytest.mark.parametrize(
    "changes", [{"recompute": True}, {"model": "llama", "dropout": 0.0}, {"freeze": "wte"}, {"init_from": "base"}]
)
def test_other_runs_can_be_recorded_as_well(changes: dict[str, Any]) -> None:
    if "init_from" in changes:
        train(small("base", max_iters=2, dropout=0.0))
        given = {"data": "text.txt", "out": "run", "backend": "cupy", "lora_rank": 2, "max_iters": 5, "eval_iters": 1}
        run = make_run(Arguments(given={**given, **changes}, resume=None))
    else:
        run = by_default(max_iters=5, **changes)
    assert run.config.cuda_graph
    train(run)
    assert all(math.isfinite(row["loss"]) for row in metrics("run"))


def test_log_ratios_works_on_the_gpu() -> None:
    train(small("run", log_ratios=True, max_iters=2))
    assert len(metrics("run")) == 2


def test_the_speed_is_averaged_over_the_steps_between_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds: list[Any] = []
    monkeypatch.setattr(Progress, "step", lambda self, step, **row: speeds.append(row["tokens_per_s"]))
    train(small("run", max_iters=8))
    assert speeds[0] == speeds[3] > 0 and len(speeds) == 8
