"""Training: exact resume, accumulated gradients, signals, and the files that a run writes."""

import json
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from gpt import heartbeat
from gpt.checkpoint import load_checkpoint
from gpt.checkpoint.files import METRICS, TIMING
from gpt.checkpoint.run_folder import rewind_metrics
from gpt.checkpoint.steps import steps_after
from gpt.config import UserError
from gpt.data import DataLoader
from gpt.fused import FusedGPT
from gpt.tokenizer import GPT2Tokenizer
from gpt.train import loop as module
from gpt.train import observers
from gpt.train.build import make_optimizer
from gpt.train.config import TrainConfig
from gpt.train.flags import Arguments
from gpt.train.loop import accumulate_gradients, learning_rate, train
from gpt.train.progress import Progress
from gpt.train.run import Run, make_run, new_run
from gpt.train.signals import StopSignals
from tests.processes import wait_until

pytestmark = pytest.mark.usefixtures("numpy_backend")

TEXT = "the quick brown fox jumps over the lazy dog\n" * 30
VOCAB_SIZE = 31


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run every test in its own folder, which contains a text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


SMALL: dict[str, Any] = {
    "data": "text.txt", "backend": "numpy", "n_layer": 1, "n_head": 2, "n_embd": 16,
    "block_size": 8, "batch_size": 4, "max_iters": 20, "warmup_iters": 2, "eval_interval": 5, "plot": False,
    "eval_iters": 2, "lr": 1e-2, "min_lr": 1e-3, "tokenizer": "char",
}  # fmt: skip


def small(**changes: Any) -> TrainConfig:
    return TrainConfig(**{**SMALL, **changes})


def resume(path: str = "", **given: Any) -> Run:
    return make_run(Arguments(given=given, resume=path))


def metrics(folder: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, METRICS).read_text().splitlines()]


def arrays_of(run: Run) -> dict[str, bytes]:
    """Every bit of the weights and moments."""
    arrays = {**run.model.state_dict(), **run.optimizer.state_dict()["state"]}
    return {name: array.tobytes() for name, array in arrays.items()}


# --------------------------------------------------------------------------------------------------
# The loop


def test_training_reduces_the_loss() -> None:
    run = new_run(small(max_iters=150, out="run"))
    assert train(run) == 0
    rows = metrics("run")
    n_characters = len(set(TEXT))
    assert rows[0]["loss"] == pytest.approx(math.log(n_characters), abs=0.2)  # untrained
    assert rows[-1]["loss"] < 0.8
    assert rows[-1]["val_loss"] < 0.8


def test_metrics_have_a_line_for_every_step() -> None:
    config = small(out="run")
    train(new_run(config))
    rows = metrics("run")
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert [row["step"] for row in rows if "val_loss" in row] == [5, 10, 15, 20]
    for row in rows:
        assert row.keys() - {"val_loss"} == {"step", "loss", "lr", "grad_norm"}
        assert row["lr"] == learning_rate(config, row["step"] - 1)
        assert row["grad_norm"] > 0
    timing = [json.loads(line) for line in Path("run", TIMING).read_text().splitlines()]
    assert [row["step"] for row in timing] == list(range(1, 21))
    assert all(row["tokens_per_s"] > 0 for row in timing)


def test_the_learning_rate_schedule_is_that_of_nanogpt() -> None:
    config = TrainConfig(lr=1.0, min_lr=0.1, warmup_iters=4, lr_decay_iters=12)
    rates = [learning_rate(config, step) for step in (0, 3, 4, 8, 12, 50)]
    assert rates == pytest.approx([1 / 5, 4 / 5, 1.0, 0.55, 0.1, 0.1])
    assert learning_rate(TrainConfig(max_iters=500), 500) == TrainConfig().min_lr


def test_biases_and_norms_have_no_weight_decay() -> None:
    run = new_run(small(bias=True, weight_decay=0.25, beta1=0.8, out="run"))
    names = {id(p): name for name, p in run.model.named_parameters()}
    groups = {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in run.optimizer.param_groups}
    assert groups.keys() == {0.25, 0.0}
    assert groups[0.0] == {name for name in names.values() if name.endswith("bias") or ".ln_" in f".{name}"}
    assert groups[0.25] == set(names.values()) - groups[0.0]
    assert all(group["betas"] == (0.8, 0.99) for group in run.optimizer.param_groups)


def test_accumulated_steps_train_like_one_large_batch() -> None:
    large = new_run(small(batch_size=12, out="large"))
    parts = new_run(small(batch_size=3, grad_accum=4, out="parts"))
    train(large)
    train(parts)
    for (name, p), q in zip(large.model.named_parameters(), parts.model.parameters(), strict=True):
        np.testing.assert_allclose(p.data, q.data, rtol=1e-4, atol=1e-5, err_msg=name)
    losses = [[row["loss"] for row in metrics(folder)] for folder in ("large", "parts")]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def float64_gradients(dropout: float, batch_size: int) -> tuple[float, list[Any]]:
    """The float64 loss and gradients of twelve windows, accumulated over parts of batch_size windows."""
    tg.manual_seed(2)
    model = FusedGPT(small(dropout=dropout).model_config(VOCAB_SIZE))
    model.astype(np.float64)
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (12, 9))
    loss = accumulate_gradients(model, (tokens[:, :-1], tokens[:, 1:]), batch_size)
    return loss, [p.grad for p in model.parameters()]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 6])
def test_accumulated_gradients_equal_those_of_one_large_batch(batch_size: int) -> None:
    loss, whole = float64_gradients(dropout=0.0, batch_size=12)
    parts_loss, parts = float64_gradients(dropout=0.0, batch_size=batch_size)
    assert parts_loss == pytest.approx(loss, rel=1e-14)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-11, atol=1e-13 * abs(a).max())


def test_each_accumulated_part_draws_its_own_dropout_masks() -> None:
    """The accumulated loss and gradients are the means over the parts, which draw their masks one after the other."""
    loss, accumulated = float64_gradients(dropout=0.2, batch_size=6)
    tg.manual_seed(2)
    model = FusedGPT(small(dropout=0.2).model_config(VOCAB_SIZE))
    model.astype(np.float64)
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (12, 9))
    expected, losses = [], []
    for part in (tokens[:6], tokens[6:]):
        part_loss = model.loss(part[:, :-1], part[:, 1:])
        part_loss.backward()
        losses.append(part_loss.item())
        expected.append([p.grad for p in model.parameters()])
        for p in model.parameters():
            p.grad = None
    assert loss == pytest.approx(np.mean(losses), rel=1e-14)
    for a, b, c in zip(accumulated, *expected, strict=True):
        np.testing.assert_allclose(a, (b + c) / 2, rtol=1e-11, atol=1e-13 * abs(a).max())
    assert loss != float64_gradients(dropout=0.2, batch_size=12)[0]


def test_the_gradient_norm_is_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    limits, clip = [], tg.optim.norm_and_factor

    def record_limit(parameters: Any, limit: float) -> tuple[float, float]:
        limits.append(limit)
        return clip(parameters, limit)

    monkeypatch.setattr(tg.optim, "norm_and_factor", record_limit)
    train(new_run(small(grad_clip=0.25, max_iters=1, out="a")))
    train(new_run(small(grad_clip=0.0, max_iters=1, out="b")))  # no limit, but the norm is still recorded
    assert limits == [0.25, math.inf]
    assert metrics("b")[0]["grad_norm"] == metrics("a")[0]["grad_norm"] > 0.25


def test_the_validation_interval_does_not_change_the_result() -> None:
    often, once = (new_run(small(dropout=0.2, eval_interval=n, out=str(n))) for n in (1, 20))
    tg.manual_seed(1337)
    train(often)
    tg.manual_seed(1337)
    train(once)
    assert arrays_of(often) == arrays_of(once)


def test_nan_stops_a_run_before_the_weights_are_updated() -> None:
    run = new_run(small(out="run"))
    train_until(run, 5)
    run.model.wte.weight.data[0, 0] = math.nan
    before = arrays_of(run)
    with pytest.raises(UserError, match="step 6: loss nan, gradient norm nan: .*parameter wte.weight"):
        train(run)
    assert arrays_of(run) == before
    assert [folder.name for folder in steps_after("run", 0)] == ["step-000005"]


def train_until(run: Run, step: int) -> int:
    """Train, and send SIGINT in that step."""
    recording = Progress.step

    def step_and_signal(self: Progress, number: int, **step_metrics: Any) -> None:
        recording(self, number, **step_metrics)
        if number == step:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "step", step_and_signal)
        return train(run)


# --------------------------------------------------------------------------------------------------
# Resuming


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_resumed_run_equals_an_uninterrupted_run(backend: str) -> None:
    changes = {"backend": backend, "dropout": 0.2, "batch_size": 2, "grad_accum": 2}
    whole = new_run(small(**changes, out="whole"))
    train(whole)
    train_until(new_run(small(**changes, out="parts")), 7)
    for stop in (11, None):
        tg.manual_seed(99)  # a new process does not have the old counters either
        parts = resume("parts")
        assert (train(parts) if stop is None else train_until(parts, stop)) == (0 if stop is None else 130)
    assert arrays_of(parts) == arrays_of(whole)
    assert Path("parts", METRICS).read_bytes() == Path("whole", METRICS).read_bytes()
    assert (parts.best_step, parts.best_val_loss) == (whole.best_step, whole.best_val_loss)
    assert tg.random.default_generator.state_dict()["steps"]["dropout"] > 0


def test_metrics_after_the_checkpoint_are_recomputed() -> None:
    train_until(new_run(small(out="run")), 7)
    lines = Path("run", METRICS).read_text()
    Path("run", METRICS).write_text(lines + '{"step": 8, "loss": 1.0}\n{"step": 9, "lo')
    train(resume("run"))
    assert [row["step"] for row in metrics("run")] == list(range(1, 21))
    assert "lr" in metrics("run")[7]


@pytest.mark.parametrize("line", ["{", "[]", "3", '{"loss": 1}', '{"step": "x"}', "\x00"])
def test_invalid_metrics_lines_are_dropped(line: str, tmp_path: Path) -> None:
    for name in (METRICS, TIMING):
        (tmp_path / name).write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n{{"step": 3}}\n')
    rewind_metrics(tmp_path, tmp_path, 2)
    for name in (METRICS, TIMING):
        assert (tmp_path / name).read_text() == '{"step": 1}\n{"step": 2}\n'


def test_resume_without_a_path_continues_the_newest_run() -> None:
    for name, time in [("a", 200), ("b", 300), ("c", 100)]:
        train_until(new_run(small(out=f"checkpoints/{name}")), 3)
        os.utime(f"checkpoints/{name}/step-000003", (time, time))
    assert resume().folder == Path("checkpoints/b")
    assert resume(out="checkpoints/c").folder == Path("checkpoints/c")


def test_a_finished_run_can_be_continued_with_other_settings() -> None:
    train(new_run(small(out="run")))
    run = resume("run", max_iters=25, weight_decay=0.5, lr=2e-3)
    assert run.optimizer.param_groups[0]["weight_decay"] == 0.5
    train(run)
    assert metrics("run")[-1]["step"] == 25
    saved = load_checkpoint("run").state
    assert (saved.step, saved.train_config.max_iters, saved.train_config.lr) == (25, 25, 2e-3)
    assert saved.train_config.n_embd == SMALL["n_embd"]


def test_a_run_can_be_continued_in_a_new_folder() -> None:
    train_until(new_run(small(out="run")), 12)
    before = Path("run", METRICS).read_bytes()
    branch = resume("run/step-000012", out="branch", lr=2e-3)
    train(branch)
    assert Path("run", METRICS).read_bytes() == before
    assert [row["step"] for row in metrics("branch")] == list(range(1, 21))
    assert [row["lr"] for row in metrics("branch")[:12]] == [row["lr"] for row in metrics("run")]
    assert load_checkpoint("branch").state.step == 20


def test_a_run_can_be_resumed_with_a_moved_text() -> None:
    train_until(new_run(small(out="run")), 3)
    Path("text.txt").rename("moved.txt")
    assert resume("run", data="moved.txt").step == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n_layer": 2}, "n_layer 2: the run to resume has 1, which cannot be changed"),
        ({"block_size": 4}, "block_size 4: the run to resume has 8"),
        ({"bias": True}, "bias True: the run to resume has False"),
        ({"seed": 1}, "seed 1: the run to resume has 1337"),
        ({"tokenizer": "gpt2"}, "tokenizer gpt2: the run to resume has char"),
        ({"n_embd": 15}, "n_embd 15 is not divisible by n_head 2"),
        ({"max_iters": 7}, r"run/step-000007 has completed 7 of 7 steps: give a higher --max-iters to continue"),
        ({"data": "other.txt"}, "data 'other.txt' is not the text that run was trained on"),
        ({"data": "strange.txt"}, "data 'strange.txt': the vocabulary, of 28 characters, does not have 'Ä'"),
        ({"out": "used"}, "out used has a run in it"),
        ({"out": "text.txt"}, "out text.txt is a file; a run needs a folder"),
        ({"out": "text.txt/x"}, "out text.txt/x cannot be created: .*text.txt is not a folder that can be written"),
    ],
)
def test_settings_that_prevent_a_resume_are_refused(given: dict[str, Any], message: str, workplace: Path) -> None:
    train_until(new_run(small(out="run")), 7)
    Path("other.txt").write_text(TEXT[::-1])
    Path("strange.txt").write_text(TEXT + "Ä")
    Path("used", "step-000001").mkdir(parents=True)
    before = contents(workplace)
    with pytest.raises(UserError, match=f"^{message}"):
        resume("run", **given)
    assert contents(workplace) == before


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_resuming_an_earlier_checkpoint_needs_a_new_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    losses = iter([1.0, 2.0, 3.0, 4.0])
    monkeypatch.setattr(module, "estimate_loss", lambda *_: next(losses))
    train(new_run(small(out="run")))
    with pytest.raises(UserError, match="is older than step-000020 beside it: give a new --out"):
        resume("run/step-000005", max_iters=30)
    assert resume("run/step-000005", out="branch").step == 5


def test_the_best_validation_loss_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 1.0, 1.0, 2.0])
    monkeypatch.setattr(module, "estimate_loss", lambda *_: next(losses))
    run = new_run(small(out="run"))
    train(run)
    assert (run.best_val_loss, run.best_step) == (1.0, 10)
    assert [folder.name for folder in steps_after("run", 0)] == ["step-000010", "step-000015", "step-000020"]


# --------------------------------------------------------------------------------------------------
# Signals


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_step_and_saves(number: signal.Signals, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = Progress.step

    def step_and_signal(self: Progress, step: int, **step_metrics: Any) -> None:
        recording(self, step, **step_metrics)
        if step == 3:
            signal.raise_signal(number)

    monkeypatch.setattr(Progress, "step", step_and_signal)
    before = signal.getsignal(number)
    assert train(new_run(small(out="run"))) == status
    assert signal.getsignal(number) is before
    assert load_checkpoint("run").state.step == len(metrics("run")) == 3


def test_a_signal_in_the_last_step_does_not_interrupt_the_run() -> None:
    assert train_until(new_run(small(out="run")), 20) == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_interrupts_a_validation(number: signal.Signals, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []

    def step_and_signal(loader: DataLoader, i: int) -> Any:
        batches.append(i)
        if len(batches) == 3:
            signal.raise_signal(number)
        return batch(loader, i)

    batch = DataLoader.batch
    with monkeypatch.context() as patch:
        patch.setattr(DataLoader, "batch", step_and_signal)
        status_of_run = train(new_run(small(out="run", eval_iters=10**18)))
    assert status_of_run == status
    assert batches == [0, 1, 2]
    assert load_checkpoint("run").state.step == len(metrics("run")) == 5
    assert "val_loss" not in metrics("run")[-1]
    run = resume("run", eval_iters=2)
    assert train(run) == 0
    unbroken = new_run(small(out="unbroken"))
    train(unbroken)
    assert arrays_of(run) == arrays_of(unbroken)


def test_a_signal_interrupts_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    def step_and_signal(*_: Any) -> Iterator[str]:
        for piece in "abcdef":
            yield piece
            if piece == "c":
                signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(observers, "sample", step_and_signal)
    assert train(new_run(small(out="run", sample_interval=3))) == 143
    assert "\nabcd (interrupted)\n" in Path("run/samples.txt").read_text()
    assert load_checkpoint("run").state.step == 3


def test_a_second_signal_is_raised_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.received == signal.SIGINT
        signal.raise_signal(signal.SIGINT)


def test_training_works_outside_the_main_thread() -> None:
    results: list[int] = []
    run = new_run(small(out="run", max_iters=2))
    thread = threading.Thread(target=lambda: results.append(train(run)))
    thread.start()
    thread.join()
    assert results == [0]


# --------------------------------------------------------------------------------------------------
# Folders, tokenizers and output


def test_a_run_without_a_name_gets_its_own_folder() -> None:
    folders = [str(new_run(small(data=name)).folder) for name in ["text.txt", "./text.txt", "*.txt"]]
    assert folders == ["checkpoints/text-char", "checkpoints/text-char-2", "checkpoints/run-char"]


def test_a_folder_that_contains_a_run_is_refused_and_unchanged(workplace: Path) -> None:
    train_until(new_run(small(out="run")), 2)
    before = contents(workplace)
    with pytest.raises(UserError, match="out run has a run in it: give another --out, or"):
        new_run(small(out="run"))
    assert contents(workplace) == before
    Path("run", "step-000002").rename("elsewhere")
    Path("run", "notes").touch()  # other files in the folder do not matter
    assert new_run(small(out="run")).folder == Path("run")


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
def test_a_folder_that_cannot_be_written_is_refused_early(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root can write everywhere
    with pytest.raises(UserError, match="out run cannot be created: .* is not a folder that can be written"):
        new_run(small(out="run", data="missing.txt"))
    monkeypatch.undo()
    with pytest.raises(UserError, match="out /proc/run cannot be created"):
        new_run(small(out="/proc/run", data=str(workplace / "text.txt")))


@pytest.mark.parametrize(
    ("changes", "vocab_size"),
    [
        ({"tokenizer": "char"}, len(set(TEXT))),
        ({"tokenizer": "bpe", "vocab_size": 270}, 270),
    ],
)
def test_the_model_has_the_vocabulary_size_of_the_tokenizer(changes: dict[str, Any], vocab_size: int) -> None:
    run = new_run(small(out="run", **changes))
    assert run.model.config.vocab_size == run.tokenizer.vocab_size == vocab_size
    train_until(run, 2)
    assert resume("run").tokenizer.decode(run.tokenizer.encode("the fox")) == "the fox"


def test_the_gpt2_tokenizer_is_used_as_published(gpt2: GPT2Tokenizer) -> None:
    run = new_run(small(tokenizer="gpt2", out="run"))
    assert run.model.config.vocab_size == gpt2.vocab_size == 50257
    assert gpt2.decode(run.train_loader.tokens[:9]) == "the quick brown fox jumps over the lazy dog"


def test_a_vocabulary_too_small_for_bytes_is_a_user_error() -> None:
    with pytest.raises(UserError, match="data 'text.txt': vocab_size 100 is too small"):
        new_run(small(tokenizer="bpe", vocab_size=100))
    assert not Path("checkpoints").exists()


def test_a_log_gets_a_line_per_validation_and_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    train(new_run(small(out="run")))
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert len(lines) == 4
    for line, step in zip(lines, (5, 10, 15, 20), strict=True):
        row = metrics("run")[step - 1]
        assert line.startswith(f"step {step:>2}/20  loss {row['loss']:.4f}  ")
        assert f"validation {row['val_loss']:.4f}  lr {row['lr']:.2e}" in line
        assert line.endswith(" left")


def test_a_log_reports_progress_during_long_steps(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step and every validation batch waits until a progress line about it is printed."""
    out = ""

    def wait_for_a_line(text: str) -> None:
        def printed() -> bool:
            nonlocal out
            out += capsys.readouterr().out
            return text in out

        wait_until(printed)

    def batch(loader: DataLoader, i: int) -> Any:
        wait_for_a_line("step  5/20  validating\n")
        return draw(loader, i)

    def batch_of(run: Run, step: int) -> Any:
        wait_for_a_line(f"step {step:>2}/20  loss " if step else "compiling kernels, or computing the first step (")
        return batch_of_step(run, step)

    draw, batch_of_step = DataLoader.batch, module.batch_of
    run = new_run(small(out="run", max_iters=20))
    monkeypatch.setattr(heartbeat, "SILENCE_S", 0.001)
    monkeypatch.setattr(DataLoader, "batch", batch)
    monkeypatch.setattr(module, "batch_of", batch_of)
    assert train_until(run, 6) == 130
    assert "tokens/s\n" in out


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    train(new_run(small(out="run")))
    shown = capsys.readouterr().err
    assert "20/20" in shown
    assert "left, loss " in shown
    assert " tokens/s" in shown


def test_the_optimizer_has_every_parameter_once() -> None:
    run = new_run(small(out="run"))
    optimizer = make_optimizer(run.model, run.config)
    given: list[int] = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(given) == sorted(id(p) for p in run.model.parameters())


def test_a_run_is_saved_before_a_broken_pipe_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `train.py | tee log`, Ctrl-C ends tee first, so printing the validation line fails."""

    def fail(progress: Progress, text: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(Progress, "print", fail)
    with pytest.raises(BrokenPipeError):
        train(new_run(small(out="run", eval_interval=7, checkpoint_interval=100)))
    assert load_checkpoint("run").state.step == 7
    assert [row["step"] for row in metrics("run")] == [1, 2, 3, 4, 5, 6, 7]


class Compilation:
    """Kernels that are compiled after three questions; `line` is what was shown meanwhile."""

    done, total, line = 1, 3, ""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def wait(self, until: Any) -> None:
        assert not until()
        activity = self.progress.heartbeat.activity
        assert not isinstance(activity, str)
        self.line = activity()


def test_a_run_waits_for_its_kernels_and_shows_how_many_are_compiled() -> None:
    run = new_run(small())
    with StopSignals() as signals, module.make_progress(run) as progress:
        before = progress.heartbeat.activity
        run.compilation = Compilation(progress)
        module.wait_for_kernels(run, progress, signals)
        assert progress.heartbeat.activity is before
    assert run.compilation.line == "compiling kernels 1/3 (first time only)"
