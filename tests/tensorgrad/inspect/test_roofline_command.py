"""python -m tensorgrad roofline: what it prints, writes and refuses."""

import functools
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import tensorgrad as tg
from gpt.config import GPTConfig, LlamaConfig
from gpt.fused import FusedGPT, FusedLlama
from tensorgrad.backend import use_backend
from tensorgrad.inspect import roofline_command
from tensorgrad.inspect.roofline import roofline
from tensorgrad.inspect.roofline_command import main
from tensorgrad.inspect.transformer import Sizes, Transformer, random_batch

SIZES = Sizes(n_layer=2, n_head=2, n_embd=8, block_size=4, batch_size=2, vocab_size=11)
FLAGS = [word for name, n in asdict(SIZES).items() for word in (f"--{name.replace('_', '-')}", str(n))]
SMALL = [*FLAGS, "--backend", "numpy", "--rounds", "1"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """In an empty folder, with small working sets, and without a setting of the process's memory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(roofline_command, "roofline", functools.partial(roofline, largest_bytes=2**18))
    monkeypatch.setattr(roofline_command, "keep_freed_memory", lambda: None)
    with use_backend("numpy"):
        yield


def test_it_prints_the_step_the_levels_and_writes_both(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert main([*SMALL, "--json", "found.json"]) == 0
    text = capsys.readouterr().out
    # tokens 11 x 8, positions 4 x 8; two layers: norms 32, qkv 24 x 9, proj 8 x 9, up 32 x 9, down 8 x 33; norm 16
    assert text.startswith(
        "A training step of a gpt with 1,880 parameters: n_layer 2, n_head 2, n_embd 8; batch 2 x 4\n"
    )
    for op in ("linear_cross_entropy", "mlp", "attention", "add_layer_norm", "AdamW", "between the ops"):
        assert re.search(rf"^ *\d* +{op} ", text, re.M), op
    assert Path("roofline.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(Path("found.json").read_text())
    assert found["sizes"] == asdict(SIZES)
    assert {of_op["op"] for of_op in found["levels"]} >= {"linear", "mlp", "attention", "embedding"}
    assert {row["op"] for row in found["step"]["rows"]} >= {of_op["op"] for of_op in found["levels"]}


def test_a_slow_step_says_how_far_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(SMALL) == 0
    assert "measuring" not in capsys.readouterr().err
    monkeypatch.setattr(roofline_command, "SILENCE_S", 0)
    assert main(SMALL) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"measuring: {n} of 5 steps" for n in range(1, 5)]  # 3 + 2 times one round


def test_one_op_at_its_levels(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--op", "softmax"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "softmax  2x2x4x4  float32"  # of the plain step
    assert [line.split()[0] for line in lines[2:4]] == ["plain", "numpy"]
    assert not Path("roofline.png").exists()
    assert main([*SMALL, "--op", "rms_norm", "--op", "swiglu"]) == 0  # of Llama's
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:3]] == ["rms_norm", "swiglu"]
    assert main([*SMALL, "--op", "sort"]) == 0
    assert capsys.readouterr().out.startswith("sort is in no step: measured on an example of gradcheck's")


@pytest.mark.parametrize("kind", ["gpt", "llama"])
def test_fused_and_plain_steps_compute_the_same(kind: str) -> None:
    losses, gradients = [], []
    for plain in (False, True):
        tg.manual_seed(0)
        model = Transformer(SIZES, kind, plain)
        loss = model(*random_batch(SIZES))
        loss.backward()
        losses.append(loss.item())
        gradients.append([p.grad for p in model.parameters()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] == pytest.approx(2.398, abs=0.1)  # ln 11
    for fused, plain in zip(*gradients, strict=True):
        assert abs(fused - plain).max() < 1e-6


def test_the_steps_are_those_of_the_models() -> None:
    """As many FLOPs as those of gpt/, of every op that has them."""
    shared = {"vocab_size": 11, "block_size": 4, "n_layer": 2, "n_head": 2, "n_embd": 8}
    llama = LlamaConfig(**shared, n_kv_head=2, n_hidden=8 * 8 // 3, tied=True)
    for kind, model in (("gpt", FusedGPT(GPTConfig(**shared, dropout=0.0))), ("llama", FusedLlama(llama))):
        costs = []
        for compute in (Transformer(SIZES, kind), model.loss):
            with tg.count() as counted:
                compute(*random_batch(SIZES)).backward()
            costs.append({name: cost.flops for name, cost in counted.forward.items() if cost.flops})
        assert costs[0] == costs[1]


def test_without_matplotlib_there_is_no_picture(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(SMALL) == 0
    assert 'no picture: matplotlib is not installed: pip install -e ".[plot]"' in capsys.readouterr().out


def test_a_step_without_enough_memory_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(sizes: Any) -> Any:
        raise MemoryError("Unable to allocate 48.4 GiB")

    monkeypatch.setattr(roofline_command, "random_batch", too_large)
    assert main(SMALL) == 2
    message = "python -m tensorgrad roofline: error: Unable to allocate 48.4 GiB; smaller sizes need less memory\n"
    assert capsys.readouterr().err == message


def test_levels_that_disagree_are_status_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def disagree(*operands: Any, **options: Any) -> Any:
        raise AssertionError("softmax on numba: result 0 differs")

    monkeypatch.setattr(roofline_command, "levels", disagree)
    assert main([*SMALL, "--op", "softmax"]) == 1
    assert capsys.readouterr().err == "python -m tensorgrad roofline: softmax on numba: result 0 differs\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--op sofmax", "unknown op 'sofmax'; did you mean 'softmax'?"),
        ("--op nonsense", "unknown op 'nonsense'; tensorgrad/ops/ has them all"),
        ("--op argmax", "op 'argmax' has no gradient to measure"),
        ("--backend nump", "unknown backend 'nump': choose auto, numpy, numba, cupy; did you mean 'numpy'?"),
        ("--n-layer 0", "argument --n-layer: '0' is not a number from 1 up"),
        ("--n-embd 10 --n-head 4", "--n-embd 10 is not a multiple of --n-head 4"),
        (
            "--model llama --n-embd 6 --n-head 2",
            "--n-embd 6 / --n-head 2 is odd: rotary positions turn pairs of numbers",
        ),
        ("--threads 1000000", "threads: 1000000 is not a number from 1 to"),
        ("--out picture.gif", "--out picture.gif ends neither in .png nor .svg nor .pdf"),
        ("--out nowhere/picture.png", "cannot write nowhere/picture.png: No such file or directory"),
        ("--json nowhere/found.json", "cannot write nowhere/found.json: No such file or directory"),
        ("--dtype int8", "argument --dtype: invalid choice: 'int8'"),
    ],
)
def test_a_mistake_is_one_line(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--backend", "numpy", *arguments.split()])
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith(f"python -m tensorgrad roofline: error: {message}")
