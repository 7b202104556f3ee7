"""Plots of training: they show the recorded metrics, for runs of any length, and are written atomically."""

import json
import os
import subprocess
import sys
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt.checkpoint.files import METRICS
from gpt.evaluate import plot
from gpt.evaluate.plot import MAX_POINTS, History, draw_comparison, draw_run, smooth
from tests.processes import HANG_S

pytest.importorskip("matplotlib", reason="matplotlib (extra plot) is not installed")

PNG = b"\x89PNG\r\n\x1a\n"


def history(n: int, every: int = 10, loss: Any = lambda step: 1 + 1 / step) -> History:
    run_history = History()
    for step in range(1, n + 1):
        validation = {"val_loss": loss(step) + 0.1} if step % every == 0 else {}
        run_history.add(step, {"loss": loss(step), "lr": 1e-3, "grad_norm": 1.0, **validation})
    return run_history


def test_a_history_is_read_from_the_lines_of_the_metrics_file(tmp_path: Path) -> None:
    rows = [{"step": i, "loss": i / 2, "lr": 0.1, **({"val_loss": 9.0 - i} if i % 2 else {})} for i in range(1, 6)]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / METRICS).write_text("\n".join([*lines, "{", '{"step": 7}', "[]", '{"step": 8, "lo']))
    read = History.read(tmp_path)
    assert list(read.columns["step"]) == [1, 2, 3, 4, 5]
    assert list(read.columns["loss"]) == [0.5, 1.0, 1.5, 2.0, 2.5]
    assert read.validations == [(1, 8.0), (3, 6.0), (5, 4.0)]
    assert read.best() == (5, 4.0)


@given(st.integers(1, 50), st.integers(1, 20))
def test_a_curve_has_at_most_the_requested_points_and_each_is_a_mean(n: int, points: int) -> None:
    steps, values = history(n, loss=lambda step: 2.0 * step).curve("loss", points)
    assert len(steps) <= points
    np.testing.assert_allclose(values, 2 * steps)
    size = -(-n // points)
    assert steps[0] == (1 + min(size, n)) / 2


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200))
def test_smoothing_is_a_centered_running_mean(values: list[float]) -> None:
    half = len(values) // 40
    for i, value in enumerate(smooth(np.array(values))):
        reach = min(half, i, len(values) - 1 - i)
        assert value == pytest.approx(np.mean(values[i - reach : i + reach + 1]), rel=1e-6, abs=1e-5)


def test_a_step_without_a_finite_loss_does_not_change_the_others() -> None:
    values = np.full(200, 2.0)
    values[[0, 50, 51, 199]] = [np.nan, np.inf, -np.inf, np.nan]
    smoothed = smooth(values)
    assert np.isnan(smoothed[[0, 199]]).all() and (smoothed[1:199] == 2).all()
    steps, means = history(200, loss=lambda step: values[step - 1]).curve("loss", 100)
    assert (means == [2.0] * 25 + [np.nan] + [2.0] * 74).sum() == 99 and steps[25] == 51.5
    assert history(20, loss=lambda step: float("nan") if step == 10 else 1.0).best() == (20, 1.1)


@pytest.mark.parametrize(
    "run_history",
    [
        history(1, every=1),
        history(3, every=99),
        history(400),
        history(20 * MAX_POINTS, every=1000),
        history(100, loss=lambda step: float("nan")),
        history(100, loss=lambda step: 1e30 if step < 3 else 2.0),
        history(100, loss=lambda step: 2.0),
    ],
)
def test_any_run_can_be_drawn(run_history: History, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_run(tmp_path / "loss.png", run_history, "a run with an_underscore and $ 100 % \u4e00"[:30])
    assert (tmp_path / "loss.png").read_bytes().startswith(PNG)
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def test_many_runs_are_drawn_in_one_plot(tmp_path: Path) -> None:
    draw_comparison(tmp_path / "all.png", {f"run{i}": history(30 + i, every=10 + 90 * (i % 2)) for i in range(16)})
    assert (tmp_path / "all.png").read_bytes().startswith(PNG)


def test_an_interrupted_plot_keeps_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    path = tmp_path / "loss.png"
    draw_run(path, history(10), "")
    before = path.read_bytes()

    def write_partly(self: Any, file: BinaryIO, **options: Any) -> None:
        file.write(PNG)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", write_partly)
    with pytest.raises(OSError):
        draw_run(path, history(20), "")
    assert path.read_bytes() == before
    assert [there.name for there in tmp_path.iterdir()] == ["loss.png"]


def test_drawing_does_not_import_pyplot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    draw_run(tmp_path / "loss.png", history(10), "")
    assert "matplotlib.pyplot" not in sys.modules


@pytest.mark.parametrize("name", ["lr$_$", "_x", "a\\frac{", "$", "%d {} \n"])
def test_names_are_shown_literally(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = []

    def figure() -> Any:
        figures.append(make_figure())
        return figures[-1]

    make_figure = plot._figure
    monkeypatch.setattr(plot, "_figure", figure)
    draw_run(BytesIO(), history(20), name)
    draw_comparison(BytesIO(), {name: history(20), "other": history(20)})
    assert figures[0][1].get_title(loc="left") == name
    labels = [text.get_text() for text in figures[1][1].get_legend().get_texts()]
    assert [label.split(" (best")[0] for label in labels] == [name, "other", "validation", "training"]


def test_the_matplotlib_backend_of_the_environment_is_ignored(tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from gpt.evaluate.plot import *\n"
        "draw_run(Path('loss.png'), History(), ''); assert os.environ['MPLBACKEND'] == 'module://no_such_backend'"
    )
    environment = {**os.environ, "MPLBACKEND": "module://no_such_backend", "PYTHONPATH": str(Path(__file__).parents[3])}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=HANG_S)
    assert (tmp_path / "loss.png").read_bytes().startswith(PNG)
