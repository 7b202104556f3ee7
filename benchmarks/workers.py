"""Contenders in processes of their own, of which one works at a time.

The settings of the allocator and the thread pools belong to a process, so each contender has its own, driven through a
pipe: one JSON object per line there and back. `alternate` lets them take turns of a few steps.

An idle contender must not use the cores of the one that works. The threads of OpenMP and OpenBLAS spin for some
milliseconds after their last work; OMP_WAIT_POLICY=PASSIVE would stop this, but would slow down the contender while it
works. So each keeps its own way of waiting, and a turn begins only when the processor time of all contenders stands
still. The processor time that idle contenders use during a turn is measured and reported.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks import common

QUIET_S = 0.02  # longer than a tick of the kernel's clock, at which it accounts for running threads
PATIENCE_S = 2.0


class Unavailable(Exception):
    """A contender cannot run here; the message says why, in one line."""


# --- the parent's side --------------------------------------------------------------------------


class Worker:
    """A contender in its own process.

    factory: "module:Class" of the contender, which the process creates with the keywords `spec`; `call` calls its
    methods. root: the checkout whose sources it runs. python: the interpreter that runs it. Raises Unavailable if the
    contender cannot be created.
    """

    def __init__(
        self, name: str, factory: str, spec: dict[str, Any], threads: int, environment: dict[str, str] | None = None,
        root: Path = common.ROOT, python: str = sys.executable,
    ) -> None:  # fmt: skip
        self.name = name
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in close()
        variables = {key: value for key, value in os.environ.items() if key not in common.ALLOCATOR_VARIABLES}
        variables |= common.thread_variables(threads) | (environment or {})
        variables["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [python, "-c", "from benchmarks import workers; workers.main()", factory, json.dumps(spec)],
            cwd=root, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )  # fmt: skip
        try:
            self._receive()
        except BaseException:
            self.close()
            raise

    def call(self, method: str, **arguments: Any) -> Any:
        """Call a method of the contender and return its result. Raises Unavailable if it fails."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"method": method, "arguments": arguments}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Unavailable(self._how_it_ended()) from None
        return self._receive()

    def _receive(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise Unavailable(self._how_it_ended())
        reply = json.loads(line)
        if "failure" in reply:
            raise Unavailable(reply["failure"])
        return reply["result"]

    def _how_it_ended(self) -> str:
        status = self.process.wait()
        self.log.seek(0)
        last = [line.strip() for line in self.log if line.strip()][-1:] or ["it printed nothing"]
        memory = " (out of memory?)" if status == -9 else ""
        return f"its process ended with status {status}{memory}: {last[0]}"

    def cpu_seconds(self) -> float:
        """Processor time of all threads of the process so far; 0 where the system does not report it."""
        total = 0
        for path in Path(f"/proc/{self.process.pid}/task").glob("*/schedstat"):
            try:
                total += int(path.read_text().split()[0])
            except (OSError, IndexError):  # the thread has just ended
                continue
        return total / 1e9

    def close(self) -> None:
        """End the process by closing its input."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.close()
            self.process.wait(5)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def wait_until_quiet(workers: Iterable[Worker]) -> None:
    """Return when no contender uses processor time any more, at the latest after PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    before = -1.0
    while time.monotonic() < deadline:
        now = sum(worker.cpu_seconds() for worker in workers)
        if now == before:
            return
        before = now
        time.sleep(QUIET_S)


def alternate(
    workers: Sequence[Worker], rounds: int, turn: Callable[[Worker], Any]
) -> tuple[dict[str, list[Any]], float]:
    """Let every worker take a turn in every round; each round begins with the next worker.

    Returns the results of the turns, by name, and the largest share of a core that idle workers used in any turn.
    """
    replies: dict[str, list[Any]] = {worker.name: [] for worker in workers}
    most_idle = 0.0
    for i in range(rounds):
        start = i % len(workers)
        for worker in [*workers[start:], *workers[:start]]:
            others = [other for other in workers if other is not worker]
            wait_until_quiet(workers)
            before, started = sum(other.cpu_seconds() for other in others), time.perf_counter()
            replies[worker.name].append(turn(worker))
            idle = sum(other.cpu_seconds() for other in others) - before
            most_idle = max(most_idle, idle / (time.perf_counter() - started))
    return replies, most_idle


def idle_warning(most_idle: float) -> str:
    """A warning if idle contenders disturbed the one that worked; otherwise an empty string."""
    if most_idle < 0.01:
        return ""
    return f"warning: idle contenders used up to {most_idle:.0%} of a core while another one worked"


# --- the child's side ---------------------------------------------------------------------------


def main() -> None:
    """Create the contender that the arguments name, and answer calls until the input ends."""
    factory, spec = sys.argv[1], json.loads(sys.argv[2])
    with os.fdopen(os.dup(1), "w") as channel:
        os.dup2(2, 1)  # other output goes to the log

        def reply(**content: Any) -> None:
            channel.write(json.dumps(content) + "\n")
            channel.flush()

        try:
            module, _, name = factory.partition(":")
            contender = getattr(importlib.import_module(module), name)(**spec)
            reply(result=None)
        except Exception as error:
            reply(failure=_in_one_line(error))
            return
        for line in sys.stdin:
            request = json.loads(line)
            try:
                reply(result=getattr(contender, request["method"])(**request["arguments"]))
            except Exception as error:
                reply(failure=_in_one_line(error))


def _in_one_line(error: Exception) -> str:
    if isinstance(error, Unavailable):
        return str(error)
    traceback.print_exc()
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
