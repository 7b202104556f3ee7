"""`roofline`: the FLOPs, bytes and time of every op of a step, beside what this machine can do at most.

    model, optimizer = ...
    found = tg.roofline(lambda: model.loss(x, y).backward(), optimizer)
    print(found)                  # the table; in a notebook, `found` as the last line of a cell: table and picture
    found.save("roofline.png")    # the picture alone

An op that moves few bytes for each FLOP can be as fast as a matrix product, any other one as fast as memory, or as the
cache that its arrays fit into (Williams, Waterman and Patterson 2009, doi:10.1145/1498765.1498785). FLOPs are those of
the plain mathematics, by `tg.count`; bytes are those of the arrays that an op gets, returns and saves, each once.
"""

import base64
import dataclasses
import html
import importlib.util
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from statistics import median
from typing import Any

import numpy as np

from tensorgrad.backend import get_backend
from tensorgrad.backend.clock import clock_of
from tensorgrad.counting import Cost, Traffic, count
from tensorgrad.inspect.roofs import LARGEST_BYTES, Measurement, Roof
from tensorgrad.inspect.stopwatch import Key, Stopwatch, faster_half

# The arithmetic of an update for one element of a parameter, in the plain mathematics.
UPDATE_FLOPS = {"AdamW": 15, "Adam": 15, "SGD": 4}
HTML_ROWS = 15
HEADINGS = [
    "", "op", "phase", "operands", "calls", "ms", "of step", "MFLOP", "MB", "GFLOP/s", "GB/s", "roof", "of roof",
]  # fmt: skip
TEXTS = ("op", "phase", "operands", "roof")  # columns that begin at the left


@dataclass
class Row:
    """One op with operands of the same shapes, forward or backward: all its calls in a step.

    phase: "forward", "backward" or "update". shapes: of the operands, of a backward those of its forward. calls, flops,
    bytes, seconds: per step. roof: what limits it, "compute" (the speed of a matrix product), "cache" or "memory"
    (bandwidth for so many bytes), "" for a view. share: the time that it would take at that roof, as a share of its
    time; None for a view, which moves and computes nothing.
    """

    op: str
    phase: str
    shapes: str  # "768x128, 384x128, 384"
    dtype: str
    calls: int
    flops: float
    bytes: float
    seconds: float
    roof: str = ""
    share: float | None = None

    @property
    def intensity(self) -> float | None:
        """FLOPs for each byte; None where no byte moves."""
        return self.flops / self.bytes if self.bytes else None


@dataclass
class Roofline:
    """What `roofline` returns. Shown as a table by `print`, as a table and a picture in a notebook.

    rows: the op with the most time first. step_seconds: the time of all rows and of between_seconds, each without the
    slower half of its measurements. median_seconds: of the whole step, which is longer where something interrupts it.
    peak: FLOP/s of a matrix product. bandwidth: bytes/s by working set, the bytes that a call reads and writes.
    """

    rows: list[Row]
    step_seconds: float
    between_seconds: float
    median_seconds: float
    peak: float
    bandwidth: dict[int, float]
    backend: str
    threads: int  # of the CPU; 0 on a GPU
    dtype: str

    @property
    def roof(self) -> Roof:
        """The roofs alone."""
        return Roof(self.peak, self.bandwidth)

    def table(self, n: int | None = None) -> str:
        """The n rows with the most time as text, the others in one line, and views in one; all of them without n."""
        cells = [HEADINGS, *self._cells(n)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(HEADINGS))]
        align = [str.ljust if heading in TEXTS else str.rjust for heading in HEADINGS]
        lines = ["  ".join(f(cell, w) for f, cell, w in zip(align, line, widths, strict=True)) for line in cells]
        return "\n".join([*(line.rstrip() for line in lines), "", self.describe()])

    def describe(self) -> str:
        """The roofs, and how long the step took as a whole, in two lines."""
        cache, memory = max(self.bandwidth.values()), self.roof.memory
        slower = self.median_seconds / self.step_seconds - 1
        threads = f", {self.threads} thread{'s' * (self.threads > 1)}" if self.threads else ""
        return (
            f"{self.backend}{threads}, {self.dtype}: at most "
            f"{self.peak / 1e9:,.1f} GFLOP/s in a product, {memory / 1e9:,.1f} GB/s from memory, "
            f"{cache / 1e9:,.1f} GB/s from a cache\nThe median of whole steps is {self.median_seconds * 1e3:,.3f} ms, "
            f"{abs(slower):.0%} {'more' if slower >= 0 else 'less'} than this sum of the faster halves"
        )

    def plot(self, ax: Any = None, n_labels: int = 12) -> Any:
        """Draw the picture on Matplotlib's axes, on new ones by default; return them.

        n_labels: how many ops are named, those with the most time. Raises ImportError without Matplotlib.
        """
        from tensorgrad.inspect.roofline_picture import draw

        return draw(self, ax, n_labels)

    def save(self, path: str | os.PathLike[str] | BytesIO, **options: Any) -> None:
        """Write the picture as .png, .svg or .pdf. options: those of Matplotlib's savefig."""
        self.plot().figure.savefig(path, **options)

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}" for name in HEADINGS)
        lines = ("".join(f"<td>{html.escape(cell)}" for cell in line) for line in self._cells(HTML_ROWS))
        rows = "".join(f"<tr>{line}" for line in lines)
        picture = ""
        if importlib.util.find_spec("matplotlib") is not None:
            self.save(file := BytesIO(), format="png", dpi=90)
            picture = f'<img alt="roofline" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'
        return f"{picture}<table><tr>{head}{rows}</table><p>{html.escape(self.describe())}</p>"

    def _cells(self, n: int | None) -> list[list[str]]:
        """The cells of the rows, of the others together, of what is between the ops, and of the whole step."""
        working = [row for row in self.rows if row.share is not None]
        lines = [self._line(i, row) for i, row in enumerate(working[:n], 1)]
        groups = ("more", working[len(lines) :]), ("views", [row for row in self.rows if row.share is None])
        for name, rows in groups:
            if rows:
                calls = sum(row.calls for row in rows)
                lines.append(self._sum(f"{len(rows)} {name}", sum(row.seconds for row in rows), f"{calls:,}"))
        lines.append(self._sum("between the ops", self.between_seconds))
        total = self._sum("the step", self.step_seconds, f"{sum(row.calls for row in self.rows):,}")
        total[7:9] = [_number(sum(getattr(row, name) for row in self.rows) / 1e6) for name in ("flops", "bytes")]
        return [*lines, total]

    def _sum(self, name: str, seconds: float, calls: str = "") -> list[str]:
        cells = ["", name, "", "", calls, f"{seconds * 1e3:,.3f}", f"{seconds / self.step_seconds:.1%}"]
        return cells + [""] * (len(HEADINGS) - len(cells))

    def _line(self, i: int, row: Row) -> list[str]:
        cells = self._sum(row.op, row.seconds, f"{row.calls:,}")
        cells[0], cells[2], cells[3] = str(i), row.phase, row.shapes
        per_second = (f"{amount / row.seconds / 1e9:,.1f}" if amount else "" for amount in (row.flops, row.bytes))
        cells[7:] = [
            _number(row.flops / 1e6), _number(row.bytes / 1e6), *per_second, row.roof, f"{row.share:.0%}",
        ]  # fmt: skip
        return cells


def _number(x: float) -> str:
    """Three digits or more: 0.012, 3.45, 123, 12,345."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def roofline(
    step: Callable[[], Any], optimizer: Any = None, *, rounds: int = 10, largest_bytes: int = LARGEST_BYTES
) -> Roofline:
    """Measure every op of `step()`, forward and backward, on the current backend.

    step: computes a loss and its backward. optimizer: one of tg.optim's; its `step` is measured as one more row, and
    the gradients are cleared. Runs the step 3 + 2 rounds times: for warm-up, to count bytes, to count FLOPs, which
    happens on the CPU, and then timed after one that is not, in turn with a matrix product and with reading and writing
    arrays of up to `largest_bytes`: the roofs, of which the highest count. The time of an op is the mean over the
    faster half of its rounds.
    """
    if rounds < 1:
        raise ValueError(f"roofline: rounds {rounds} is not at least 1")
    if not callable(step):
        hint = "give a function that computes a loss and its backward, such as lambda: model.loss(x, y).backward()"
        raise TypeError(f"roofline: step is a {type(step).__name__}: {hint}")
    k = get_backend()
    run = _Step(step, optimizer)
    run(Stopwatch(clock_of(k)))
    costs = _count(run)
    if not costs:
        raise ValueError("roofline: the step calls no op")
    floats = [key for key in costs if "float" in key.dtype]
    dtype = max(floats, key=lambda key: costs[key].flops).dtype if floats else "float32"
    measurement = Measurement(k, dtype, largest_bytes)
    rounds_seconds = []
    for _ in range(rounds):
        run(Stopwatch(clock_of(k)))
        run(watch := Stopwatch(clock_of(k)))
        rounds_seconds.append(watch.seconds())
        measurement.measure()
    roof = measurement.roof
    seconds = {key: faster_half([found[key] for found in rounds_seconds]) for key in rounds_seconds[0]}
    between = seconds.pop(None)
    rows = [_row(key, watch.calls[key], costs[key], seconds[key], roof) for key in seconds if key is not None]
    rows.sort(key=lambda row: -row.seconds)
    return Roofline(
        rows, between + sum(row.seconds for row in rows), between,
        median(sum(found.values()) for found in rounds_seconds), roof.peak, roof.bandwidth, k.name,
        getattr(k, "threads", 0), dtype,
    )  # fmt: skip


class _Step:
    """A step with the update of the optimiser, timed."""

    def __init__(self, step: Callable[[], Any], optimizer: Any) -> None:
        self.step, self.optimizer = step, optimizer
        if optimizer is not None:
            n = sum(p.size for p in optimizer.params)
            self.update = Key(type(optimizer).__name__, "update", f"{n:,}", str(optimizer.params[0].dtype))

    def __call__(self, watch: Stopwatch) -> None:
        with watch:
            self.step()
            if self.optimizer is not None:
                watch.calls[self.update] += 1
                watch.begin(self.update)
                self.optimizer.step()
                watch.begin(None)
                self.optimizer.zero_grad()

    def update_cost(self) -> Cost:
        """What the update reads and writes: gradients, and parameters and their moments, twice."""
        both = zip(self.optimizer.params, self.optimizer.state, strict=True)
        members = [(p, state) for p, state in both if p.grad is not None]
        n_bytes = sum(p.grad.nbytes + 2 * sum(x.nbytes for x in (p.data, *state.values())) for p, state in members)
        flops = UPDATE_FLOPS.get(type(self.optimizer).__name__, 0) * sum(p.size for p, _ in members)
        return Cost(1, flops, 0, n_bytes)


def _count(run: _Step) -> dict[Key, Cost]:
    """The cost of every op of a step."""
    costs: dict[Key, Cost] = defaultdict(Cost)
    with _TrafficByKey() as traffic:
        run.step()
    if run.optimizer is not None:
        costs[run.update] = run.update_cost()
        run.optimizer.zero_grad()
    with _CountByKey() as counted:
        run.step()
    if run.optimizer is not None:
        run.optimizer.zero_grad()
    for phase in ("forward", "backward"):
        for key, cost in getattr(traffic, phase).items():
            costs[_in_phase(key, phase)].bytes = cost.bytes
        for key, cost in getattr(counted, phase).items():
            costs[_in_phase(key, phase)].flops = round(counted.needed.get(key, 1.0) * cost.flops)
    return costs


def _in_phase(key: Any, phase: str) -> Key:
    """The stopwatch's key; that of a node which was recorded before is its name alone."""
    return key._replace(phase=phase) if isinstance(key, Key) else Key(key, phase)


class _TrafficByKey(Traffic):
    """Counts the bytes of calls with other shapes separately."""

    def key(self, name: str, operands: list[Any]) -> Key:
        """The stopwatch's key."""
        return Key.of(name, operands)


class _CountByKey(_TrafficByKey, count):
    """Counts their FLOPs, without those that no kernel has to do."""

    def __init__(self) -> None:
        super().__init__()
        self.needed: dict[Key, float] = {}  # the share of the FLOPs of the plain mathematics

    def after_op(self, name: str, operands: tuple[Any, ...], output: Any, op: Any, options: dict[str, Any]) -> None:
        """Fused attention skips the scores that the causal mask hides, about half; the plain mathematics does not."""
        if name == "attention" and options.get("causal"):
            n_query, n_key = operands[0].shape[2], operands[1].shape[2]
            self.needed[self.key(name, self._operands[-1])] = float(np.tri(n_query, n_key, n_key - n_query).mean())
        super().after_op(name, operands, output, op, options)


def _row(key: Key, calls: int, cost: Cost, seconds: float, roof: Roof) -> Row:
    row = Row(key.op, key.phase, key.shapes, key.dtype, calls, cost.flops, cost.bytes, seconds)
    if cost.flops or cost.bytes:
        least, row.roof = roof.least_seconds(cost.flops / calls, cost.bytes / calls)
        row.share = calls * least / seconds if seconds else None
    return row
