"""`python -m gpt evaluate`: its scores, compared with a sum computed by hand, its sources and its errors."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import tensorgrad as tg
import train
from gpt.checkpoint import load_checkpoint
from gpt.cli import run as run_program
from gpt.data.prepare import Preparation, prepare
from gpt.evaluate import __main__ as program

TEXT = "".join(f"{i} fois {i} égale {i * i}.\n" for i in range(200))
FLAGS = [
    "--data=text.txt", "--backend=numpy", "--n-layer=1", "--n-head=2", "--n-embd=16", "--block-size=8",
    "--batch-size=4", "--max-iters=4", "--eval-interval=4", "--eval-iters=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A text, the same text prepared with each tokenizer, and a run trained with each tokenizer."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch, tg.use_backend("numpy"):
        patch.chdir(home)
        Path("text.txt").write_text(TEXT)
        for tokenizer in ("char", "bpe"):
            prepare(
                Preparation(["text.txt"], tokenizer, tokenizer, 280 if tokenizer == "bpe" else None, shard_tokens=999)
            )
            patch.setattr(train.sys, "argv", ["train.py", *FLAGS, f"--data={tokenizer}", f"--out=run-{tokenizer}"])
            assert run_program(train.main) == 0
        yield home


@pytest.fixture
def call(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """call(*flags): the exit status, and what was written to stdout and stderr."""
    monkeypatch.chdir(home)

    def call(*flags: str) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(program.sys, "argv", ["evaluate", *flags, "--backend=numpy"])
        status = run_program(program.main, prog="evaluate")
        return status, *capsys.readouterr()

    return call


def sum_by_hand(run: str, text: str) -> tuple[float, int, int]:
    """The nats, tokens and bytes of a text, computed one token at a time in non-overlapping windows of 8 tokens."""
    checkpoint = load_checkpoint(run, optimizer=False)
    model, tokens = checkpoint.build_model(), checkpoint.tokenizer.encode(text)
    model.eval()
    nats = 0.0
    for i in range(1, len(tokens)):
        context = np.array([tokens[(i - 1) // 8 * 8 : i]])
        logits = model(context)[0].numpy()[0, 0].astype(np.float64)
        nats += np.log(np.exp(logits).sum()) - logits[tokens[i]]
    return nats, len(tokens) - 1, len(checkpoint.tokenizer.decode_bytes(tokens[1:]))


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_scores_equal_a_sum_computed_by_hand(call: Any, tokenizer: str) -> None:
    status, out, err = call(f"run-{tokenizer}", "--data=text.txt", "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    nats, n_tokens, n_bytes = sum_by_hand(f"run-{tokenizer}", TEXT[int(len(TEXT) * 0.9) :])
    assert (found["tokens"], found["bytes"]) == (n_tokens, n_bytes)
    assert found["loss"] == pytest.approx(nats / n_tokens, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(nats / n_tokens), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-5)
    assert (found["stride"], found["block_size"], found["split"]) == (8, 8, "val")


def test_prepared_data_gets_the_same_score_as_its_text(call: Any) -> None:
    parts = [
        json.loads(call("run-char", "--data=char", f"--split={name}", "--json")[1]) for name in ("train", "val", "all")
    ]
    cut = parts[0]["tokens"] + 1  # the first token of each part is not predicted
    train_part, val_part = (sum_by_hand("run-char", text) for text in (TEXT[:cut], TEXT[cut:]))
    assert parts[0]["loss"] == pytest.approx(train_part[0] / train_part[1], rel=1e-5)
    assert parts[1]["loss"] == pytest.approx(val_part[0] / val_part[1], rel=1e-5)
    assert parts[2]["tokens"] == train_part[1] + val_part[1] == len(TEXT) - 2
    assert parts[2]["loss"] == pytest.approx((train_part[0] + val_part[0]) / parts[2]["tokens"], rel=1e-5)


def test_a_smaller_stride_changes_the_loss_and_scores_are_reproducible(call: Any) -> None:
    first, again = (json.loads(call("run-char", "--data=char", "--stride=2", "--json")[1]) for _ in range(2))
    whole = json.loads(call("run-char", "--data=char", "--json")[1])
    assert first.pop("tokens_per_s") and again.pop("tokens_per_s")
    assert first == again
    assert first["tokens"] == whole["tokens"] and first["loss"] != whole["loss"]


def test_the_report_is_readable_without_json(call: Any) -> None:
    status, out, _ = call("run-bpe/step-000004", "--data=text.txt", "--split=all", "--stride=4")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == [
        "checkpoint", "data", "windows", "loss", "perplexity", "bits/byte", "speed"
    ]  # fmt: skip
    assert "text.txt, all: " in out and "of 8 tokens, every 4" in out


def test_what_quantised_weights_cost_is_shown_beside_float32(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.sys, "argv", ["train.py", *FLAGS, "--n-embd=32", "--lr=0.05", "--out=run-wide"])
    assert run_program(train.main) == 0
    exact, quantised = (
        json.loads(call("run-wide", "--data=text.txt", f"--quantize={how}", "--json")[1]) for how in ("none", "q4_0")
    )
    assert exact["float32_perplexity"] is None
    assert quantised["float32_perplexity"] == exact["perplexity"] != quantised["perplexity"]
    shown = call("run-wide", "--data=text.txt", "--quantize=q4_0")[1]
    cost = quantised["perplexity"] / exact["perplexity"] - 1
    assert f"{quantised['perplexity']:.3f} ({cost:+.2%} beside float32, {exact['perplexity']:.3f})" in shown


def test_end_of_text_tokens_count_no_bytes(call: Any) -> None:
    Path("two").mkdir(exist_ok=True)
    for name in ("a.txt", "b.txt"):
        Path("two", name).write_text(TEXT[:100])
    prepare(Preparation(["two"], "two-prepared", "bpe/tokenizer.json", val_fraction=0.0))
    found = json.loads(call("run-bpe", "--data=two-prepared", "--split=train", "--json")[1])
    first = len(
        load_checkpoint("run-bpe").tokenizer.decode_bytes([load_checkpoint("run-bpe").tokenizer.encode(TEXT[:100])[0]])
    )
    assert found["bytes"] == 2 * len(TEXT[:100].encode()) - first


def test_hugging_face_gpt2_weights_are_evaluated(call: Any, home: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"wte.weight": (50257, 64), "wpe.weight": (16, 64), "ln_f.weight": (64,), "ln_f.bias": (64,)}
    for name, shape in {
        "attn.c_attn": (64, 192),
        "attn.c_proj": (64, 64),
        "mlp.c_fc": (64, 256),
        "mlp.c_proj": (256, 64),
    }.items():
        shapes |= {f"h.0.{name}.weight": shape, f"h.0.{name}.bias": shape[1:]}
    for name in ("ln_1", "ln_2"):
        shapes |= {f"h.0.{name}.weight": (64,), f"h.0.{name}.bias": (64,)}
    Path("hf").mkdir(exist_ok=True)
    save_file(
        {name: rng.standard_normal(shape, np.float32) * 0.02 for name, shape in shapes.items()}, "hf/model.safetensors"
    )
    found = json.loads(call("hf/model.safetensors", "--data=text.txt", "--json")[1])
    assert found["tokenizer"] == "gpt2" and found["block_size"] == 16
    assert found["loss"] == pytest.approx(math.log(50257), abs=0.1)  # random weights predict almost uniformly
    assert json.loads(call("hf", "--data=text.txt", "--json")[1])["loss"] == found["loss"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["run-char", "--data=bpe"], "data 'bpe' was prepared with another tokenizer than run-char has"),
        (["run-char", "--data=text.txt", "--stride=9"], "--stride must be at least 1 and at most the window, 8, not 9"),
        (["run-char", "--data=text.txt", "--stride=0"], "--stride must be at least 1 and at most the window, 8, not 0"),
        (["run-char", "--data=text.txt", "--batch-size=0"], "--batch-size must be at least 1, not 0"),
        (["run-char", "--data=one.txt", "--split=all"], "data 'one.txt', all: 1 tokens; at least 2 are needed"),
        (["run-char", "--data=odd.txt"], "data 'odd.txt': the vocabulary, of 22 characters, does not have '@'"),
        (["nothing", "--data=text.txt"], "nothing"),
        (["run-char"], "the following arguments are required: --data"),
        (["run-char", "--data=text.txt", "--split=test"], "unknown value 'test'"),
    ],
)
def test_user_errors_are_one_line(call: Any, flags: list[str], message: str) -> None:
    Path("one.txt").write_text("1")
    Path("odd.txt").write_text("@" * 100)
    try:
        status, out, err = call(*flags)
    except SystemExit as stopped:  # raised by argparse
        status = stopped.code
        return
    assert status == 2 and out == ""
    assert message in err and err.count("\n") == 1


def test_heads_that_a_run_does_not_have_are_refused(call: Any) -> None:
    flags = ("run-char", "--data=text.txt")
    status, out, err = call(*flags, "--n-head=4")
    assert (status, out) == (2, "") and err.endswith("error: n_head 4: the weights of run-char have 2\n")
    assert call(*flags, "--n-head=2")[0] == 0
