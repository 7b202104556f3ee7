"""What train.py --init-from shows at its end: texts of the base and of the finetuned model, from the same prompts."""

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

import train
from gpt.checkpoint.files import BEFORE
from gpt.cli import run as run_program
from gpt.generate import generate_text
from gpt.train import loop
from gpt.train.before_after import COMPARISON, NEW_TOKENS
from gpt.weights.initial import load_initial

pytestmark = pytest.mark.usefixtures("numpy_backend")

SHAPE = ["--n-layer=1", "--n-head=2", "--n-embd=16", "--block-size=16"]
FLAGS = ["--data=text.txt", "--backend=numpy", "--batch-size=2", "--max-iters=4", "--eval-interval=2", "--eval-iters=1",
         "--plot=False"]  # fmt: skip
FINETUNING = [*FLAGS, "--init-from=base", "--lr=0.03", "--warmup-iters=0", "--lr-decay-iters=4"]
PROMPTS = 2


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """call(*flags): the exit status of train.py, and what it has printed. The folder has a run `base`."""
    monkeypatch.chdir(tmp_path)

    def call(*flags: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *flags])
        status = run_program(train.main)
        return status, capsys.readouterr().out

    Path("text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    Path("general.txt").write_text("jumping dogs are lazy\n" * 40)
    assert call(*FLAGS, *SHAPE, "--out=base")[0] == 0
    assert not Path("base", BEFORE).exists()
    return call


def texts_of(model: str, prompts: list[str]) -> list[str]:
    initial = load_initial(model)
    options: dict[str, Any] = {"temperature": 0.8, "top_k": 200, "seed": 1337}
    return generate_text(initial.build_model(), initial.tokenizer, prompts, max_new_tokens=NEW_TOKENS, **options)


@pytest.mark.parametrize("lora", [[], ["--lora-rank=4"]])
def test_the_base_and_the_finetuned_model_continue_the_same_prompts(call: Any, lora: list[str]) -> None:
    status, out = call(*FINETUNING, *lora, "--out=run", "--general-data=general.txt")
    shown = Path("run", COMPARISON).read_text()
    assert status == 0 and f"{'-' * 80}\n{shown}{'-' * 80}\n" in out
    before = json.loads(Path("run", BEFORE).read_text())
    prompts = before["prompts"]
    assert all(prompt in Path("text.txt").read_text() for prompt in prompts[:PROMPTS])
    assert all(prompt in Path("general.txt").read_text() for prompt in prompts[PROMPTS:])
    assert len(prompts) == 2 * PROMPTS
    old, new = (texts_of(model, prompts) for model in ("base", "run"))
    assert before["texts"] == old and not set(old) & set(new)
    parts = zip(prompts, old, new, strict=True)
    assert shown == "\n\n".join(f"prompt: {p}\nbefore: {o}\nafter: {n}" for p, o, n in parts) + "\n"


@pytest.mark.parametrize("out", ["run", "other"])
def test_a_run_that_was_stopped_keeps_what_the_base_has_written(
    call: Any, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(*FINETUNING, "--out=whole")[0] == 0
    draw = loop.batch_of

    def interrupted(run: Any, step: int) -> Any:
        if step == 1:
            signal.raise_signal(signal.SIGINT)
        return draw(run, step)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "batch_of", interrupted)
        status, printed = call(*FINETUNING, "--out=run")
    assert status == 130 and "before: " not in printed and not Path("run", COMPARISON).exists()
    assert call("--resume=run", f"--out={out}")[0] == 0
    for name in (BEFORE, COMPARISON):
        assert Path(out, name).read_bytes() == Path("whole", name).read_bytes()


def test_without_the_texts_of_the_base_only_those_of_the_finetuned_model_are_shown(call: Any) -> None:
    call(*FINETUNING, "--out=run")
    Path("run", BEFORE).unlink()
    status, out = call("--resume=run", "--max-iters=6")
    assert status == 0 and out.count("\nafter: ") == PROMPTS and "before: " not in out
    assert not Path("run", BEFORE).exists()
