"""Waiting for other processes and threads: for what they do, never for a time, so that load changes no outcome."""

import subprocess
import time
from collections.abc import Callable
from typing import Any

HANG_S = 600  # no test takes so long on the slowest machine: it only ends what hangs


def wait_until(holds: Callable[[], object], process: subprocess.Popen[Any] | None = None) -> None:
    """Return once `holds()` is true; fail if the process that is to make it true ends before, or if it hangs."""
    given_up = time.monotonic() + HANG_S
    while not holds():
        assert process is None or process.poll() is None, "it ended before"
        assert time.monotonic() < given_up, "it hangs"
        time.sleep(0.002)


def finish(process: subprocess.Popen[Any]) -> tuple[Any, Any]:
    """Wait until the process ends, and return what it wrote to stdout and stderr; fail if it hangs."""
    return process.communicate(timeout=HANG_S)
