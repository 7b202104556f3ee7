"""train.py on prepared data: runs, resumes, and one-line errors for damaged or unsuitable data."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tensorgrad as tg
import train
from gpt.cli import run as run_program
from gpt.data import prepare as prepare_module
from gpt.data.prepare import Preparation, prepare
from gpt.train import loop

TEXT = "".join(f"{i} times {i} is {i * i}.\n" for i in range(600))
FLAGS = [
    "--backend=numpy", "--n-layer=1", "--n-head=2", "--n-embd=16", "--block-size=8", "--batch-size=4", "--max-iters=6",
    "--eval-interval=3", "--eval-iters=1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    with tg.use_backend("numpy"):
        yield


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """call(*flags): the exit status of train.py, and what it wrote to stdout and stderr."""

    def call(*flags: str) -> tuple[int, str, str]:
        monkeypatch.setattr(train.sys, "argv", ["train.py", *FLAGS, *flags])
        status = run_program(train.main, prog="train.py")
        return status, *capsys.readouterr()

    return call


def losses(folder: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


def prepared(**options: Any) -> None:
    prepare(Preparation(["text.txt"], "data", **{"tokenizer": "char", **options}))


def test_a_run_on_prepared_data_trains_and_resumes_exactly(call: Any) -> None:
    prepared(shard_tokens=1000)
    train_text = TEXT[: len(TEXT) - round(0.1 * len(TEXT))]
    cut = TEXT.index("\n", len(train_text)) + 1
    status, out, _ = call("--data=data", "--out=ours")
    assert status == 0
    assert f"data     data: {cut:,} tokens for training, {len(TEXT) - cut:,} for validation" in out
    assert "tokens   char, " in out
    call("--data=data", "--out=half", "--max-iters=3", "--lr-decay-iters=6")
    assert call("--data=data", "--resume=half", "--max-iters=6", "--lr-decay-iters=6")[0] == 0
    assert [line["loss"] for line in losses("half")] == [line["loss"] for line in losses("ours")]


def test_a_run_uses_the_tokenizer_of_the_prepared_data(call: Any) -> None:
    prepared(tokenizer="bpe", vocab_size=280)
    assert "tokens   bpe, 280 different ones" in call("--data=data", "--out=run")[1]
    assert json.loads(Path("run/step-000006/state.json").read_text())["train_config"]["tokenizer"] == "bpe"
    for flags, message in [
        (["--tokenizer=gpt2"], "data 'data' was prepared with tokenizer bpe: leave out tokenizer gpt2"),
        (
            ["--tokenizer=bpe", "--vocab-size=300"],
            "data 'data' was prepared with vocab_size 280: leave out vocab_size 300",
        ),
    ]:
        status, _, err = call("--data=data", "--out=other", *flags)
        assert status == 2 and err.startswith(f"train.py: error: {message}")
    assert call("--data=data", "--out=other", "--tokenizer=bpe", "--vocab-size=280")[0] == 0


def test_a_resume_with_other_data_is_refused(call: Any) -> None:
    prepared()
    assert call("--data=data", "--out=run", "--max-iters=3")[0] == 0
    Path("data").rename("before")
    Path("text.txt").write_text(TEXT[:-100] + TEXT[:100])
    prepared()
    status, _, err = call("--data=data", "--resume=run")
    assert status == 2 and "is not the text that run was trained on" in err
    Path("data").rename("char")
    prepared(tokenizer="bpe", vocab_size=260)
    status, _, err = call("--data=data", "--resume=run")
    assert status == 2 and "data 'data' was prepared with another tokenizer than the weights were trained with" in err


def test_the_error_for_a_shard_that_shrinks_during_training_is_one_line(
    call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared()
    draw, steps = loop.batch_of, []

    def shrinking(*arguments: Any) -> Any:
        steps.append(1)
        if len(steps) == 5:
            os.truncate("data/train-00000.bin", 10)
        return draw(*arguments)

    monkeypatch.setattr(loop, "batch_of", shrinking)
    status, _, err = call("--data=data", "--out=run")
    sizes = f"10 bytes instead of {2 * shard_size()}"
    assert (status, err) == (2, f"train.py: error: data/train-00000.bin: changed while it was in use: {sizes}\n")
    assert Path("run/step-000003").is_dir()


def shard_size() -> int:
    manifest = json.loads(Path("data/manifest.json").read_text())
    return int(manifest["splits"]["train"]["tokens"])


def test_incompletely_prepared_data_is_refused(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepare_module._Output, "finish", interrupt)
        prepared()
    status, _, err = call("--data=data", "--out=run")
    assert status == 2 and "data 'data' is incomplete: run the same prepare command again to finish it" in err
    assert not Path("run").exists()


def test_a_validation_split_too_small_for_one_window_is_refused(call: Any) -> None:
    prepared(val_fraction=0.0)
    status, _, err = call("--data=data", "--out=run")
    assert status == 2
    assert "the validation part of data 'data' has 0 tokens, too few for block_size 8" in err


def test_encoding_errors_of_a_text_file_are_reported_or_replaced(call: Any) -> None:
    Path("bad.txt").write_bytes(TEXT.encode() + b"\xff")
    status, _, err = call("--data=bad.txt", "--out=run")
    assert status == 2 and f"is not UTF-8: byte 0xff at offset {len(TEXT)}" in err
    assert call("--data=bad.txt", "--out=run", "--encoding-errors=replace")[0] == 0
