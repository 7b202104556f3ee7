"""The `gpu` tests in several processes at once, for gpu_check.py.

    python -m benchmarks.gpu_tests N [options of pytest ...]

The first time on a machine CuPy compiles more than a thousand small kernels for them, one after another, and ours take
seconds each: a single process would take many minutes, and the GPU would wait.
"""

import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks import common

NO_TESTS = 5  # pytest's exit status where nothing is left to run


def main() -> int:
    n, options = int(sys.argv[1]), sys.argv[2:]
    threads = common.thread_variables(max(1, common.available_threads() // n))  # of each, for the truth on the CPU
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        started = []
        for share in range(n):
            said = stack.enter_context(open(Path(folder) / f"{share}.log", "w+", encoding="utf-8"))
            process = subprocess.Popen(
                [sys.executable, "-m", "pytest", *options], cwd=common.ROOT, stdout=said, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, env={**os.environ, **threads, "TENSORGRAD_SHARE": f"{share}/{n}"},
            )  # fmt: skip
            stack.callback(process.kill)
            started.append((process, said))
        statuses = []
        for process, said in started:
            statuses.append(process.wait())
            said.seek(0)
            if statuses[-1] != NO_TESTS:
                print(said.read().rstrip(), flush=True)
    failed = [status for status in statuses if status not in (0, NO_TESTS)]
    if failed or 0 not in statuses:
        print(f"{len(failed)} of {n} processes failed" if failed else "no test was run")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
