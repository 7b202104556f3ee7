"""The rows of a run as text, and as an HTML page in one file."""

import html
import math
import platform
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from tensorgrad.gradcheck.cases import Case
from tensorgrad.gradcheck.precision import TOLERANCE
from tensorgrad.gradcheck.run import Row

TEMPLATE = Path(__file__).with_name("report.html")
HEADINGS = ("op", "example", "dtype", "backend", "error", "worst element")


class TextTable:
    """Columns as wide as their longest name."""

    def __init__(self, cases: Sequence[Case]) -> None:
        names = max(len(case.name) for case in cases), max(len(e.name) for case in cases for e in case.examples)
        widest = *names, len("bfloat16"), len("backend"), len("9.9e-99")
        self.layout = "  ".join(f"{{:<{width}}}" for width in widest) + "  {}"

    def heading(self) -> str:
        """The names of the columns."""
        return self.layout.format(*HEADINGS)

    def line(self, row: Row) -> str:
        """One check."""
        error = "FAILED" if row.failure else _number(row.error)
        return self.layout.format(row.op, row.example, row.dtype, row.backend, error, row.failure or row.worst).rstrip()


def summary(rows: Sequence[Row], seconds: float) -> str:
    """The result of a run in one line."""
    failures = sum(bool(row.failure) for row in rows)
    ops = {row.op for row in rows}
    examples = {(row.op, row.example) for row in rows}
    backends, dtypes = _listed(row.backend for row in rows), _listed(row.dtype for row in rows)
    verdict = f"{failures} FAILED" if failures else "all passed"
    return (
        f"{len(rows)} checks of {len(examples)} examples of {len(ops)} ops on {backends} in {dtypes}: "
        f"{verdict}, in {seconds:.1f} s"
    )


def page(rows: Sequence[Row], seconds: float) -> str:
    """The page: a verdict, a chart of the errors in every dtype with their limits, and every row."""
    failures = sum(bool(row.failure) for row in rows)
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}, {platform.system()} {platform.machine()}"
    parts = {
        "VERDICT": f"{failures} failed" if failures else "All passed",
        "STATE": "bad" if failures else "good",
        "SUMMARY": html.escape(summary(rows, seconds)),
        "VERSIONS": html.escape(versions),
        "CHART": _chart(rows),
        "OPS": "\n".join(_op(op, list(of_op)) for op, of_op in groupby(rows, key=lambda row: row.op)),
    }
    text = TEMPLATE.read_text(encoding="utf-8")  # the parts stand between percent signs
    for name, part in parts.items():
        text = text.replace(f"%{name}%", part)
    return text


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _op(op: str, rows: list[Row]) -> str:
    failures = sum(bool(row.failure) for row in rows)
    worst = max(rows, key=lambda row: row.share)
    state = f"<b class=bad>{failures} failed</b>" if failures else "passed"
    note = f"worst {_number(worst.error)} in {worst.dtype}" if worst.error else "exact"
    lines = "\n".join(_row(row) for row in rows)
    headings = "".join(f"<th>{name}" for name in HEADINGS[1:])
    return (
        f"<details{' open' if failures else ''} data-op={op}><summary><code>{op}</code><span>{len(rows)} checks</span>"
        f"<span>{state}</span><span class=dim>{'' if failures else note}</span></summary>\n"
        f"<table><tr>{headings}\n{lines}\n</table></details>"
    )


def _row(row: Row) -> str:
    cells = "".join(f"<td>{html.escape(text)}" for text in (row.example, row.dtype, row.backend))
    if row.failure:
        return f"<tr class=bad>{cells}<td>failed<td>{html.escape(row.failure)}"
    bar = f"<i style='width:{_percent(row):.0f}%'></i>"
    return f"<tr>{cells}<td class=n>{_number(row.error)}<span class=bar>{bar}</span><td>{html.escape(row.worst)}"


def _number(error: float) -> str:
    return "0" if error == 0 else f"{error:.1e}"


def _percent(row: Row) -> float:
    """The error on a logarithmic scale of eight decades that ends at its limit."""
    return 100 * min(1.0, max(0.0, 1 + math.log10(row.share) / 8)) if row.error > 0 else 0.0


LEFT, RIGHT, HEIGHT, LEAST = 90, 960, 64, -18  # pixels; LEAST is the exponent at the left edge, where 0 is too


def _x(error: float) -> float:
    exponent = math.log10(error) if error > 0 else LEAST
    return LEFT + (RIGHT - LEFT) * (min(0.0, max(float(LEAST), exponent)) - LEAST) / -LEAST


def _chart(rows: Sequence[Row]) -> str:
    dtypes = [name for name in TOLERANCE if any(row.dtype == name for row in rows)]
    below = HEIGHT * len(dtypes)
    marks = [
        f"<line class=grid x1={_x(10.0**e):.0f} x2={_x(10.0**e):.0f} y1=0 y2={below} />"
        f"<text x={_x(10.0**e):.0f} y={below + 18} text-anchor=middle>1e{e}</text>"
        for e in range(LEAST + 3, 1, 3)
    ]
    marks.append(f"<text x={LEFT} y={below + 18} text-anchor=middle>0</text>")
    bands = [_band(name, HEIGHT * i, [row for row in rows if row.dtype == name]) for i, name in enumerate(dtypes)]
    return f"<svg viewBox='0 0 {RIGHT + 30} {below + 26}' role=img>{''.join(marks)}{''.join(bands)}</svg>"


def _band(dtype: str, top: int, rows: list[Row]) -> str:
    limit = _x(TOLERANCE[dtype])
    dots = []
    for i, row in enumerate(rows):
        y = top + 10 + (i * 0.618034) % 1 * (HEIGHT - 20)  # spread evenly, and the same every time
        kind = " class=bad" if row.failure else ""
        dots.append(f"<circle{kind} cx={_x(row.error):.1f} cy={y:.1f} r=2 />")
    return (
        f"<text x=0 y={top + HEIGHT / 2 + 4:.0f}>{dtype}</text>{''.join(dots)}"
        f"<line class=limit x1={limit:.1f} x2={limit:.1f} y1={top + 4} y2={top + HEIGHT - 4} />"
        f"<text class=dim x={limit + 5:.0f} y={top + 16}>{TOLERANCE[dtype]:g}</text>"
    )
