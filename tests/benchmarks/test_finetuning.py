"""The benchmarks of finetuning run, on a tiny model and data of the same form. What is learned is not tested."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from benchmarks import spam
from gpt.config import GPTConfig
from gpt.finetune.classifier import Classifier, padded
from gpt.tokenizer import BPETokenizer
from gpt.weights import build_model, gguf
from tests.gpt.finetune.chat_model import CONFIG, make_tokenizer, save_base

ROOT = Path(__file__).parents[2]
MAIL = "Received: from {label}.example\nSubject: {label}\nContent-Type: text/plain\n\n{body}\n"


@pytest.fixture
def call(tmp_path: Path) -> Any:
    """call(program, *flags): the finished process and its figures."""
    with tg.use_backend("numpy"):
        save_base(tmp_path / "base", make_tokenizer())

    def call(program: str, *flags: str) -> tuple[subprocess.CompletedProcess[str], Any]:
        command = [sys.executable, str(ROOT / "benchmarks" / program), *flags, "--backend=numpy", "--out=figures.json"]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        result = subprocess.run(command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode in (0, 1) and "error" not in result.stderr, result.stderr
        return result, json.loads((tmp_path / "figures.json").read_text())

    return call


ONE_EPOCH = ("--init-from=base", "--seeds", "1", "2", "--epochs=1")


def test_spam_reads_bodies_alone_and_measures_every_seed(call: Any, tmp_path: Path) -> None:
    for i in range(12):
        for group, word in (("easy-ham-1", "dinner"), ("spam-2", "prize")):
            path = tmp_path / "package" / "data" / group / f"{i}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"text": MAIL.format(label=group, body=f"number {i} {word}")}))
    result, figures = call(
        "spam.py", "--data=package", "--tune", "head", "all", "--per-label=11", "--pool=mean", *ONE_EPOCH
    )
    assert "11 messages of each label" in result.stdout and (figures["pool"], figures["epochs"]) == ("mean", 1)
    assert [(row["tune"], row["seed"]) for row in figures["runs"]] == [("head", 1), ("head", 2), ("all", 1), ("all", 2)]
    assert figures["passed"] is (result.returncode == 0) is False  # a model with random weights has learned nothing
    assert all(0 <= row[who]["test"] <= 1 for row in figures["runs"] for who in ("model", "words"))


def test_spam_measures_the_five_rows_of_a_book_by_one_command(call: Any, tmp_path: Path) -> None:
    """Its command, with a GPT-2 with random weights and lines in the form of SMSSpamCollection."""
    shape = GPTConfig(block_size=128, vocab_size=259, n_layer=3, n_head=2, n_embd=16)
    with tg.use_backend("numpy"):
        save_base(tmp_path / "tiny", make_tokenizer(), shape)
    lines = "".join(f"ham\tnumber {i} dinner\nspam\tnumber {i} prize\n" for i in range(20))
    (tmp_path / "SMSSpamCollection").write_text(lines)
    rows = ["last-block", "last-two-blocks", "all", "lora", "random"]
    source = ("--data=SMSSpamCollection", "--init-from=tiny", "--pool=last")
    result, figures = call("spam.py", "--tune", *rows, *source, "--seeds", "1", "--epochs=1")
    assert [row["tune"] for row in figures["runs"]] == rows and "20 messages of each label" in result.stdout
    block, top = 12 * 16 * 16 + 13 * 16, (2 + 2) * 16  # the norm after the last block, and the layer for two labels
    whole, adapters = 3 * block + top + (259 + 128) * 16, 3 * 16 * (64 + 32 + 80 + 80)
    trained = [block + top, 2 * block + top, whole, adapters + 2 * 16, whole]
    shown = re.findall(r"^trained  ([\d,]+) parameters: ", result.stdout, re.MULTILINE)
    assert [int(n.replace(",", "")) for n in shown] == trained


def test_remembered_blocks_change_neither_loss_nor_gradients() -> None:
    with tg.use_backend("numpy"):
        model = Classifier(build_model(CONFIG), 2)
        model.train_only("last-block")
        parameters = [p for p in model.parameters() if p.requires_grad]
        texts, labels, known = [[5, 7, 9], [3], [5, 7, 9, 11, 13]], np.array([0, 1, 1]), {}

        def loss_and_gradients(rows: list[int]) -> list[np.ndarray[Any, Any]]:
            loss = model.loss(padded([texts[i] for i in rows]), labels[rows], np.ones(len(rows), np.float32))
            for p in parameters:
                p.grad = None
            loss.backward()
            return [loss.numpy(), *(np.array(p.grad) for p in parameters)]

        batches = [[0, 1, 2], [0, 1], [2, 1]]  # a text is padded to another length in each
        expected = [loss_and_gradients(rows) for rows in batches]
        spam.remember_frozen_blocks(model.model, known)
        for rows, arrays in zip(batches, expected, strict=True):
            for array, right in zip(loss_and_gradients(rows), arrays, strict=True):
                np.testing.assert_allclose(array, right, rtol=1e-5, atol=1e-7)
        assert len(known) == len(texts)


def test_answers_measures_before_and_after(call: Any, tmp_path: Path) -> None:
    entries = [{"instruction": f"number {i}?", "output": "yes"} for i in range(12)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, entries)))
    result, figures = call("answers.py", "--data=data.jsonl", "--block-size=100", "--keep=runs", *ONE_EPOCH)
    assert [row["seed"] for row in figures["runs"]] == [1, 2]
    fell = [row["after"]["loss"] < row["before"]["loss"] for row in figures["runs"]]
    assert figures["passed"] == all(fell) == (result.returncode == 0)
    assert (tmp_path / "runs" / "seed-2" / "conversations.txt").read_text().count("expected: yes") >= 1


def test_domain_measures_both_texts_before_and_after(call: Any, tmp_path: Path) -> None:
    """The model knows bytes alone, so that a byte is a token; with random weights, each has about 1/259 at first."""
    (tmp_path / "domain.txt").write_text("to be, or not to be: that is the question. " * 90)
    (tmp_path / "general.txt").write_text("a general text, which has other words. " * 20)
    sizes = ("--steps=4", "--evaluations=2", "--eval-iters=2", "--block-size=32")
    texts = ("--data=domain.txt", "--general-data=general.txt")
    result, figures = call("domain.py", *texts, *sizes, "--init-from=base", "--no-chart")
    full, lora = figures["runs"]
    assert (full["tune"], lora["tune"]) == ("full", "lora") and full["steps"] == lora["steps"] == [0, 2, 4]
    for where in ("domain", "general"):
        assert full[where][0] == lora[where][0] == pytest.approx(math.log2(259), rel=0.02)
        assert full[where][-1] != lora[where][-1]
    fell = [row["domain"][-1] < row["domain"][0] for row in figures["runs"]]
    assert figures["passed"] == all(fell) == (result.returncode == 0)


def test_lora_step_measures_every_contender(call: Any, tmp_path: Path) -> None:
    tokenizer = BPETokenizer.train("to be, or not to be: that is the question. " * 9, CONFIG.vocab_size)
    with tg.use_backend("numpy"):
        gguf.write_model(tmp_path / "tiny.gguf", CONFIG, build_model(CONFIG).state_dict(), tokenizer, "f32")
    _, figures = call("lora_step.py", "--model=tiny.gguf", "--block-size=16", "--rounds=1", "--threads=1", "--rank=2")
    ours, everything = (figures["rows"][f"ours, {name}"] for name in ("LoRA", "all weights"))
    assert ours["losses"][0] == everything["losses"][0] != ours["losses"][-1]
    assert figures["summary"]["memory / all weights"] == ours["peak_mb"] / everything["peak_mb"]
    if {"PEFT", "PEFT+keep"} <= figures["rows"].keys():
        assert figures["rows"]["PEFT"]["losses"] == pytest.approx(ours["losses"], rel=1e-4)
    else:
        assert figures["passed"] is False
