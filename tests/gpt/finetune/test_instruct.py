"""`python -m gpt finetune instruct`: whole runs, their resume, what they lead to, and their errors."""

import io
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import generate
import tensorgrad as tg
import train as train_program
from gpt.__main__ import main
from gpt.checkpoint import load_checkpoint
from gpt.checkpoint.files import METRICS
from gpt.cli import run as run_program
from gpt.finetune.instruct import CONVERSATIONS, RESULTS
from gpt.finetune.instruction import Instruction
from gpt.train import loop
from gpt.train.config import TrainConfig
from gpt.train.loop import train
from gpt.train.run import new_run
from tests.gpt.finetune.chat_model import CONFIG, make_tokenizer, save_base

FLAGS = ["instruct", "--data=data.jsonl", "--init-from=base", "--backend=numpy", "--block-size=120", "--plot=False"]
LEARN = ["--lr=0.02", "--batch-size=2", "--epochs=60"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Conversations, a model with a chat template, and that model after it has learned the answers."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch, tg.use_backend("numpy"):
        patch.chdir(home)
        # Every question is asked of two people, so that what is held out is learned from others.
        known = {"1": "x", "2": "yy"}
        entries = [{"instruction": f"{name} {q}?", "output": a} for name in "abcdefgh" for q, a in known.items()]
        Path("data.jsonl").write_text("\n".join(map(json.dumps, entries)))
        save_base(Path("base"), make_tokenizer())
        assert main(["finetune", *FLAGS, *LEARN, "--out=run"]) == 0
        yield home


def test_held_out_answers_are_learned(call: Any) -> None:
    results = json.loads(Path("run", RESULTS).read_text())
    before, after = results["before"], results["after"]
    assert before["loss"] > 4 > 0.5 > after["loss"]
    assert before["n_exact"] == 0 and after["n_exact"] == after["n_short"] == 2
    text = Path("run", CONVERSATIONS).read_text()
    assert text.count("expected: ") == 2 and f"before: {before['answers'][0]}\nafter: {after['answers'][0]}\n" in text


def test_the_model_keeps_its_window(call: Any) -> None:
    state = load_checkpoint("run", optimizer=False).state
    assert state.model_config.block_size == CONFIG.block_size == 128 and state.train_config.block_size == 120


def test_generate_talks_to_the_result(
    call: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"c 1?\n/reset\nf 2?\n"))
    monkeypatch.setattr(sys, "stdin", stdin)
    flags = ["--chat", "--model=run", "--backend=numpy", "--temperature=0", "--max-new-tokens=8"]
    assert run_program(lambda: generate.main(flags)) == 0
    assert capsys.readouterr().out.splitlines() == ["x", "yy"]


@pytest.mark.parametrize("seed", range(5))
def test_conversations_that_begin_alike_are_on_the_same_side(seed: int, tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = [{"instruction": f"Question {i}?", "output": "x"} for i in range(20)]
    entries += [{"instruction": f"question  {i}?", "output": "y"} for i in range(20)]
    for i in range(20):
        texts = f"question {i}?", "x", "and then?", "z"
        roles = ["user", "assistant"] * 2
        messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
        entries.append({"messages": messages})
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, entries)))
    parts = Instruction(str(tmp_path / "data.jsonl"), seed=seed).conversations
    train, held_out = (Counter(one.messages[0]["content"].split()[1] for one in part) for part in parts)
    assert not train.keys() & held_out.keys()
    assert (train + held_out) == Counter({f"{i}?": 3 for i in range(20)}) and len(held_out) == 2


def test_what_is_cut_is_told(call: Any, tmp_path: Path) -> None:
    entries = [{"instruction": q * n, "output": "a" * 20} for q in "pqr" for n in (3, 4, 30, 90)]
    Path("long.jsonl").write_text("\n".join(map(json.dumps, entries)))
    flags = ["--data=long.jsonl", "--block-size=60", "--max-iters=1", f"--out={tmp_path / 'run'}"]
    status, out, err = call(*FLAGS, *flags)
    assert (status, err) == (0, "")
    assert "cut      of 12 conversations 3 to their first 60 tokens; 3 with longer prompts are left out\n" in out


@pytest.mark.parametrize("out", ["run", "other"])
def test_a_resumed_run_equals_an_uninterrupted_run(call: Any, out: str, tmp_path: Path) -> None:
    flags = [*FLAGS, "--eval-interval=2", "--lr-decay-iters=4", "--warmup-iters=0"]
    whole, run = str(tmp_path / "whole"), str(tmp_path / "run")
    assert call(*flags, "--max-iters=4", f"--out={whole}")[0] == 0
    assert call(*flags, "--max-iters=2", f"--out={run}")[0] == 0
    status, _, err = call("instruct", f"--resume={run}", f"--out={tmp_path / out}", "--max-iters=4")
    assert status == 0, err
    for name in ("step-000004/model.safetensors", "step-000004/optimizer.safetensors", METRICS, RESULTS):
        assert Path(tmp_path, out, name).read_bytes() == Path(whole, name).read_bytes()


def test_lora_trains_and_saves_adapters_alone(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert call(*FLAGS, *LEARN[:2], "--epochs=2", "--lora-rank=4", f"--out={run}")[0] == 0
    results = json.loads(Path(run, RESULTS).read_text())
    assert results["after"]["loss"] < results["before"]["loss"]
    folder = sorted(run.glob("step-*"))[-1]
    assert (folder / "adapter_model.safetensors").exists() and not (folder / "model.safetensors").exists()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"c 1?\n")))
    flags = ["--chat", f"--model={run}", "--backend=numpy", "--temperature=0", "--max-new-tokens=8"]
    assert run_program(lambda: generate.main(flags)) == 0 and len(capsys.readouterr().out) > 1


def test_a_step_that_is_not_finite_is_replayed(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = loop.batch_of

    def with_nan(run: Any, step: int) -> Any:
        run.model.h[1].mlp.up_proj.weight.data[0, 0] = np.nan
        return draw(run, step)

    monkeypatch.setattr(loop, "batch_of", with_nan)
    status, _, err = call(*FLAGS, f"--out={tmp_path / 'run'}")
    assert status == 2 and err.count("\n") == 1 and "step 1: " in err
    monkeypatch.setattr(sys, "argv", ["train.py", "--replay", str(tmp_path / "run" / "nonfinite-000001")])
    assert train_program.main() == 0
    out = capsys.readouterr().out
    assert out.count("linear in h.1.mlp.up_proj") == 2 and "result   float64 does not help" in out


def test_packing_takes_fewer_steps(call: Any, tmp_path: Path) -> None:
    outs = [call(*FLAGS, "--epochs=1", f"--packing={p}", f"--out={tmp_path / p}")[1] for p in ("True", "False")]
    rows = [next(line for line in out.splitlines() if line.startswith("rows ")).split()[1] for out in outs]
    assert int(rows[1]) == 14 > 2 * int(rows[0]) - 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data=empty.jsonl"], "data empty.jsonl, line 1: the answer, 'output', is empty"),
        (["--data=roles.jsonl"], "data roles.jsonl, line 1: message 1 is of the assistant, and the user has to"),
        (["--data=few.jsonl"], "data few.jsonl: 1 conversations that begin with 1 different prompts are too few: none"),
        (["--init-from=plain"], "this model has no chat template, it only continues a text"),
        (["--init-from=other"], "data data.jsonl, line 1: the chat template does not fit: no token that would stop"),
        (["--general-data=nowhere"], "data 'nowhere': no such file, folder or corpus"),
        (["--lora-rank=2", "--lora-targets=c_fc"], "lora_targets: 'c_fc' is no linear layer of a block of llama"),
        (["--block-size=9"], "data data.jsonl: every prompt is longer than block_size 9: give a larger one"),
        (["--block-size=0"], "block_size must be at least 1, not 0"),
        (["--batch-size=0"], "batch_size must be at least 1, not 0"),
        (["--seed=-1"], "seed must be at least 0 and below 2**64, not -1"),
        (["--grad-accum=0"], "grad_accum must be at least 1, not 0"),
        (["--allow-special"], "--allow-special is for a text to continue, not for rows of a file: leave it out"),
        (["--cuda-graph"], "--cuda-graph needs rows of one length"),
        (["--resume=run"], "--init-from starts a new run, and --resume continues one: give only one of them"),
        (["--resume=run", "--packing=True"], "--epochs and --packing cannot be changed by --resume"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_nothing_is_written(
    flags: list[str], message: str, call: Any, tmp_path: Path
) -> None:
    Path("empty.jsonl").write_text('{"instruction": "a", "output": ""}')
    Path("roles.jsonl").write_text('{"messages": [{"role": "assistant", "content": "a"}]}')
    Path("few.jsonl").write_text('{"instruction": "a", "output": "b"}')
    if flags == ["--init-from=plain"]:
        Path("text.txt").write_text("a b c d\n" * 50)
        train(new_run(TrainConfig(
            data="text.txt", backend="numpy", n_layer=1, n_head=1, n_embd=8, block_size=8, batch_size=2, max_iters=1,
            eval_interval=1, eval_iters=1, plot=False, out="plain",
        )))  # fmt: skip
    if flags == ["--init-from=other"]:
        pytest.importorskip("jinja2")
        template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        save_base(Path("other"), make_tokenizer(template + "{% if add_generation_prompt %}assistant: {% endif %}"))
    folder = tmp_path / "out"
    status, _, err = call(*FLAGS, *flags, f"--out={folder}")
    assert status == 2 and err.count("\n") == 1 and message in err
    assert not folder.exists()
