"""Observers of a run: the plot, samples and loggers, from the first step and after a resume."""

import errno
import importlib.util
import io
import json
import os
import struct
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt.checkpoint.files import METRICS
from gpt.config import UserError
from gpt.train import observers
from gpt.train import run as run_module
from gpt.train.config import TrainConfig
from gpt.train.flags import Arguments
from gpt.train.loop import gradient_ratios, train
from gpt.train.observers import Plot, flatten
from gpt.train.run import make_run, new_run

pytestmark = pytest.mark.usefixtures("numpy_backend")

SMALL: dict[str, Any] = {
    "data": "text.txt", "backend": "numpy", "n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 4, "batch_size": 2,
    "max_iters": 6, "eval_interval": 3, "eval_iters": 1, "plot": False, "dropout": 0.1, "tokenizer": "char",
}  # fmt: skip


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the quick brown fox\n" * 20)
    return tmp_path


def begin(out: str, **changes: Any) -> None:
    train(new_run(TrainConfig(**{**SMALL, **changes}, out=out)))


def continue_run(resume: str, **given: Any) -> None:
    train(make_run(Arguments(given=given, resume=resume)))


def rows(folder: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, METRICS).read_text().splitlines()]


# --------------------------------------------------------------------------------------------------
# samples.txt


def test_sampling_does_not_change_the_training() -> None:
    begin("with", sample_interval=2)
    begin("without")
    assert Path("with", METRICS).read_bytes() == Path("without", METRICS).read_bytes()
    headings = [line for line in Path("with/samples.txt").read_text().splitlines() if line.startswith("=====")]
    assert headings == [f"======== step {n} ========" for n in (2, 4, 6)]
    assert not Path("without/samples.txt").exists()


@pytest.mark.parametrize("where", ["stopped", "branch"])
def test_samples_after_a_resume_equal_those_of_an_uninterrupted_run(where: str) -> None:
    begin("unbroken", sample_interval=2, max_iters=9, lr_decay_iters=9)
    begin("stopped", sample_interval=2, max_iters=6, lr_decay_iters=9, keep_checkpoints=9)
    # As if the run had been killed in step 6, before its checkpoint was saved.
    for path in sorted(Path("stopped/step-000006").iterdir()):
        path.unlink()
    Path("stopped/step-000006").rmdir()
    with Path("stopped/samples.txt").open("a") as file:
        file.write("======== step 8 ====")
    continue_run("stopped", max_iters=9, out=where)
    for name in (METRICS, "samples.txt"):
        assert Path(where, name).read_bytes() == Path("unbroken", name).read_bytes()


def test_a_sample_that_cannot_be_written_is_reported_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if b"step 4" in bytes(data):
                super().write(data[:10])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    monkeypatch.setattr(observers, "open_to_append", lambda path: Full(path, "a"))
    begin("run", sample_interval=2)
    assert "run/samples.txt: the sample of step 4 is not written: No space left on device\n" in capsys.readouterr().out
    headings = [line for line in Path("run/samples.txt").read_text().splitlines() if "===" in line]
    assert headings == [f"======== step {n} ========" for n in (2, 6)]


def test_a_sample_from_nonfinite_weights_does_not_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def diverged(*_: Any) -> Iterator[str]:
        yield "the"
        raise FloatingPointError("the logits are nan or infinite")

    monkeypatch.setattr(observers, "sample", diverged)
    begin("run", sample_interval=3)
    assert Path("run/samples.txt").read_text().count("\nthe (the logits are nan or infinite)\n\n") == 2


# --------------------------------------------------------------------------------------------------
# loss.png


def record_plots(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """Record the steps of every plot that is drawn from now on."""
    plots: list[list[float]] = []

    def draw(path: Path, history: Any, title: str) -> None:
        plots.append(list(history.columns["step"]))

    monkeypatch.setattr(observers, "draw_run", draw)
    return plots


def test_the_plot_has_every_step_once_also_after_a_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    plots = record_plots(monkeypatch)
    begin("run", plot=True)
    assert plots[0] == [1, 2, 3] and plots[-1] == [1, 2, 3, 4, 5, 6]
    continue_run("run", max_iters=8)
    assert plots[-1] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_the_plot_is_written_as_a_png() -> None:
    pytest.importorskip("matplotlib")
    begin("run", plot=True)
    assert Path("run/loss.png").read_bytes().startswith(b"\x89PNG")


def test_plots_take_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is simulated: a plot takes one second, and a step with its validation another."""
    now = [0.0]
    monkeypatch.setattr(observers.time, "monotonic", lambda: now[0])
    plots = []

    def draw(*_: Any) -> None:
        now[0] += 1
        plots.append(now[0])

    monkeypatch.setattr(observers, "draw_run", draw)
    plot_observer = Plot(new_run(TrainConfig(**SMALL, out="run")), print)
    for step in range(1, 1001):
        now[0] += 1
        plot_observer.step(step, {"loss": 1.0, "lr": 1.0, "val_loss": 1.0})
    assert 1 < len(plots) <= 1000 * observers.MAX_PLOT_SHARE + 1
    before = len(plots)
    plot_observer.close()  # draws the final state once
    plot_observer.close()
    assert len(plots) == before + 1


def test_missing_matplotlib_is_reported_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"] or ["matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    begin("run", plot=True)
    line = "no plot of the losses: matplotlib is not installed (pip install matplotlib)"
    assert capsys.readouterr().out.count(line) == 1
    assert len(rows("run")) == 6


def test_a_full_disk_for_the_plot_does_not_stop_the_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(observers, "draw_run", full)
    begin("run", plot=True)
    assert "run/loss.png: not drawn: No space left on device" in capsys.readouterr().out
    assert len(rows("run")) == 6


@pytest.mark.parametrize("error", [ValueError("bad\n$"), MemoryError(), ImportError("libpng"), RuntimeError("font")])
def test_a_plot_that_fails_does_not_stop_the_run(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(observers, "draw_run", fail)
    begin("run", plot=True)
    message = " ".join(str(error).split())
    line = f"no plot of the losses: matplotlib failed: {type(error).__name__}{': ' if message else ''}{message}\n"
    assert capsys.readouterr().out.count(line) == 1
    assert len(rows("run")) == 6


# --------------------------------------------------------------------------------------------------
# Ratios


def test_gradient_ratios_are_logged_for_every_layer() -> None:
    begin("run", log_ratios=True)
    begin("without")
    row = rows("run")[0]
    assert list(row["ratios"]) == ["wte", "wpe", "h.0", "h.1", "ln_f"]
    assert [{k: v for k, v in row.items() if k != "ratios"} for row in rows("run")] == rows("without")


def test_a_ratio_is_gradient_norm_over_weight_norm() -> None:
    model = new_run(TrainConfig(**SMALL, out="run")).model
    model(np.zeros((1, 4), int), np.zeros((1, 4), int))[1].backward()
    ratios = gradient_ratios(model)
    both = [(p.grad.ravel(), p.data.ravel()) for p in model.h[1].parameters()]
    gradient, weights = (np.linalg.norm(np.concatenate(part)) for part in zip(*both, strict=True))
    assert ratios["h.1"] == pytest.approx(gradient / weights, rel=1e-5)
    for p in model.ln_f.parameters():
        p.data[...] = 0
    assert gradient_ratios(model)["ln_f"] == 0.0  # no division by zero


def test_nested_metrics_are_flattened_for_loggers() -> None:
    assert flatten({"loss": 1.0, "ratios": {"h.0": 2.0, "wte": 3.0}}) == {
        "loss": 1.0,
        "ratios/h.0": 2.0,
        "ratios/wte": 3.0,
    }


# --------------------------------------------------------------------------------------------------
# Loggers


class Server:
    """Records the calls to a fake logger library; `shown` is what its users would finally see."""

    def __init__(self) -> None:
        self.shown: dict[tuple[Any, int], dict[str, float]] = {}
        self.started: list[dict[str, Any]] = []
        self.closed = 0


@pytest.fixture
def tensorboard(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int | None, filename_suffix: str) -> None:
            self.folder = folder
            server.started.append({"folder": folder, "purge_step": purge_step})
            for key in [key for key in server.shown if key[0] == folder and key[1] >= (purge_step or 10**9)]:
                del server.shown[key]
            Path(folder).mkdir(parents=True, exist_ok=True)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            at = server.shown.setdefault((self.folder, step), {})
            assert name not in at, "shown twice"
            at[name] = value

        def close(self) -> None:
            server.closed += 1

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    return server


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()

    class Run:
        def __init__(self, **options: Any) -> None:
            server.started.append(options)
            self.id = options["id"]

        def log(self, metrics: dict[str, float], step: int) -> None:
            server.shown.setdefault((self.id, step), metrics)  # a repeated step is ignored

        def finish(self) -> None:
            server.closed += 1

    ids = iter("abc")
    monkeypatch.setattr(observers.secrets, "token_hex", lambda n: next(ids))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=Run))
    return server


@pytest.fixture(params=["tensorboard", "wandb"])
def server(request: pytest.FixtureRequest) -> Server:
    made: Server = request.getfixturevalue(request.param)
    made.name = request.param  # type: ignore[attr-defined]
    return made


def shown(server: Server, key: Any) -> list[dict[str, float]]:
    """The metrics of steps 1, 2 ... of one folder or id, without the speed."""
    steps = sorted(step for where, step in server.shown if where == key)
    assert steps == list(range(1, len(steps) + 1)), "a gap"
    return [{k: v for k, v in server.shown[key, step].items() if k != "tokens_per_s"} for step in steps]


def expected(folder: str) -> list[dict[str, float]]:
    return [{k: v for k, v in flatten(row).items() if k != "step"} for row in rows(folder)]


def test_a_logger_gets_every_step_once(server: Any) -> None:
    begin("run", logger=server.name, log_ratios=True)
    first = {"tensorboard": "run/tensorboard", "wandb": "a"}[server.name]
    assert shown(server, first) == expected("run")
    assert "ratios/h.0" in server.shown[first, 1] and server.shown[first, 1]["tokens_per_s"] > 0
    assert server.closed == 1
    for path in Path("run/step-000006").iterdir():  # killed before step 6 was saved
        path.unlink()
    Path("run/step-000006").rmdir()
    continue_run("run", max_iters=8)
    assert shown(server, first) == expected("run")
    assert len(rows("run")) == 8


def test_a_logger_added_later_gets_the_earlier_steps(server: Any) -> None:
    begin("run")
    continue_run("run", max_iters=8, logger=server.name, out="branch")
    key = {"tensorboard": "branch/tensorboard", "wandb": "a"}[server.name]
    assert shown(server, key) == expected("branch")


def test_wandb_gets_the_configuration_and_keeps_one_run_id(wandb: Server) -> None:
    begin("run", logger="wandb")
    continue_run("run", max_iters=8)
    first, second = wandb.started
    assert first["config"]["n_layer"] == 2
    assert (first["id"], second["id"], second["resume"]) == ("a", "a", "allow")


@pytest.mark.parametrize("method", ["init", "log", "finish"])
def test_a_logger_that_fails_does_not_stop_the_run(
    method: str, wandb: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise TypeError("no\nserver")

    owner = sys.modules["wandb"] if method == "init" else sys.modules["wandb"].init  # type: ignore[attr-defined]
    monkeypatch.setattr(owner, method, fail)
    begin("run", logger="wandb", sample_interval=3, plot=False)
    out = capsys.readouterr().out
    assert out.count("WandB failed, and the run continues without it: TypeError: no server\n") == 1
    assert len(rows("run")) == 6 and Path("run/step-000006").is_dir()
    assert Path("run/samples.txt").read_text().count("=== step") == 2


def test_a_logger_that_fails_on_the_earlier_steps_does_not_stop_the_run(
    tensorboard: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    begin("run")
    monkeypatch.setattr(sys.modules["tensorboardX"].SummaryWriter, "add_scalar", fail)  # type: ignore[attr-defined]
    continue_run("run", max_iters=8, logger="tensorboard", out="branch")
    assert capsys.readouterr().out.count("TensorBoard failed, and the run continues without it: OSError: ") == 1
    assert [row["step"] for row in rows("branch")] == list(range(1, 9))


@pytest.mark.parametrize("error", [TypeError("Descriptors cannot be created directly"), AttributeError("np.float_")])
def test_a_logger_with_a_broken_package_is_refused(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(run_module.importlib, "import_module", fail)
    with pytest.raises(UserError, match=f"^logger wandb: .*: {error}$"):
        begin("run", logger="wandb")
    assert not Path("run").exists()


@pytest.mark.parametrize(("name", "library"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_logger_that_is_not_installed_is_refused(name: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=rf"logger {name}: {library} is needed: pip install {library}"):
        begin("run", logger=name)
    assert not Path("run").exists()


def scalars(folder: Path) -> list[tuple[str, int, float]]:
    """The scalars that TensorBoard would show: the events of all files, without those that a later file purges."""
    from tensorboardX.proto.event_pb2 import Event

    found: list[tuple[str, int, float]] = []
    for path in sorted(folder.iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (size,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + size])
            at += 12 + size + 4
            if event.HasField("session_log"):
                found = [entry for entry in found if entry[1] < event.step]
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return found


@pytest.mark.skipif(importlib.util.find_spec("tensorboardX") is None, reason="tensorboardX is not installed")
def test_tensorboard_event_files_contain_every_loss_once() -> None:
    begin("run", logger="tensorboard")
    continue_run("run", max_iters=8)
    losses = [(step, value) for tag, step, value in scalars(Path("run/tensorboard")) if tag == "loss"]
    assert losses == [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in rows("run")]


@pytest.mark.skipif(importlib.util.find_spec("tensorboardX") is None, reason="tensorboardX is not installed")
def test_tensorboard_works_without_pytorch() -> None:
    program = (
        "import sys, tempfile\n"
        "sys.modules['torch'] = None  # importing it fails\n"
        "import tensorboardX\n"
        "with tensorboardX.SummaryWriter(tempfile.mkdtemp()) as writer: writer.add_scalar('loss', 1.0, 1)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
