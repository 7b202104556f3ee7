"""The description that train.py prints before the first step, and the settings that a resumed run changes."""

from pathlib import Path
from typing import Any

import pytest

from gpt.train.config import TrainConfig
from gpt.train.describe import describe, describe_changes
from gpt.train.flags import Arguments
from gpt.train.run import make_run

pytestmark = pytest.mark.usefixtures("numpy_backend")

SMALL: dict[str, Any] = {
    "tokenizer": "char", "backend": "numpy", "n_layer": 1, "n_embd": 16, "block_size": 8, "max_iters": 20,
}  # fmt: skip


def test_a_new_run_prints_the_settings_that_differ_from_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts").mkdir()
    Path("texts/a.txt").write_text("the quick brown fox\n" * 20)
    lines = list(describe(make_run(Arguments(given={**SMALL, "data": "texts", "out": "run"}, resume=None))))
    assert lines[1] == "data     texts: 360 tokens for training, 40 for validation"
    assert lines[2] == "         in 1 file: texts/a.txt"
    assert lines[6:] == [
        "config   tokenizer char, n_layer 1, n_embd 16, block_size 8, max_iters 20, backend numpy; all",
        "         settings are in run/config.toml",
    ]


BEFORE = {"max_iters": 20, "lr": 1e-2, "min_lr": 1e-3, "warmup_iters": 2, "lr_decay_iters": 10}


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        ({}, []),
        ({"batch_size": 24}, ["changed  batch_size 12 -> 24"]),
        (
            {"lr": 2e-2},
            ["changed  lr 0.01 -> 0.02", "         learning rate 1.00e-03 at step 16, 1.00e-03 at step 20: as before, "
             "since the decay ended at step 10; --min-lr changes it"],
        ),
        (
            {"min_lr": 5e-3},
            ["changed  min_lr 0.001 -> 0.005", "         learning rate 5.00e-03 at step 16, 5.00e-03 at step 20; "
             "unchanged, it would be 1.00e-03 and 1.00e-03"],
        ),
        (
            {"max_iters": 30, "dropout": 0.1},
            ["changed  dropout 0.0 -> 0.1, max_iters 20 -> 30", "         learning rate 1.00e-03 at step 16, "
             "1.00e-03 at step 30: as before, since the decay ended at step 10; --min-lr changes it"],
        ),
    ],
)  # fmt: skip
def test_a_resumed_run_prints_the_settings_that_it_changes(given: dict[str, Any], lines: list[str]) -> None:
    before = TrainConfig(**BEFORE)
    assert list(describe_changes(before, TrainConfig(**{**BEFORE, **given}), 15)) == lines


def test_a_longer_run_prints_its_later_decay() -> None:
    before = TrainConfig(max_iters=20, lr=1e-2, min_lr=0.0, warmup_iters=2)
    [_, line] = describe_changes(before, TrainConfig(max_iters=40, lr=1e-2, min_lr=0.0, warmup_iters=2), 20)
    assert line.startswith("         learning rate 5.4") and "unchanged, it would be 0.00e+00" in line
