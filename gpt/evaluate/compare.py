"""`python -m gpt compare RUN RUN... [--out FILE.png]`: several runs in a table and a plot."""

import json
import os
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from gpt.checkpoint.files import CONFIG, METRICS, TIMING
from gpt.cli import ArgumentParser
from gpt.cli import run as run_program
from gpt.config import UserError
from gpt.evaluate.plot import History, draw_comparison, why_not

OUT = "comparison.png"
NOT_COMPARED = {"plot", "logger", "threads", "async_save"}  # settings that do not affect the metrics


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, and draw the plot where that is possible."""
    options = parse(argv)
    paths = [Path(os.path.expanduser(run)) for run in options.runs]
    folders = dict(zip(names_of(paths), paths, strict=True))
    histories = {name: read(folder) for name, folder in folders.items()}
    rows = [row_of(name, history, folders[name]) for name, history in histories.items()]
    print(table(["run", "steps", "loss", "validation", "best", "at step", "tokens/s"], rows))
    for line in differences({name: config_of(folder) for name, folder in folders.items()}):
        print(line)
    try:
        draw_comparison(Path(os.path.expanduser(options.out)), histories)
    except OSError:
        raise
    except Exception as error:  # of any kind: the table is printed
        print(f"no plot: {why_not(error)}")
        return 0
    print(f"drawn in {options.out}")
    return 0


def parse(argv: Sequence[str] | None) -> Any:
    """Parse the command line."""
    text = "Compare training runs: losses and learning rates in one plot, results in a table."
    parser = ArgumentParser(prog="python -m gpt compare", description=text)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs, such as checkpoints/shakespeare-char")
    parser.add_argument("--out", default=OUT, metavar="FILE.png", help="the plot")
    options = parser.parse_args(argv)
    if Path(options.out).suffix not in ("", ".png"):
        parser.error(f"--out {options.out}: the plot is a PNG; give a name that ends in .png")
    return options


def read(folder: Path) -> History:
    """Return what a run has written; UserError for a folder without a run, or with one without steps."""
    if not (folder / METRICS).is_file():
        raise UserError(f"{folder}: not a run: there is no {METRICS} in it")
    history = History.read(folder)
    if not len(history.columns["step"]):
        raise UserError(f"{folder / METRICS}: no step in it yet")
    return history


def names_of(folders: Sequence[Path]) -> list[str]:
    """Return the shortest distinct ends of the paths; a path that is given twice gets a number."""
    whole = [folder.resolve() for folder in folders]
    n = 1
    while len({path.parts[-n:] for path in whole}) < len(set(whole)):
        n += 1
    names = ["/".join(path.parts[-n:]) for path in whole]
    return [
        name if names.index(name) == i else f"{name} ({names[: i + 1].count(name)})" for i, name in enumerate(names)
    ]


def row_of(name: str, history: History, folder: Path) -> list[str]:
    """Return a row of the table."""
    loss = f"{history.columns['loss'][-1]:.4f}"
    best = history.best()
    validation = [f"{history.validations[-1][1]:.4f}", f"{best[1]:.4f}", f"{best[0]:,}"] if best else ["-", "-", "-"]
    speeds = read_speeds(folder)
    return [name, f"{history.columns['step'][-1]:,.0f}", loss, *validation, f"{median(speeds):,.0f}" if speeds else "-"]


def read_speeds(folder: Path) -> list[float]:
    """Return the tokens per second of every step that has them."""
    speeds = []
    if (folder / TIMING).exists():
        for line in (folder / TIMING).read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                speeds.append(float(json.loads(line)["tokens_per_s"]))
            except (ValueError, KeyError, TypeError):
                continue  # an incomplete line
    return speeds


def config_of(folder: Path) -> dict[str, Any]:
    """Return the configuration of a run; an empty dict where it cannot be read."""
    try:
        return tomllib.loads((folder / CONFIG).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}


def differences(configs: dict[str, dict[str, Any]]) -> list[str]:
    """Return a line for every setting in which the runs differ."""
    if not all(configs.values()):
        return []
    lines = []
    for key in dict.fromkeys(key for config in configs.values() for key in config if key not in NOT_COMPARED):
        values = [config.get(key, "not set") for config in configs.values()]
        if any(value != values[0] for value in values):
            lines.append(f"{key}: " + ", ".join(f"{v} in {name}" for name, v in zip(configs, values, strict=True)))
    return lines


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return aligned columns: the first to the left, all others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    first, *rest = widths
    lines = ([row[0].ljust(first), *map(str.rjust, row[1:], rest)] for row in [header, *rows])
    return "\n".join(map("  ".join, lines))


if __name__ == "__main__":
    sys.exit(run_program(main, "python -m gpt compare"))
