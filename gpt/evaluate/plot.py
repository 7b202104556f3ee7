"""Plots of training: the losses of one run, or of several in one plot. Needs matplotlib (extra `plot`)."""

import json
import math
import os
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from gpt.checkpoint.files import METRICS
from gpt.cli import one_line
from gpt.files import atomic_write

PNG = "loss.png"
MAX_POINTS = 1000  # of a curve: the picture has no more columns
TRAIN, VALIDATION, GENERAL, LR = "#4477aa", "#ee6677", "#228833", "#777777"
COLOURS = ("#4477aa", "#ee6677", "#228833", "#aa3377", "#ccbb44", "#66ccee", "#bbbbbb")  # Paul Tol's
COLUMNS = ("step", "loss", "lr")


class History:
    """The losses and learning rates in metrics.jsonl, a few numbers per step."""

    def __init__(self) -> None:
        self.columns = {name: array("d") for name in COLUMNS}
        self.validations: list[tuple[int, float]] = []  # (step, loss)
        self.general: list[tuple[int, float]] = []  # the same on a general text

    def add(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Add the metrics of one step."""
        for name, value in zip(COLUMNS, (step, metrics["loss"], metrics["lr"]), strict=True):
            self.columns[name].append(value)
        if "val_loss" in metrics:
            self.validations.append((step, metrics["val_loss"]))
        if "general_loss" in metrics:
            self.general.append((step, metrics["general_loss"]))

    def best(self) -> tuple[int, float] | None:
        """Return the step of the lowest validation loss, and that loss; None where there is none."""
        finite = [pair for pair in self.validations if math.isfinite(pair[1])]
        return min(finite, key=lambda pair: pair[1]) if finite else None

    @classmethod
    def read(cls, folder: Path) -> "History":
        """Return what a run has written so far; incomplete lines, such as the last one, are skipped."""
        history = cls()
        with (folder / METRICS).open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    row = json.loads(line)
                    history.add(int(row["step"]), row)
                except (ValueError, KeyError, TypeError):
                    continue
        return history

    def curve(self, name: str, max_points: int = MAX_POINTS) -> tuple[Any, Any]:
        """Return (steps, values) of a column: means over adjacent steps where there are more than max_points."""
        steps, values = np.array(self.columns["step"]), np.array(self.columns[name])
        size = math.ceil(len(steps) / max_points) if len(steps) else 1
        starts = np.arange(0, len(steps), size)
        if size == 1:
            return steps, values
        counts = np.diff(np.append(starts, len(steps)))
        finite = np.isfinite(values)  # a step with nan was skipped, and is not part of the curve
        sums, known = (np.add.reduceat(column, starts) for column in (np.where(finite, values, 0), finite.astype(int)))
        return np.add.reduceat(steps, starts) / counts, _divide(sums, known)


def why_not(error: Exception) -> str:
    """Return the reason, in a line, why a plot is not drawn."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == "matplotlib":
        return "matplotlib is not installed (pip install matplotlib)"
    return f"matplotlib failed: {one_line(error)}"


def draw_run(path: Path | BytesIO, history: History, title: str) -> None:
    """Draw training and validation loss, and the learning rate below them, as PNG; ImportError without matplotlib."""
    figure, losses, rates = _figure()
    steps, values = history.curve("loss")
    noisy = len(steps) > 50
    losses.plot(steps, values, color=TRAIN, linewidth=0.7 if noisy else 1.4, alpha=0.35 if noisy else 1)
    if noisy:
        losses.plot(steps, smooth(values), color=TRAIN, linewidth=1.6)
    label = "training" + (f" (last {values[-1]:.4f})" if len(values) else "")
    legend = losses.plot([], [], color=TRAIN, label=label)
    if best := history.best():
        marker = "o" if len(history.validations) < 60 else None
        legend += losses.plot(*zip(*history.validations, strict=True), color=VALIDATION, marker=marker, markersize=3.5,
                              linewidth=1.6, label=f"validation (best {best[1]:.4f} at step {best[0]:,})")  # fmt: skip
        losses.plot(*best, marker="o", markersize=8, markerfacecolor="none", markeredgecolor=VALIDATION)
    if history.general:
        label = f"general text (first {history.general[0][1]:.4f}, last {history.general[-1][1]:.4f})"
        legend += losses.plot(*zip(*history.general, strict=True), color=GENERAL, linewidth=1.6, label=label)
    rates.plot(*history.curve("lr"), color=LR, linewidth=1.4)
    _set_limits(losses, [values, *([loss for _, loss in pairs] for pairs in (history.validations, history.general))])
    _finish(figure, losses, rates, title, legend, path)


def draw_comparison(path: Path, histories: Mapping[str, History]) -> None:
    """Draw several runs in one plot: validation losses with markers, training losses as thin lines."""
    figure, losses, rates = _figure()
    drawn, legend = [], []
    for i, (name, history) in enumerate(histories.items()):
        colour = COLOURS[i % len(COLOURS)]
        dash = ("-", "--", ":")[i // len(COLOURS) % 3]
        steps, values = history.curve("loss", 400)
        best = history.best()
        label = name + (f" (best validation {best[1]:.4f})" if best else "")
        losses.plot(steps, smooth(values), dash, color=colour, linewidth=0.9, alpha=0.5 if best else 1)
        if best:
            marker = "o" if len(history.validations) < 60 else None
            losses.plot(*zip(*history.validations, strict=True), dash, color=colour, marker=marker, markersize=3.5)
        legend += losses.plot([], [], dash, color=colour, label=label)
        rates.plot(*history.curve("lr"), dash, color=colour, linewidth=1.2)
        drawn += [values, [loss for _, loss in history.validations]]
    if any(history.validations for history in histories.values()):
        legend += losses.plot([], [], color="black", marker="o", markersize=3.5, label="validation")
        legend += losses.plot([], [], color="black", linewidth=0.9, alpha=0.5, label="training")
    _set_limits(losses, drawn)
    _finish(figure, losses, rates, "", legend, path)


def smooth(values: Any) -> Any:
    """Return a centered running mean over a twentieth of the curve, with a narrower window near its ends."""
    finite, at = np.isfinite(values), np.arange(len(values))
    reach = np.minimum(len(values) // 40, np.minimum(at, at[::-1]))
    totals = (np.concatenate([[0.0], np.cumsum(column)]) for column in (np.where(finite, values, 0), finite))
    return _divide(*(total[at + reach + 1] - total[at - reach] for total in totals))


def _divide(sums: Any, counts: Any) -> Any:
    """Return means; nan, which is not drawn, where the count is 0."""
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _figure() -> tuple[Any, Any, Any]:
    with without_window_system():
        from matplotlib.figure import Figure  # not pyplot, which would select a window system for the process

    figure = Figure(figsize=(9, 6), layout="constrained")
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    return figure, losses, rates


@contextmanager
def without_window_system() -> Iterator[None]:
    """Hide MPLBACKEND: a notebook's backend, inherited by a program that it starts, may not be installed there."""
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        yield
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


def _set_limits(losses: Any, curves: list[Any]) -> None:
    """Choose limits that show nearly all losses: those of the first steps may be much larger than the others."""
    values = np.concatenate([np.asarray(curve, float) for curve in curves])
    values = values[np.isfinite(values)]
    if not len(values):
        return
    low, high = values.min(), values.max()
    usual = np.percentile(values, 98)
    if high - low > 4 * (usual - low) > 0:
        high = usual + (usual - low)
    margin = 0.05 * (high - low) or 0.05
    losses.set_ylim(low - margin, high + margin)


def _finish(figure: Any, losses: Any, rates: Any, title: str, lines: list[Any], path: Path | BytesIO) -> None:
    losses.set_ylabel("loss, nats per token")
    rates.set_ylabel("learning rate")
    rates.set_xlabel("step")
    rates.set_ylim(bottom=0)
    rates.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    rates.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    for axis in (losses, rates):
        axis.grid(True, color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.01)
    losses.set_title(title, loc="left", fontsize=11, parse_math=False)
    legend = losses.legend(lines, [""] * len(lines), frameon=False, fontsize=9)
    for text, line in zip(legend.get_texts(), lines, strict=True):
        text.set(text=line.get_label(), parse_math=False)  # a name may begin with _ and contain $
    figure.align_ylabels()
    with nullcontext(path) if isinstance(path, BytesIO) else atomic_write(path) as file:
        figure.savefig(file, dpi=110, format="png")
