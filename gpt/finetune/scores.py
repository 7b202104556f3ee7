"""How well labels are predicted: the confusion matrix, and what follows from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt.data.loaders import Array
from gpt.evaluate.plot import without_window_system
from gpt.files import atomic_write

SHOWN = 12  # characters of a label in the table


@dataclass(frozen=True)
class Scores:
    """Counts (K, K): row, the label of an example; column, the one that was predicted."""

    labels: Sequence[str]
    counts: Array

    @classmethod
    def of(cls, labels: Sequence[str], true: Array, predicted: Array) -> "Scores":
        """Count examples by their labels, integers (N,)."""
        counts = np.zeros((len(labels), len(labels)), np.int64)
        np.add.at(counts, (true, predicted), 1)
        return cls(labels, counts)

    @property
    def accuracy(self) -> float:
        """The share of right predictions."""
        return float(np.trace(self.counts) / max(self.counts.sum(), 1))

    @property
    def f1(self) -> Array:
        """2 precision recall / (precision + recall) of each label, (K,); 0 where it neither occurs nor is predicted."""
        return 2 * np.diag(self.counts) / np.maximum(self.counts.sum(0) + self.counts.sum(1), 1)

    @property
    def macro_f1(self) -> float:
        """The mean of F1 over all labels, each with the same weight."""
        return float(self.f1.mean())

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        return {
            "n": int(self.counts.sum()), "accuracy": self.accuracy, "macro_f1": self.macro_f1,
            "f1": dict(zip(self.labels, self.f1.tolist(), strict=True)), "confusion": self.counts.tolist(),
        }  # fmt: skip

    def table(self) -> str:
        """Return the confusion matrix as text, with F1 at the end of every row."""
        names = [name if len(name) <= SHOWN else f"{name[: SHOWN - 1]}…" for name in self.labels]
        cells = [["true \\ predicted", *names, "F1"]]
        for name, row, f1 in zip(names, self.counts.tolist(), self.f1.tolist(), strict=True):
            cells.append([name, *map(str, row), f"{f1:.3f}"])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
        return "\n".join(lines)

    def draw(self, path: Path, title: str) -> None:
        """Draw the confusion matrix as PNG; ImportError without matplotlib."""
        with without_window_system():
            from matplotlib.figure import Figure  # not pyplot, which would select a window system for the process

        side = max(3.5, 0.6 * len(self.labels) + 2)
        figure = Figure(figsize=(side, side), layout="constrained")
        axes = figure.subplots()
        shares = self.counts / np.maximum(self.counts.sum(1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (i, j), count in np.ndenumerate(self.counts):
            axes.text(j, i, f"{count}", ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black")
        ticks = range(len(self.labels))
        axes.set_xticks(ticks, self.labels, rotation=45, ha="right", parse_math=False)
        axes.set_yticks(ticks, self.labels, parse_math=False)
        axes.set(xlabel="predicted", ylabel="true")
        axes.set_title(title, fontsize=10, parse_math=False)
        with atomic_write(path) as file:
            figure.savefig(file, dpi=110, format="png")
