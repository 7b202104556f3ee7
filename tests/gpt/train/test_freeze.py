"""A domain: frozen parts, the loss on a general text beside that on the domain, and the window."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt.config import LlamaConfig, UserError
from gpt.evaluate.plot import History
from gpt.train.flags import Arguments
from gpt.train.freeze import freeze
from gpt.train.loop import train
from gpt.train.run import make_run
from gpt.weights import build_model
from gpt.weights.initial import load_initial

pytestmark = pytest.mark.usefixtures("numpy_backend")

DATA: dict[str, Any] = {
    "data": "text.txt", "backend": "numpy", "batch_size": 2, "max_iters": 4, "eval_interval": 2, "eval_iters": 2,
    "plot": False,
}  # fmt: skip
SHAPE = {"n_layer": 3, "n_head": 2, "n_embd": 16, "block_size": 300}


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 100)
    Path("general.txt").write_text("jumping dogs are lazy\n" * 40)
    base = {"out": "base", "model": "llama", "tokenizer": "char", "max_iters": 2}
    train(make_run(Arguments({**DATA, **SHAPE, **base}, None)))


@pytest.mark.parametrize(
    ("spec", "frozen"),
    [
        ("wte", {"wte"}),
        ("h.1", {"h.1"}),
        ("h.0-1", {"h.0", "h.1"}),
        ("wte,h.2.mlp", {"wte", "h.2.mlp"}),
        ("h.0-1.attn,norm_f", {"h.0.attn", "h.1.attn", "norm_f"}),
    ],
)
def test_parts_are_frozen_by_their_names(spec: str, frozen: set[str]) -> None:
    model = build_model(LlamaConfig(8, 9, 12, 2, 16, 2, 16))  # with the blocks 10 and 11, which begin with a 1
    freeze(model, spec)
    for name, p in model.named_parameters():
        assert p.requires_grad != any(name.startswith(f"{part}.") for part in frozen), name


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("wpe", "freeze: the model has no 'wpe': it has wte, h, norm_f, and in h the blocks h.0 to h.2"),
        ("h.3", "no 'h.3'"),
        ("h.2-1", "no 'h.2-1'"),
        ("h.0-3", "no 'h.0-3'"),
        ("", "no ''"),
        ("wte,h,norm_f", "freeze 'wte,h,norm_f': nothing is left to train"),
    ],
)
def test_a_part_that_is_not_there_is_refused(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_run(Arguments({**DATA, "init_from": "base", "out": "run", "freeze": spec}, None))
    assert not Path("run").exists()


def test_frozen_parts_have_no_moments_and_keep_their_weights_also_after_a_resume() -> None:
    options = {**DATA, "init_from": "base", "freeze": "wte,h.0-1", "lr": 0.01, "warmup_iters": 0, "lr_decay_iters": 4}
    whole = make_run(Arguments({**options, "out": "whole"}, None))
    assert len(whole.optimizer.state) == sum(p.requires_grad for p in whole.model.parameters()) == 10
    train(whole)
    before = load_initial("base").weights
    changed = {name for name, array in whole.model.state_dict().items() if not np.array_equal(array, before[name])}
    assert {name.rpartition(".")[0].rpartition(".")[0] for name in changed} == {"", "h.2", "h.2.attn", "h.2.mlp"}
    train(make_run(Arguments({**options, "out": "resumed", "max_iters": 2}, None)))
    train(make_run(Arguments({"max_iters": 4}, "resumed")))
    for file in ("step-000004/model.safetensors", "step-000004/optimizer.safetensors", "metrics.jsonl"):
        assert Path("whole", file).read_bytes() == Path("resumed", file).read_bytes(), file


def test_the_loss_on_a_general_text_is_shown_beside_that_on_the_domain(capsys: pytest.CaptureFixture[str]) -> None:
    options = {**DATA, "init_from": "base", "general_data": "general.txt", "out": "run", "lr": 0.01, "plot": True}
    train(make_run(Arguments(options, None)))
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    general = [(row["step"], row["general_loss"]) for row in rows if "general_loss" in row]
    assert [step for step, _ in general] == [2, 4] == [row["step"] for row in rows if "val_loss" in row]
    assert History.read(Path("run")).general == general
    assert f"general {general[-1][1]:.4f}" in capsys.readouterr().out
    train(make_run(Arguments({**options, "general_data": None, "out": "without"}, None)))
    without = [json.loads(line) for line in Path("without/metrics.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in row.items() if k != "general_loss"} for row in rows] == without  # training is the same


def test_the_window_is_at_most_256_tokens_unless_it_is_given() -> None:
    given = {**DATA, "init_from": "base", "out": "run"}
    assert make_run(Arguments(given, None)).config.block_size == 256
    assert make_run(Arguments({**given, "block_size": 280}, None)).config.block_size == 280


def test_without_the_general_text_nothing_is_written() -> None:
    with pytest.raises(UserError, match="data 'nowhere': no such file, folder or corpus"):
        make_run(Arguments({**DATA, "init_from": "base", "out": "run", "general_data": "nowhere"}, None))
    assert not Path("run").exists()


def test_adapters_and_frozen_parts_exclude_each_other() -> None:
    with pytest.raises(UserError, match="freeze 'wte': lora_rank 2 freezes all weights: leave it out"):
        make_run(Arguments({**DATA, "init_from": "base", "out": "run", "freeze": "wte", "lora_rank": 2}, None))
