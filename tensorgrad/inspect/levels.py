"""`levels`: the same op as plain array code, compiled for the CPU, and in CUDA: equal, and timed side by side.

print(tg.levels(tg.softmax, x))                    # in a notebook, as the last line of a cell: a table
tg.levels(tg.attention, q, k, v, causal=True).seconds["numba"]    # {"forward": ..., "backward": ...}
"""

import functools
import html
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tensorgrad.autograd import Observer
from tensorgrad.backend import NAMES, Backend, blas, check, load, use_backend
from tensorgrad.backend.arrays import is_floating
from tensorgrad.backend.clock import clock_of
from tensorgrad.gradcheck.precision import MIN_SHARE, TOLERANCE, largest_difference, root_mean_square
from tensorgrad.gradcheck.probe import Probe
from tensorgrad.inspect.stopwatch import Key, Stopwatch, faster_half
from tensorgrad.random import Generator, default_generator
from tensorgrad.tensor import Tensor

HEADINGS = ["level", "forward ms", "backward ms", "times as fast", "largest difference"]
LINE = "{:<22}" + "{:>11}" * 4 + "{:>13}  {}"
LINE_HEADING = LINE.format(
    "op, forward + backward", *(f"{level} ms" for level in ("plain", *NAMES)), "difference", "operands"
)
Seconds = dict[str, float]
Arrays = tuple[list[Any], list[Any]]  # results and gradients, on the host


@dataclass
class Levels:
    """What `levels` returns. Shown as a table by `print` and in a notebook.

    seconds: level -> {"forward": ..., "backward": ...}, means over the faster half of the rounds. error: level -> the
    largest relative difference of a result or a gradient from the plain one, as gradcheck measures it. left_out:
    level -> why it does not run here, in one line. The levels are "plain" (backend/math.py on NumPy, with all threads
    in its BLAS), "numpy" (the same in blocks, on all threads), "numba" and "cupy".
    """

    op: str
    shapes: str
    dtype: str
    seconds: dict[str, Seconds]
    error: dict[str, float]
    left_out: dict[str, str]

    def table(self) -> str:
        """As text: for each level milliseconds forward and backward, how many times as fast as plain, the error."""
        cells = [HEADINGS, *self._cells()]
        widths = [max(len(line[i]) for line in cells) for i in range(len(HEADINGS))]
        lines = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in cells]
        return "\n".join([f"{self.op}  {self.shapes}  {self.dtype}", *lines, *self._reasons()])

    def line(self) -> str:
        """The same in one line below LINE_HEADING: forward and backward together."""
        times = {level: f"{sum(seconds.values()) * 1e3:,.3f}" for level, seconds in self.seconds.items()}
        error = f"{max(self.error.values()):.1e}"
        return LINE.format(self.op, *(times.get(level, "") for level in ("plain", *NAMES)), error, self.shapes)

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}" for name in HEADINGS)
        rows = "".join("<tr>" + "".join(f"<td>{cell}" for cell in line) for line in self._cells())
        caption = html.escape(f"{self.op}  {self.shapes}  {self.dtype}")
        notes = "".join(f"<p>{html.escape(reason)}</p>" for reason in self._reasons())
        return f"<table><caption>{caption}</caption><tr>{head}{rows}</table>{notes}"

    def _cells(self) -> list[list[str]]:
        total = {level: sum(seconds.values()) for level, seconds in self.seconds.items()}
        return [
            [level, f"{seconds['forward'] * 1e3:,.3f}", f"{seconds['backward'] * 1e3:,.3f}",
             f"{total['plain'] / total[level]:.2f}", f"{self.error[level]:.1e}" if level != "plain" else ""]
            for level, seconds in self.seconds.items()
        ]  # fmt: skip

    def _reasons(self) -> list[str]:
        return [f"{level} is left out: {reason}" for level, reason in self.left_out.items()]


def levels(op: Callable[..., Any], *operands: Any, rounds: int = 10, **options: Any) -> Levels:
    """Run op(*operands, **options), forward and backward, at all levels that run here, in turn, and compare them.

    op: an op, or any function of tensors that calls ops. operands: tensors or arrays, of any backend; floating-point
    ones get a gradient. Raises AssertionError where a result or a gradient differs from the plain one by more than
    gradcheck's tolerance for its dtype, TypeError where no operand can have a gradient.
    """
    if not callable(op):
        raise TypeError(f"levels: op is a {type(op).__name__}: give an op or a function, then its operands")
    host = [x.numpy() if isinstance(x, Tensor) else x for x in operands]
    dtype = next((str(x.dtype) for x in host if hasattr(x, "dtype") and is_floating(x.dtype)), "")
    if not dtype:
        raise TypeError("levels: no operand has floating-point numbers, so none can have a gradient")
    name = getattr(op, "__name__", type(op).__name__)
    left_out = {level: reason for level in NAMES if (reason := check(level) or load(level).lacks(dtype)) is not None}
    state = default_generator.state_dict()
    runs = {}
    for level in ("plain", *NAMES):
        default_generator.load_state_dict(state)  # all levels draw the same random numbers
        if level not in left_out:
            runs[level] = _Run(level, op, host, options)
    try:
        return _compare_and_time(name, Key.of(name, host).shapes, dtype, runs, left_out, rounds)
    finally:
        default_generator.load_state_dict(state)


def _compare_and_time(
    name: str, shapes: str, dtype: str, runs: "dict[str, _Run]", left_out: dict[str, str], rounds: int
) -> Levels:
    """Compare all levels with the plain one, then time them in turn."""
    plain = runs["plain"].arrays()
    size = root_mean_square(runs["plain"].dys)
    error = {level: _compare(f"{name} on {level}", run.arrays(), plain, size, dtype) for level, run in runs.items()}
    found: dict[str, list[Seconds]] = defaultdict(list)
    for _ in range(rounds):
        for level, run in runs.items():
            found[level].append(run.time())
    phases = ("forward", "backward")
    seconds = {
        level: {phase: faster_half([each[phase] for each in times]) for phase in phases}
        for level, times in found.items()
    }
    return Levels(name, shapes, dtype, seconds, error, left_out)


class _On(Observer):
    """Runs every op on one backend."""

    def __init__(self, k: Backend) -> None:
        self.k = k

    def before_op(self, name: str, k: Backend, arrays: list[Any]) -> tuple[Backend, list[Any]]:
        """Replace the backend."""
        return self.k, arrays


class _Plain(Backend):
    """The plain mathematics on NumPy."""

    name = "plain"
    xp = np
    array_type = np.ndarray


class _Run:
    """A call at one level."""

    def __init__(self, level: str, op: Callable[..., Any], host: list[Any], options: dict[str, Any]) -> None:
        self.level = level
        self.k = load("numpy" if level == "plain" else level)
        with self._at_level():
            self.probe = Probe(functools.partial(op, **options), [self._operand(x) for x in host])
            outputs = self.probe.record().outputs
        generator = Generator(1)
        self.dys = [self.k.asarray(generator.normal(y.shape, dtype=y.dtype)) for y in outputs]

    def arrays(self) -> Arrays:
        """The results and the gradients."""
        with self._at_level():
            recorded = self.probe.record()
            return recorded.arrays, recorded.pull(self.dys)

    def time(self) -> Seconds:
        """Seconds forward and backward, without what the tape does between the ops."""
        with self._at_level():
            with Stopwatch(clock_of(self.k)) as watch:
                self.probe.record().pull(self.dys)
            seconds = watch.seconds()
        ours = [key for key in seconds if key is not None and key.op not in ("hand_out", "accumulate")]
        return {phase: sum(seconds[key] for key in ours if key.phase == phase) for phase in ("forward", "backward")}

    def _operand(self, x: Any) -> Any:
        """An array as a tensor; anything else as it is."""
        return Tensor(self.k.asarray(x), requires_grad=is_floating(x.dtype)) if isinstance(x, np.ndarray) else x

    def _at_level(self) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(use_backend(self.k.name))
        if self.level == "plain":
            blas.use_threads(getattr(self.k, "threads", 1))
            stack.enter_context(_On(_Plain()))
        return stack


def _compare(what: str, got: Arrays, plain: Arrays, size: float, dtype: str) -> float:
    """The largest difference of two levels, as gradcheck measures it; AssertionError beyond its tolerance."""
    results, gradients = (largest_difference(name, a, b, least) for name, a, b, least in (
        ("result", got[0], plain[0], 0.0), ("gradient", got[1], plain[1], MIN_SHARE * size)))  # fmt: skip
    worst = max(results, gradients, key=lambda difference: difference.error)
    if worst.error > TOLERANCE[dtype]:
        raise AssertionError(
            f"{what}: {worst.describe('plain', 'here')} > {TOLERANCE[dtype]:g}, gradcheck's for {dtype}"
        )
    return worst.error
