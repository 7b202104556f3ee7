"""config.toml: every setting of a run is written and read back, and every setting is used by the program."""

import dataclasses
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt import config as config_module
from gpt.checkpoint.files import CONFIG
from gpt.config import GPTConfig, LlamaConfig, UserError
from gpt.train.config import TrainConfig
from gpt.train.config_file import describe, read_config, to_toml, write_config
from gpt.train.flags import Arguments, parse
from gpt.train.loop import train
from gpt.train.run import make_run, new_run

pytestmark = pytest.mark.usefixtures("numpy_backend")

SMALL: dict[str, Any] = {
    "data": "text.txt", "backend": "numpy", "n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 4, "batch_size": 2,
    "max_iters": 2, "eval_interval": 2, "eval_iters": 1, "plot": False, "tokenizer": "char",
}  # fmt: skip


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the quick brown fox\n" * 20)
    return tmp_path


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))  # unpaired surrogates are no text


@given(TEXTS, st.integers(0, 2**64 - 1), st.floats(0, 1e300), st.booleans(), st.none() | st.integers(1, 10**9))
def test_a_configuration_is_read_as_it_was_written(
    data: str, seed: int, decay: float, bias: bool, decay_iters: Any
) -> None:
    config = TrainConfig(data=data, seed=seed, weight_decay=decay, bias=bias, lr_decay_iters=decay_iters)
    assert TrainConfig(**tomllib.loads(to_toml(config))) == config


def test_every_setting_except_out_is_in_the_file() -> None:
    config = TrainConfig(out="run", threads=2, tokenizer="bpe", vocab_size=300)
    names = {field.name for field in dataclasses.fields(config) if getattr(config, field.name) is not None}
    assert tomllib.loads(to_toml(config)).keys() == names - {"out"}


def test_a_run_can_be_repeated_from_its_configuration_file() -> None:
    train(new_run(TrainConfig(**SMALL, out="run", lr=0.02)))
    again = parse(["--config", f"run/{CONFIG}", "--out", "again"]).train_config()
    assert again == TrainConfig(**SMALL, out="again", lr=0.02, dtype="float32", cuda_graph=False)
    train(new_run(again))
    assert Path("run/metrics.jsonl").read_bytes() == Path("again/metrics.jsonl").read_bytes()
    assert [path.name for path in Path("run").glob(".*")] == [".lock"] * Path("run/.lock").exists()


def test_a_resume_updates_the_configuration_file() -> None:
    train(new_run(TrainConfig(**SMALL, out="run")))
    train(make_run(Arguments(given={"max_iters": 4}, resume="run")))
    assert read_config(f"run/{CONFIG}")["max_iters"] == 4


def test_a_failed_write_keeps_the_previous_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_config(tmp_path, TrainConfig())
    before = (tmp_path / CONFIG).read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        write_config(tmp_path, TrainConfig(lr=0.5))
    assert (tmp_path / CONFIG).read_bytes() == before


def test_the_description_shows_every_setting_in_lines_that_fit() -> None:
    config = TrainConfig(lr=0.25, data="some/file.txt")
    lines = list(describe(config, "    ", 80))
    assert max(map(len, lines)) <= 80
    words = " ".join(" ".join(lines).split())
    for field in dataclasses.fields(config):
        if (value := getattr(config, field.name)) is not None:
            assert f"{field.name} {value}" in words


# --------------------------------------------------------------------------------------------------
# Every setting is used


def readers(cls: type, monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Return {field: files that read it}, filled from now on by every attribute access."""
    read: dict[str, set[str]] = {field.name: set() for field in dataclasses.fields(cls)}

    def record_reader(self: Any, name: str) -> Any:
        if name in read:
            read[name].add(sys._getframe(1).f_code.co_filename)
        return object.__getattribute__(self, name)

    monkeypatch.setattr(cls, "__getattribute__", record_reader, raising=False)
    return read


FILES_THAT_ONLY_COPY = {dataclasses.__file__, config_module.__file__, sys.modules[to_toml.__module__].__file__}


def test_every_setting_is_read_by_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that is only checked, printed and saved has no effect, so another module must read it."""
    read = readers(TrainConfig, monkeypatch)
    models = [readers(GPTConfig, monkeypatch), readers(LlamaConfig, monkeypatch)]
    config = TrainConfig(**{**SMALL, "tokenizer": "bpe", "vocab_size": 260, "plot": False}, out="run")
    train(new_run(config))
    run = make_run(Arguments(given={"max_iters": 3}, resume="run"))
    train(run)
    run = make_run(Arguments(given={"max_iters": 4}, resume="run"))
    run.model.ln_f.weight.data[...] = np.nan  # some settings are read only after an error
    with pytest.raises(UserError):
        train(run)
    train(new_run(TrainConfig(**{**SMALL, "plot": False}, model="llama", plain=True, out="llama")))
    used = {name: files - FILES_THAT_ONLY_COPY for name, files in read.items()}
    # The model's shape is copied into a GPTConfig or a LlamaConfig, as "model" says, and read from there.
    shape = {field.name for field in dataclasses.fields(TrainConfig) if field.metadata["group"] == "model"}
    # The initial weights determine the shape, so they are read before the configuration exists.
    earlier = {"init_from"}
    assert [name for name, files in used.items() if not files and name not in shape | earlier] == []
    assert shape <= {"model"}.union(*models)
    for model in models:
        assert [name for name, files in model.items() if not files - FILES_THAT_ONLY_COPY] == []
