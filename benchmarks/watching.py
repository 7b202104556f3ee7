"""The time of every op and every kernel of a training step, measured by an observer."""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tensorgrad.autograd import Observer

# Updates by the optimiser: operations and bytes per element of the parameters.
PER_PARAMETER = {"optimizer.step": (14, 28), "norm_and_factor": (2, 4)}


@dataclass
class Row:
    """The cost of an op in one phase. kernel_seconds: the part inside the methods of the backend."""

    calls: int = 0
    seconds: float = 0.0
    kernel_seconds: float = 0.0
    flop: float = 0.0
    matmul_flop: float = 0.0
    bytes: float = 0.0


class TimedBackend:
    """A backend that times each of its kernels; a kernel that calls kernels counts once."""

    def __init__(self, k: Any, profiler: "Profiler") -> None:
        self.k, self.profiler = k, profiler

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.k, name)
        if callable(value) and hasattr(value, "__self__"):
            value = self.profiler.timed(value)
        setattr(self, name, value)
        return value


class Profiler(Observer):
    """In a `with`, it times everything that is computed. rows: {(phase, op): Row}."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Row] = defaultdict(Row)
        self.row: Row | None = None  # of the op that is running
        self.started = 0.0
        self.n_ops = self.n_clocks = 0  # recorded ops, and clock readings
        self.backends: dict[str, TimedBackend] = {}

    def begin(self, row: Row | None) -> None:
        """Start the clock for an op."""
        self.row, self.started = row, time.perf_counter()
        self.n_clocks += 1

    def end(self) -> None:
        """Stop it."""
        if self.row is not None:
            self.row.seconds += time.perf_counter() - self.started
        self.row = None

    def timed(self, kernel: Callable[..., Any]) -> Callable[..., Any]:
        """Return the kernel with a clock around it."""

        def run(*arguments: Any, **options: Any) -> Any:
            self.n_clocks += 1
            row, started = self.row, time.perf_counter()
            try:
                return kernel(*arguments, **options)
            finally:
                if row is not None:
                    row.kernel_seconds += time.perf_counter() - started

        return run

    def before_op(self, name: str, k: Any, arrays: list[Any]) -> tuple[Any, list[Any]]:
        """Start the clock, and run the op on a backend that times its kernels."""
        timed = self.backends.setdefault(k.name, TimedBackend(k, self))
        self.begin(self.rows["forward", name])
        return timed, arrays

    def after_op(self, name: str, operands: tuple[Any, ...], output: Any, *call: Any) -> None:
        """Stop the clock."""
        self.rows["forward", name].calls += 1
        self.end()

    def arrived(self, node: Any, dys: list[Any]) -> None:
        """Start the clock of an op's backward."""
        self.n_ops += 1
        row = self.rows["backward", node.name]
        row.calls += 1
        self.begin(row)

    def sent(self, node: Any, edge: Any, gradient: Any, dys: list[Any]) -> None:
        """Stop the clock: the addition of a gradient is not part of the op."""
        self.end()

    def added(self, node: Any, edge: Any) -> None:
        """Start the clock for the next operand's gradient."""
        if node is not None:
            self.begin(self.rows["backward", node.name])

    def finished(self) -> None:
        """Backward has ended."""
        self.row = None

    def add_costs(self, cost: Any, steps: int) -> None:
        """Add the costs that `tg.count()` found in one step to the rows, for all steps."""
        for phase in ("forward", "backward"):
            for name, of_op in getattr(cost, phase).items():
                if (phase, name) in self.rows:
                    row = self.rows[phase, name]
                    row.flop += steps * of_op.flops
                    row.matmul_flop += steps * of_op.matmul_flops
                    row.bytes += steps * of_op.bytes
