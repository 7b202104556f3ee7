"""--plain and --normalize-whitespace: the model and the text of a run, kept by config.toml and by a resume."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt.checkpoint import load_checkpoint
from gpt.config import UserError
from gpt.data.corpora import normalize_whitespace
from gpt.data.prepare import Preparation, prepare
from gpt.data.shards import load_prepared
from gpt.fused import FusedGPT
from gpt.model import GPT
from gpt.train.config import TrainConfig
from gpt.train.config_file import read_config
from gpt.train.flags import Arguments
from gpt.train.loop import train
from gpt.train.run import make_run, new_run

pytestmark = pytest.mark.usefixtures("numpy_backend")

TEXT = "the quick  \nbrown fox  \n\n\n\njumps over the lazy dog \n" * 20
SMALL: dict[str, Any] = {
    "data": "text.txt", "backend": "numpy", "n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 8, "batch_size": 2,
    "max_iters": 2, "eval_interval": 2, "eval_iters": 1, "plot": False, "tokenizer": "char",
}  # fmt: skip


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)


def test_plain_is_saved_and_can_be_changed_by_a_resume() -> None:
    run = new_run(TrainConfig(**SMALL, plain=True, out="run"))
    assert type(run.model) is GPT
    train(run)
    assert read_config("run/config.toml")["plain"] is True
    assert type(make_run(Arguments({"max_iters": 3}, "run")).model) is GPT
    assert type(make_run(Arguments({"max_iters": 3, "plain": False}, "run")).model) is FusedGPT
    assert type(new_run(TrainConfig(**SMALL, out="other")).model) is FusedGPT


def test_plain_and_fused_runs_have_the_same_weights() -> None:
    for name, plain in (("plain", True), ("fused", False)):
        train(new_run(TrainConfig(**SMALL, plain=plain, out=name)))
    plain_weights, fused_weights = (load_checkpoint(name).weights for name in ("plain", "fused"))
    assert plain_weights.keys() == fused_weights.keys()
    for name, array in plain_weights.items():
        np.testing.assert_allclose(array, fused_weights[name], rtol=0, atol=1e-4)


def test_whitespace_is_normalized_and_a_resume_keeps_it() -> None:
    run = new_run(TrainConfig(**SMALL, normalize_whitespace=True, out="run"))
    tokens = [*run.train_loader.tokens.tolist(), *run.val_loader.tokens.tolist()]
    assert run.tokenizer.decode(tokens) == normalize_whitespace(TEXT) != TEXT
    train(run)
    assert read_config("run/config.toml")["normalize_whitespace"] is True
    resumed = make_run(Arguments({"max_iters": 3}, "run"))
    assert resumed.train_loader.tokens.tolist() == run.train_loader.tokens.tolist()
    with pytest.raises(UserError, match="^data 'text.txt' is not the text that run was trained on"):
        make_run(Arguments({"max_iters": 3, "normalize_whitespace": False}, "run"))


def test_prepared_data_records_whether_it_was_normalized() -> None:
    for out, normalize in (("normal", True), ("raw", False)):
        prepare(Preparation(["text.txt"], out, "char", normalize_whitespace=normalize, piece_bytes=100))
        data = load_prepared(out)
        text = "".join(data.tokenizer.decode(split.read(0, len(split))) for split in (data.train, data.val))
        assert text == (normalize_whitespace(TEXT) if normalize else TEXT)
    given = {**SMALL, "data": "normal", "out": "run"}
    assert make_run(Arguments(given, None)).config.normalize_whitespace is True
    with pytest.raises(UserError, match="data 'raw' was prepared with normalize_whitespace False: leave out"):
        make_run(Arguments({**given, "data": "raw", "normalize_whitespace": True}, None))
