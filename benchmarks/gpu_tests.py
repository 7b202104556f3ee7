"""The `gpu` tests, a process for each group of kernels and several at once, for gpu_check.py.

    python -m benchmarks.gpu_tests N PATH -m MARK [-k EXPRESSION] [--groups GROUP ...]

After an illegal access to memory, a process can do nothing more on the GPU: then the other groups are still tested. The
first time on a machine CuPy compiles more than a thousand small kernels, one after another, and ours take seconds each:
a single process would take many minutes, and the GPU would wait.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from benchmarks import common

NO_TESTS = 5  # pytest's exit status where nothing is left to run
# Words of the names of tests; a test belongs to the first group that it fits, and to the last if it fits none.
GROUPS = (
    "every_op and float64", "every_op and float32", "every_op and bfloat16", "every_op", "attention", "cross_entropy",
    "embedding", "normalization", "products", "gelu or dropout", "optimizer", "reproducible", "",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description="Run tests on a GPU, a process for each group of kernels.")
    parser.add_argument("processes", type=common.at_least(1), help="how many at once")
    parser.add_argument("path", help="the tests")
    parser.add_argument("-m", dest="mark", required=True, help="their mark")
    parser.add_argument("-k", dest="chosen", default="", help="which of them")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=GROUPS, help="these groups")
    options = parser.parse_args()
    threads = common.thread_variables(max(1, common.available_threads() // options.processes))  # for the truth

    def run(group: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-m", options.mark, options.path,
            "-k", expression(group, options.chosen),
        ]  # fmt: skip
        return subprocess.run(
            command, cwd=common.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            text=True, env={**os.environ, **threads},
        )  # fmt: skip

    with ThreadPoolExecutor(options.processes) as pool:
        results = dict(zip(options.groups, pool.map(run, options.groups), strict=True))
    failed = [group or "others" for group, result in results.items() if result.returncode not in (0, NO_TESTS)]
    for group, result in results.items():
        if result.returncode != NO_TESTS:
            print(f"{group or 'others'}:\n{result.stdout.rstrip()}", flush=True)
    if failed or all(result.returncode == NO_TESTS for result in results.values()):
        print(f"failed: {', '.join(failed)}" if failed else "no test was run")
        return 1
    return 0


def expression(group: str, chosen: str) -> str:
    """pytest's -k for the tests of a group: those of no group before it, and of them the chosen ones."""
    earlier = GROUPS[: GROUPS.index(group)]
    terms = [f"({group})"] if group else []
    terms += [f"not ({' or '.join(f'({other})' for other in earlier)})"] if earlier else []
    return " and ".join([*terms, *([f"({chosen})"] if chosen else [])])


if __name__ == "__main__":
    sys.exit(main())
