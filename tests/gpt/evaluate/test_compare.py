"""`python -m gpt compare`: the table of runs, the differing settings, the plot, and one-line user errors."""

import json
import sys
from pathlib import Path

import pytest

from gpt.checkpoint.files import METRICS, TIMING
from gpt.cli import run as run_program
from gpt.evaluate import compare
from gpt.train.config import TrainConfig
from gpt.train.config_file import write_config


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_run(folder: str, n: int, lr: float = 0.1, **config: object) -> None:
    Path(folder).mkdir(parents=True)
    rows = [{"step": i, "loss": 3.0 - i / 10, "lr": lr, "grad_norm": 1.0} for i in range(1, n + 1)]
    rows[1]["val_loss"], rows[-1]["val_loss"] = 2.5, 2.75
    Path(folder, METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    speeds = "".join(json.dumps({"step": i, "tokens_per_s": 1000 + i}) + "\n" for i in range(1, n + 1))
    Path(folder, TIMING).write_text(speeds + '{"step": 1')
    if config:
        write_config(Path(folder), TrainConfig(**config))  # type: ignore[arg-type]


def call(monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    monkeypatch.setattr(sys, "argv", ["compare", *argv])
    try:
        return run_program(compare.main, "python -m gpt compare")
    except SystemExit as exited:
        assert isinstance(exited.code, int)
        return exited.code


def test_the_table_and_the_differing_settings_are_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run("a/run", 4, lr=0.25, seed=1, threads=1)
    write_run("b/run", 6, seed=2, lr_decay_iters=5)
    assert call(monkeypatch, "a/run", "b/run", "--out", "x.png") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["a/run", "4", "2.6000", "2.7500", "2.5000", "2", "1,002"]
    assert lines[2] == ["b/run", "6", "2.4000", "2.7500", "2.5000", "2", "1,004"]
    differences = [" ".join(line) for line in lines[3:]]
    assert "seed: 1 in a/run, 2 in b/run" in differences
    assert "lr_decay_iters: not set in a/run, 5 in b/run" in differences
    assert not [line for line in differences if line.startswith("threads")]


def test_the_plot_is_written_as_a_png(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    write_run("a", 4)
    assert call(monkeypatch, "a", "a") == 0
    assert Path("comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "a (2)" in capsys.readouterr().out


def test_the_table_is_printed_without_matplotlib(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, workplace: Path
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"] or ["matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    write_run("a", 4)
    assert call(monkeypatch, "a") == 0
    assert "no plot: matplotlib is not installed (pip install matplotlib)" in capsys.readouterr().out
    assert not list(workplace.glob("*.png"))


def test_the_table_is_printed_when_plotting_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no font\nhere")

    write_run("a", 4)
    monkeypatch.setattr(compare, "draw_comparison", fail)
    assert call(monkeypatch, "a") == 0
    assert "\nno plot: matplotlib failed: RuntimeError: no font here\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere"], "nowhere: not a run: there is no metrics.jsonl in it"),
        (["empty"], "empty/metrics.jsonl: no step in it yet"),
        (["a", "--oot", "x.png"], "unknown flag --oot; did you mean --out?"),
        (["a", "--out", "nowhere/x.png"], "nowhere/x.png: No such file or directory"),
        (["a", "--out", "x.pdf"], "--out x.pdf: the plot is a PNG; give a name that ends in .png"),
        (["a", "--out", "a"], "a: Is a directory"),
        ([], "the following arguments are required: RUN"),
    ],
)
def test_user_errors_are_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    write_run("a", 4)
    Path("empty").mkdir()
    Path("empty", METRICS).write_text("{")
    assert call(monkeypatch, *argv) == 2
    assert capsys.readouterr().err == f"python -m gpt compare: error: {message}\n"
