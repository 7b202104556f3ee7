"""Runs with LoRA: what their checkpoints hold, resuming, other bases, and text with an adapter."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import generate
from gpt.checkpoint import load_checkpoint
from gpt.checkpoint.files import STATE
from gpt.config import UserError
from gpt.lora import adapter_parameters
from gpt.train.config import TrainConfig
from gpt.train.flags import Arguments
from gpt.train.loop import train
from gpt.train.run import Run, make_run
from gpt.weights.adapter import ADAPTER, ADAPTER_CONFIG
from gpt.weights.initial import load_initial
from tensorgrad import QuantizedArray

pytestmark = pytest.mark.usefixtures("numpy_backend")

DATA: dict[str, Any] = {
    "data": "text.txt", "backend": "numpy", "batch_size": 2, "max_iters": 4, "eval_interval": 2, "eval_iters": 1,
    "plot": False,
}  # fmt: skip
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 8}
LORA: dict[str, Any] = {
    **DATA, "init_from": "llama", "lora_rank": 2, "lora_dropout": 0.1, "lr": 0.01, "warmup_iters": 0,
    "lr_decay_iters": 6, "max_iters": 6,
}  # fmt: skip
MODELS = pytest.mark.parametrize("name", ["llama", "gpt2"])


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run of each model."""
    folder = tmp_path_factory.mktemp("bases")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
        for name, seed in (("llama", 1), ("gpt2", 1), ("other", 2)):
            model = "gpt2" if name == "gpt2" else "llama"
            train(make_run(Arguments({**DATA, **SHAPE, "out": name, "model": model, "seed": seed}, None)))
    return folder


@pytest.fixture(autouse=True)
def workplace(bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in bases.iterdir():
        Path(path.name).symlink_to(path)


def trained(out: str, **options: Any) -> Run:
    run = make_run(Arguments({**LORA, "out": out, **options}, None))
    train(run)
    return run


def loss_of(model: Any) -> float:
    x = np.arange(16).reshape(2, 8)
    return float(model.eval().loss(x, x).item())


# --------------------------------------------------------------------------------------------------
# Checkpoints


@MODELS
def test_a_checkpoint_holds_adapters_their_moments_and_a_reference_to_the_base(name: str) -> None:
    run = trained("run", init_from=name)
    folder = Path("run/step-000006")
    files = {ADAPTER, ADAPTER_CONFIG, "manifest.json", "optimizer.safetensors", STATE, "tokenizer.json"}
    assert {path.name for path in folder.iterdir()} == files
    checkpoint = load_checkpoint(folder)
    adapters = adapter_parameters(run.model)
    assert {key: array.tolist() for key, array in checkpoint.weights.items()} == {
        key: p.numpy().tolist() for key, p in adapters.items()
    }
    assert len(checkpoint.optimizer["state"]) == 2 * len(adapters)
    base = load_initial(name)
    assert json.loads((folder / STATE).read_text())["base"] == {"path": f"{name}/step-000004", "sha256": base.sha256}


@MODELS
def test_a_run_that_is_resumed_is_the_same_bit_for_bit(name: str) -> None:
    trained("whole", init_from=name)
    trained("resumed", init_from=name, max_iters=4)
    train(make_run(Arguments({"max_iters": 6}, "resumed")))
    for file in (f"step-000006/{ADAPTER}", "step-000006/optimizer.safetensors", "metrics.jsonl"):
        assert Path("whole", file).read_bytes() == Path("resumed", file).read_bytes(), file


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_weights_of_the_base_stay_as_they_are(dtype: str) -> None:
    before = load_initial("llama").weights
    run = trained("run", dtype=dtype)
    for name, array in before.items():
        np.testing.assert_allclose(dict(run.model.state_dict())[name], array, rtol=0 if dtype == "float32" else 2**-8)


@MODELS
def test_a_run_stands_for_its_base_with_the_adapter_merged(name: str) -> None:
    run = trained("run", init_from=name)
    assert abs(loss_of(load_initial("run").build_model()) - loss_of(run.model)) < 1e-5
    assert abs(loss_of(load_initial(None, adapter="run").build_model()) - loss_of(run.model)) < 1e-5
    assert loss_of(load_initial(name).build_model()) != loss_of(run.model)
    again = trained("again", init_from="run")  # adapters beside the merged weights
    assert loss_of(load_initial("again").build_model()) == pytest.approx(loss_of(again.model), abs=1e-5)


@pytest.mark.parametrize(
    ("quantize", "backend"), [("q8_0", "numpy"), ("q4_0", "numpy"), ("q4_1", "numpy"), ("q4_1", "numba")]
)
def test_adapters_are_trained_beside_quantised_weights_and_resumed(quantize: str, backend: str) -> None:
    if backend == "numba":
        pytest.importorskip("numba")
    run = trained("whole", quantize=quantize, backend=backend)
    assert isinstance(run.model.h[0].attn.q_proj.weight.data, QuantizedArray)
    assert isinstance(run.model.wte.weight.data, QuantizedArray)
    trained("resumed", quantize=quantize, backend=backend, max_iters=4)
    train(make_run(Arguments({"max_iters": 6}, "resumed")))
    for file in (f"step-000006/{ADAPTER}", "step-000006/optimizer.safetensors", "metrics.jsonl"):
        assert Path("whole", file).read_bytes() == Path("resumed", file).read_bytes(), file
    assert abs(loss_of(load_initial("whole").build_model()) - loss_of(run.model)) < 1e-5


# --------------------------------------------------------------------------------------------------
# Refused


def test_a_base_that_has_changed_is_refused() -> None:
    trained("run", max_iters=4)
    state = json.loads(Path("run/step-000004", STATE).read_text())
    path = Path(state["base"]["path"])
    Path("llama").unlink()
    path.parent.mkdir()
    path.symlink_to(Path("other/step-000004").resolve())
    message = "run/step-000004: an adapter of another base: it was trained beside weights with the sha256"
    with pytest.raises(UserError, match=message):
        make_run(Arguments({"max_iters": 6}, "run"))
    with pytest.raises(UserError, match=message):
        load_initial("run")
    path.unlink()
    with pytest.raises(UserError, match="llama/step-000004: no such checkpoint"):
        make_run(Arguments({"max_iters": 6}, "run"))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("other", "run/step-000006: an adapter of another base: it was trained beside weights with the sha256"),
        ("gpt2", "adapter_model.safetensors: an adapter of another model: base_model.model.model.layers.0"),
    ],
)
def test_an_adapter_is_refused_beside_another_base(model: str, message: str) -> None:
    trained("run")
    with pytest.raises(UserError, match=message) as caught:
        load_initial(model, adapter="run")
    assert "\n" not in str(caught.value)


def test_a_run_without_adapters_is_no_adapter() -> None:
    with pytest.raises(UserError, match="llama/step-000004: this run has no adapter: all its weights were trained"):
        load_initial("llama", adapter="llama")
    with pytest.raises(UserError, match="adapter nowhere: no such folder"):
        load_initial("llama", adapter="nowhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_from": None}, "lora_rank 2 needs trained weights, which stay as they are: give init_from"),
        ({"lora_rank": 0}, "lora_dropout 0.1 is for LoRA: give lora_rank as well"),
        ({"lora_rank": -1}, "lora_rank must be at least 0, not -1"),
        ({"lora_rank": 100_000}, "lora_rank 100000 is above n_embd"),
        ({"lora_alpha": 0.0}, "lora_alpha must be above 0, not 0.0"),
        ({"lora_dropout": 1.0}, "lora_dropout must be at least 0 and below 1, not 1.0"),
        ({"lora_targets": "q_proj,c_attn"}, "lora_targets: 'c_attn' is no linear layer of a block of llama"),
        ({"quantize": "q8_0", "dtype": "bfloat16"}, "quantize q8_0 needs dtype float32 or tf32, not bfloat16"),
    ],
)
def test_settings_that_do_not_fit_are_refused_and_nothing_is_written(options: dict[str, Any], message: str) -> None:
    given = {key: value for key, value in {**LORA, "out": "run", **options}.items() if value is not None}
    with pytest.raises(UserError, match=message):
        make_run(Arguments(given, None))
    assert not Path("run").exists()


@pytest.mark.parametrize("name", ["lora_rank", "lora_alpha", "lora_targets"])
def test_a_resumed_run_keeps_its_adapters(name: str) -> None:
    trained("run", max_iters=4)
    value: Any = {"lora_rank": 4, "lora_alpha": 3.0, "lora_targets": "q_proj"}[name]
    with pytest.raises(UserError, match=f"^{name} {value}: the run to resume has .*, which cannot be changed"):
        make_run(Arguments({"max_iters": 6, name: value}, "run"))


# --------------------------------------------------------------------------------------------------
# Defaults, and text


@pytest.mark.parametrize(("max_iters", "warmup_iters"), [(5, 0), (50, 5), (5000, 100)])
def test_the_warm_up_fits_the_run(max_iters: int, warmup_iters: int) -> None:
    config = make_run(Arguments({**DATA, "init_from": "llama", "out": "run", "max_iters": max_iters}, None)).config
    assert config.warmup_iters == warmup_iters


def test_adapters_are_trained_at_a_higher_rate_than_all_weights() -> None:
    given = {**DATA, "init_from": "llama", "out": "run"}
    assert make_run(Arguments(given, None)).config.lr == 1e-4
    config = make_run(Arguments({**given, "lora_rank": 2}, None)).config
    assert (config.lr, config.min_lr) == (1e-3, 1e-4)
    assert TrainConfig().lora_rank == 0


@MODELS
def test_generate_writes_with_an_adapter(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    trained("run", init_from=name, lr=0.1)
    texts = []
    for model in (["--model", name], ["--model", name, "--adapter", "run"], ["--adapter", f"run/step-000006/{ADAPTER}"],
                  ["--model", "run"]):  # fmt: skip
        command = [*model, "--prompt", "the ", "--max-new-tokens", "20", "--temperature", "0", "--backend", "numpy"]
        assert generate.main(command) == 0
        texts.append(capsys.readouterr().out)
    without, *with_adapter = texts
    assert len(set(with_adapter)) == 1 and with_adapter[0] != without
