"""--dry-run: its counts equal those of the model, its memory estimate is accurate, and it writes nothing."""

import os
import re
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
import train
from gpt.cli import run as run_program
from gpt.config import GPTConfig
from gpt.lora import LoRA, add_lora
from gpt.model import GPT
from gpt.train import dry_run as module
from gpt.train.build import make_optimizer
from gpt.train.config import NAMED_CONFIGS, TrainConfig
from gpt.train.dry_run import Resident, duration, predicted_peak
from gpt.train.footprint import checkpoint_bytes, disk_bytes, flops_per_token, memory, require_memory
from gpt.train.freeze import freeze
from gpt.train.loop import train as train_run
from gpt.train.run import new_run
from gpt.train.step import TrainingStep
from gpt.weights import Model, build_model
from gpt.weights.arrays import converted

pytestmark = pytest.mark.usefixtures("numpy_backend")

ROOT = Path(__file__).parents[3]
SMALL = [
    "--data=text.txt", "--backend=numpy", "--n-layer=2", "--n-head=2", "--n-embd=32", "--block-size=16",
    "--batch-size=4", "--max-iters=4", "--eval-interval=2", "--eval-iters=1", "--plot=False", "--tokenizer=char",
]  # fmt: skip


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    return tmp_path


# --------------------------------------------------------------------------------------------------
# Arithmetic

SHAPES = [
    GPTConfig(block_size=8, vocab_size=11, n_layer=3, n_head=2, n_embd=12, bias=True),
    GPTConfig(block_size=5, vocab_size=40, n_layer=1, n_head=1, n_embd=7, bias=False),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_parameter_and_operation_counts_equal_those_of_the_model(shape: GPTConfig) -> None:
    model = GPT(shape)
    parameters = shape.count_parameters()
    assert parameters.total == model.num_params()
    assert parameters.embeddings == model.wte.weight.size + model.wpe.weight.size
    assert parameters.block == model.h[0].num_params()
    assert flops_per_token(model) == model.estimate_flops_per_token()
    again = flops_per_token(model, recompute=True) - flops_per_token(model)
    assert again == shape.n_layer * (2 * parameters.block + 4 * shape.n_embd * shape.block_size)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({}, 0.01),
        ({"freeze": "h.1"}, 0.01),
        ({"freeze": "wte,wpe,h.0-1"}, 0.01),
        ({"init_from": "base", "lora_rank": 4}, 0.05),  # the first block needs no gradient of its input
        ({"model": "llama", "n_kv_head": 1, "freeze": "wte,h.0-1"}, 0.01),
    ],
)
def test_operations_are_those_that_are_counted(changes: dict[str, Any], tolerance: float, recompute: bool) -> None:
    """By running the ops on arrays that count: see tensorgrad/counting.py."""
    model = small_model(TrainConfig(n_layer=3, n_head=2, n_embd=64, block_size=16, plain=True, **changes), 50)
    model.recompute = recompute
    x = np.zeros((2, 16), np.int64)
    with tg.count() as counted:
        model.loss(x, x).backward()
    assert flops_per_token(model, recompute) == pytest.approx(counted.total.matmul_flops / x.size, rel=tolerance)


def test_parameter_counts_of_gpt2_are_those_published() -> None:
    assert TrainConfig(**NAMED_CONFIGS["gpt2-124m"]).model_config(50257).count_parameters().total == 124_439_808
    assert TrainConfig(**NAMED_CONFIGS["gpt2-1558m"]).model_config(50257).count_parameters().total == 1_557_611_200


def test_the_disk_usage_is_predicted() -> None:
    run = new_run(TrainConfig(data="text.txt", backend="numpy", n_layer=2, n_embd=128, block_size=16, batch_size=2,
                              max_iters=8, eval_interval=1, eval_iters=1, out="run", plot=False))  # fmt: skip
    train_run(run)
    (step, *_) = sorted(Path("run").glob("step-*"))
    size = sum(path.stat().st_size for path in step.iterdir())
    assert size == pytest.approx(checkpoint_bytes(run.config, run.model), rel=0.02)
    whole = sum(path.stat().st_size for path in Path("run").rglob("*") if path.is_file())
    assert whole <= disk_bytes(run.config, run.model)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.9, "59 s"), (61, "1 min 1 s"), (3600, "1 h 0 min"), (90061, "1 d 1 h"), (9e6, "104 d 4 h")],
)
def test_durations_are_formatted(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# --------------------------------------------------------------------------------------------------
# Memory


def small_model(config: TrainConfig, vocab_size: int) -> Model:
    """A model of that configuration, with random weights."""
    shape = config.model_config(vocab_size)
    weights = {n: converted(n, a, config.quantize) for n, a in build_model(shape).state_dict().items()}
    model = build_model(shape, plain=config.plain, weights=weights)
    if lora := LoRA.of(config):
        add_lora(model, lora)
    if config.freeze:
        freeze(model, config.freeze)
    return model.train()


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize(
    ("changes", "vocab_size"),
    [
        ({}, 75),
        ({"recompute": True, "n_layer": 6}, 75),
        ({"batch_size": 3}, 3000),
        ({"batch_size": 2, "grad_accum": 2}, 3000),
        ({"batch_size": 3, "recompute": True, "n_layer": 6}, 6200),
        ({"batch_size": 12, "n_layer": 3}, 75),  # large enough for normalized rows to be recomputed
        ({"dropout": 0.1}, 75),
        ({"dropout": 0.1, "recompute": True}, 75),
        ({"plain": True}, 75),
        ({"plain": True, "block_size": 512, "batch_size": 2, "n_layer": 3}, 75),
        ({"plain": True, "dropout": 0.1}, 75),
        ({"plain": True, "recompute": True, "n_layer": 6}, 75),
        ({"model": "llama", "n_kv_head": 2}, 75),
        ({"model": "llama", "n_kv_head": 1, "tied": False, "recompute": True, "n_layer": 6}, 3000),
        ({"model": "llama", "plain": True}, 75),
        ({"init_from": "base", "lora_rank": 8, "quantize": "q4_0", "n_layer": 3}, 3000),
        ({"init_from": "base", "lora_rank": 8, "recompute": True, "n_layer": 6}, 75),
        ({"init_from": "base", "lora_rank": 4, "lora_dropout": 0.1, "model": "llama", "n_kv_head": 2}, 75),
        ({"init_from": "base", "lora_rank": 8, "quantize": "q8_0", "model": "llama"}, 3000),
        ({"freeze": "wte,wpe,h.0-3", "n_layer": 6}, 75),
        ({"freeze": "h.1-4", "n_layer": 6, "model": "llama"}, 75),
    ],
)
def test_the_memory_of_a_step_is_predicted(backend: str, changes: dict[str, Any], vocab_size: int) -> None:
    """Within 10 % of the peak memory of NumPy in one step, as traced by tracemalloc."""
    config = TrainConfig(**{"n_embd": 192, "block_size": 128, "batch_size": 4, "async_save": False, **changes})
    with tg.use_backend(backend):
        model = small_model(config, vocab_size)
        need = memory(config, model, backend)
        model.recompute = config.recompute
        optimizer = make_optimizer(model, config)
        tokens = np.zeros((config.batch_size, config.block_size), np.int64)

        def step() -> None:
            for _ in range(config.grad_accum):
                model.loss(tokens, tokens).backward()
            optimizer.step()
            optimizer.zero_grad()

        step()
        tracemalloc.start()
        try:
            step()
            held = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert need.weights == sum(array.nbytes for array in model.state_dict().values())
    assert need.moments == sum(a.nbytes for a in optimizer.state_dict()["state"].values())
    assert need.peak - need.weights - need.moments == pytest.approx(held, rel=0.1)


def test_asynchronous_saving_needs_memory_for_a_copy() -> None:
    model = build_model(TrainConfig().model_config(75))
    beside, alone = (memory(TrainConfig(async_save=wanted), model, "numpy") for wanted in (True, False))
    n = model.num_params()
    assert beside.peak - alone.peak == beside.snapshot == 12 * n
    assert alone.snapshot == 0


def test_rows_shorter_than_the_model_s_window_need_less_memory() -> None:
    """As those of conversations are, whose model keeps its window: SmolLM2's is 8192."""
    config = TrainConfig(model="llama", batch_size=4, block_size=64, async_save=False)
    long, short = (
        build_model(replace(config, block_size=window).model_config(75)) for window in (8192, config.block_size)
    )
    assert memory(config, long, "numpy") == memory(config, short, "numpy")
    require_memory(replace(config, batch_size=64), long)


def test_the_predicted_peak_includes_the_memory_for_reading_the_data() -> None:
    need = memory(TrainConfig(), build_model(TrainConfig().model_config(75)), "numpy")
    assert predicted_peak(need, Resident(10, 20)) == 10 + need.peak
    assert predicted_peak(need, Resident(10, 10**12)) == 10**12


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from Linux")
@pytest.mark.parametrize(
    "flags",
    [
        ["--backend=numba", "--n-layer=6", "--n-embd=256", "--block-size=64", "--batch-size=8", "--plot=True"],
        [
            "--backend=numpy",
            "--threads=1",
            "--n-layer=8",
            "--n-embd=128",
            "--block-size=64",
            "--batch-size=8",
            "--recompute",
        ],
        ["--backend=numba", "--n-layer=6", "--n-embd=384", "--block-size=64", "--batch-size=8", "--async-save=False"],
    ],
)
def test_the_memory_of_a_run_is_predicted_within_10_percent(flags: list[str]) -> None:
    """A dry run in one process is compared with the peak memory of the real run in another."""
    command = [sys.executable, str(ROOT / "train.py"), *SMALL, "--n-head=4", *flags]
    subprocess.run([*command, "--out=first"], capture_output=True, check=True)  # to compile needs additional memory
    report = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"^memory +([\d,.]+) MB at most", report, re.MULTILINE)
    assert found is not None
    predicted = float(found[1].replace(",", "")) * 1e6
    program = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    run = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True, check=True)
    assert "compiling" not in run.stderr
    assert 1024 * int(run.stdout) == pytest.approx(predicted, rel=0.1)


# --------------------------------------------------------------------------------------------------
# The program


def call(monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    monkeypatch.setattr(sys, "argv", ["train.py", *argv])
    return run_program(train.main)


def test_a_dry_run_reports_everything_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, workplace: Path
) -> None:
    before = sorted(workplace.rglob("*"))
    assert call(monkeypatch, *SMALL, "--dry-run", "--recompute", "--grad-accum=2") == 0
    assert sorted(workplace.rglob("*")) == before
    out = capsys.readouterr().out
    n = GPTConfig(16, 28, 2, 2, 32, 0.0, False).count_parameters()
    assert f"{n.total:,} parameters, {n.total - n.embeddings:,} without embeddings" in out
    for text in ("per token", "moments", "gradients, kept over 2 batches", "(recomputed)", "logits", "ms per step"):
        assert text in out
    assert "disk" in out
    assert "for 4 steps and 2 validations" in out
    assert "grad_accum 2" in out


def test_a_dry_run_of_adapters_counts_them_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, workplace: Path
) -> None:
    assert call(monkeypatch, *SMALL, "--out=base") == 0
    before = sorted(workplace.rglob("*"))
    finetuning = [*SMALL[:2], "--init-from=base", "--lora-rank=3", "--quantize=q8_0", *SMALL[6:]]
    capsys.readouterr()
    assert call(monkeypatch, *finetuning, "--dry-run") == 0
    assert sorted(workplace.rglob("*")) == before
    out = capsys.readouterr().out
    n = 2 * 3 * (4 * 32 + 2 * 32 + 5 * 32 + 5 * 32)  # rank (n_in + n_out) for the four matrices of both blocks
    assert f"trained  {n:,} parameters\n" in out
    assert f"{12 * n / 1e3:.3g} kB per checkpoint" in out and f"{8 * n / 1e3:.3g} kB moments" in out
    assert "ms per step" in out and "beside the prediction" in out
    assert call(monkeypatch, *finetuning, "--out=run") == 0
    assert call(monkeypatch, "--resume", "run", "--max-iters=8", "--dry-run") == 0
    assert f"trained  {n:,} parameters\n" in capsys.readouterr().out


def test_a_run_that_does_not_fit_in_memory_is_not_timed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "available_memory", lambda: 1000)
    assert call(monkeypatch, *SMALL, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "time     not measured: " in out and "1 kB are available" in out
    assert "ms per step" not in out


def test_a_dry_run_of_a_resume_counts_only_the_remaining_steps(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(monkeypatch, *SMALL, "--out=run") == 0
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}
    assert call(monkeypatch, "--resume", "run", "--max-iters=10", "--dry-run") == 0
    assert "for 6 steps and 3 validations" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")} == before


def test_user_errors_are_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, *SMALL, "--dry-run", "--data=nowhere.txt") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not os.path.exists("checkpoints")


@pytest.mark.parametrize(
    ("limit", "windows", "text"),
    [
        (1e9, [4, 16, 16, 16, 16, 16], "measured over 5 steps\n"),
        (0.0, [4], "measured over 1 batch of the 4 of a step\n"),  # as a GPT-2's step of an hour on a CPU
    ],
)
def test_of_a_long_step_one_batch_is_computed(
    limit: float, windows: list[int], text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []

    class Step(TrainingStep):
        def __call__(self, x: Any, y: Any, lr: float, *more: Any) -> Any:
            computed.append(len(x))
            return super().__call__(x, y, lr, *more)

    monkeypatch.setattr(module, "_warm_up", lambda config: None)
    monkeypatch.setattr(module, "TrainingStep", Step)
    monkeypatch.setattr(module, "MAX_SECONDS", limit)
    assert call(monkeypatch, *SMALL, "--grad-accum=4", "--dry-run") == 0
    assert computed == windows
    out = capsys.readouterr().out
    assert text in out
    milliseconds, speed = (
        float(found.replace(",", "")) for found in re.findall(r"([\d.,e+]+) (?:ms per step|tokens/s)", out)
    )
    assert speed == pytest.approx(4 * 4 * 16 / milliseconds * 1e3, rel=0.02)


def test_a_plot_that_fails_does_not_stop_a_dry_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("Key backend: not a valid value")

    monkeypatch.setattr(module, "draw_run", fail)
    assert call(monkeypatch, *SMALL, "--plot=True", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "no plot of the losses: matplotlib failed: ValueError: Key backend: not a valid value\n" in out
    assert "\ntime     " in out
