"""The process of profile_step.py: a training step profiled op by op, and the cost of Python (see workers.py)."""

import itertools
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from benchmarks import common, training
from benchmarks.generation import Bandwidth
from benchmarks.watching import PER_PARAMETER, Profiler, Row

CHAIN, REPEATS = 1000, 7
PEAK_SIZE = 2048


class Profile(training.Ours):
    """A profiled training step of tensorgrad."""

    def profile(self, steps: int) -> dict[str, Any]:
        """Milliseconds, operations and bytes of a step, op by op, and the time of the step without the profiler."""
        from tensorgrad import count

        plain = common.median(self.run(steps)["ms"])
        phases: dict[str, float] = defaultdict(float)
        profiler = Profiler()
        for _ in range(steps):
            self.profiled_step(profiler, phases)
        with count() as cost:
            self.model.loss(*next(self.batches)).backward()
        self.optimizer.zero_grad()
        profiler.add_costs(cost, steps)
        for name, (flop, moved) in PER_PARAMETER.items():
            row = profiler.rows["update", name]
            row.flop, row.bytes = (steps * each * self.setup.n_params() for each in (flop, moved))
        rows = [{"phase": phase, "op": op, **per_step(row, steps)} for (phase, op), row in profiler.rows.items()]
        return {
            "plain_ms": plain,
            "profiled_ms": sum(phases.values()) / steps * 1e3,
            "phases_ms": {phase: seconds / steps * 1e3 for phase, seconds in phases.items()},
            "rows": sorted(rows, key=lambda row: -row["ms"]),
            "ops": profiler.n_ops / steps,
            "clocks_ms": profiler.n_clocks / steps * clock_seconds() * 1e3,
        }

    def profiled_step(self, profiler: Profiler, phases: dict[str, float]) -> None:
        """Do a step as `Ours.step`, and add the time of each phase."""
        idx, targets = next(self.batches)
        with profiler:
            started = time.perf_counter()
            loss = self.model.loss(idx, targets)
            phases["forward"] += time.perf_counter() - started
            started = time.perf_counter()
            loss.backward()
            phases["backward"] += time.perf_counter() - started
        started = time.perf_counter()
        _, factor = self.norm_and_factor(self.parameters, training.GRAD_CLIP)
        found = time.perf_counter()
        self.optimizer.step(grad_scale=factor)
        updated = time.perf_counter()
        self.optimizer.zero_grad()
        phases["update"] += time.perf_counter() - started
        for name, seconds in (("norm_and_factor", found - started), ("optimizer.step", updated - found)):
            row = profiler.rows["update", name]
            row.calls, row.seconds = row.calls + 1, row.seconds + seconds

    def skeleton_ms(self, steps: int) -> float:
        """Milliseconds of the same step with almost nothing to compute: one token, a width of 1 per head."""
        import numpy as np

        setup = replace(self.setup, n_embd=self.setup.n_head, block_size=1, vocab_size=2, batch=1)
        self.make(setup)
        token = np.zeros((1, 1), np.int64)
        self.step(token, token)
        return common.median([timed(lambda: self.step(token, token)) for _ in range(steps)]) * 1e3

    def overhead(self) -> dict[str, dict[str, float]]:
        """Microseconds per op, forward and backward, in chains of tiny ops: the op, NumPy alone, and the difference."""
        import numpy as np

        import tensorgrad as tg

        one, two = np.ones((1, 1), np.float32), np.full((1, 1), 2, np.float32)
        chains: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any], Callable[[Any], Any]]] = {
            "negative": (tg.negative, np.negative, np.negative),
            "add": (lambda x: tg.add(x, two), lambda x: x + two, lambda dy: dy),
            "multiply": (lambda x: tg.multiply(x, one), lambda x: x * one, lambda dy: dy * one),
        }
        found = {}
        for name, (op, forward, backward) in chains.items():
            ours = common.median([self.time_chain(op) for _ in range(REPEATS)])
            bare = common.median([time_bare(forward, backward) for _ in range(REPEATS)])
            found[name] = {"op_us": ours, "numpy_us": bare, "engine_us": ours - bare}
        return found

    def time_chain(self, op: Callable[[Any], Any]) -> float:
        """Microseconds per op of a chain, forward and backward."""
        import tensorgrad as tg

        x = tg.ones((1, 1), requires_grad=True)

        def chain() -> None:
            y = x
            for _ in range(CHAIN):
                y = op(y)
            y.backward()

        return timed(chain, time.thread_time) / CHAIN * 1e6


class Peaks:
    """The peak speeds of this machine, measured without tensorgrad, which may change the threads of NumPy's BLAS."""

    def __init__(self, threads: int, read_mb: int) -> None:
        self.reading = Bandwidth(threads, read_mb)

    def run(self) -> dict[str, float]:
        """GFLOP/s of a large product and GB/s of reading, the best of a few repetitions."""
        import numpy as np

        a, b, out = (np.ones((PEAK_SIZE, PEAK_SIZE), np.float32) for _ in range(3))
        seconds = [timed(lambda: np.matmul(a, b, out=out)) for _ in range(4)]
        speed = max(max(self.reading.run().values()) for _ in range(2))
        return {"gflops": 2 * PEAK_SIZE**3 / min(seconds) / 1e9, "gb_per_s": speed}


def time_bare(forward: Callable[[Any], Any], backward: Callable[[Any], Any]) -> float:
    """Microseconds of the same arithmetic by NumPy alone."""
    import numpy as np

    x = np.ones((1, 1), np.float32)

    def both() -> None:
        y = x
        for _ in range(CHAIN):
            y = forward(y)
        for _ in range(CHAIN):
            y = backward(y)

    return timed(both, time.thread_time) / CHAIN * 1e6


def timed(function: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of a call. time.thread_time excludes other work on the same core."""
    started = clock()
    function()
    return clock() - started


def clock_seconds() -> float:
    """The cost of one clock reading, which is not part of the step."""
    nothing = Profiler().timed(lambda: None)
    return timed(lambda: [nothing() for _ in itertools.repeat(None, CHAIN)]) / CHAIN


def per_step(row: Row, steps: int) -> dict[str, float]:
    """The sums of a row, per step."""
    sums = asdict(row)
    return {
        "calls": sums["calls"] / steps,
        "ms": sums["seconds"] / steps * 1e3,
        "kernel_ms": sums["kernel_seconds"] / steps * 1e3,
        "gflop": sums["flop"] / steps / 1e9,
        "matmul_gflop": sums["matmul_flop"] / steps / 1e9,
        "gb": sums["bytes"] / steps / 1e9,
    }
