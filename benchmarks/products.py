#!/usr/bin/env python3
"""The matrix products of a training step by our kernels, NumPy's OpenBLAS and PyTorch's MKL, each in its own process.

    python benchmarks/products.py                       the linear layers of configurations A, B and C
    python benchmarks/products.py --config C --threads 1

A linear layer of n rows has three products: y = x W^T, dx = dy W and dW = dy^T x. All are float32, written into an
array that exists or, by ours, into a new one from an allocator that keeps what was freed. They are timed only if they
agree. `of peak` is the share of what the fused multiply-adds of the processor do without any memory, which a loop in C
measures in the same run. Contenders take turns; only one works at a time.
"""

import argparse
import ctypes
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it works without installation

from benchmarks import common
from benchmarks.configurations import SETUPS
from benchmarks.training import import_tensorgrad, import_torch
from benchmarks.workers import Unavailable, Worker, alternate, idle_warning
from gpt.cli import ArgumentParser, one_of
from gpt.cli import run as run_program
from gpt.config import UserError

WAYS = ("y", "dx", "dW")
TOLERANCE = 1e-4  # of norms
OURS, PEAK = "ours", "peak"
CONTENDERS = {OURS: "Ours", "OpenBLAS": "OpenBLAS", "MKL": "Mkl"}
# Twelve sums, because a fused multiply-add begins twice a cycle and takes four or five.
LOOP = """
#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX2__)
#define BYTES 32
#else
#define BYTES 16
#endif
typedef float vector __attribute__((vector_size(BYTES)));
extern "C" int width() { return BYTES / 4; }
extern "C" float loop(long n, float factor) {
    vector sums[12] = {}, x = {}, y = {};
    x += factor, y += factor;
    for (int j = 0; j < 12; ++j) sums[j] += j * factor;  // 12 equal sums would be one
    for (long i = 0; i < n; ++i) {
#pragma GCC unroll 12
        for (int j = 0; j < 12; ++j) sums[j] = sums[j] * x + y;
    }
    for (int j = 1; j < 12; ++j) sums[0] += sums[j];
    return sums[0][0];
}
"""


class Products:
    """A contender: the three products of one layer at a time."""

    def load(self, rows: int, n_in: int, n_out: int) -> list[float]:
        """Draw the operands of a layer. Returns the norms of its three products."""
        import numpy as np

        rng = np.random.default_rng(rows + n_in + n_out)
        shapes = {"x": (rows, n_in), "weight": (n_out, n_in), "dy": (rows, n_out)}
        self.flop = 2.0 * rows * n_in * n_out
        self.arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        self.prepare()
        return [float(np.linalg.norm(np.asarray(self.multiply(way), np.float64))) for way in WAYS]

    def run(self, way: str, seconds: float) -> list[float]:
        """FLOP/s of every call in a turn of about that many seconds."""
        found: list[float] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(found) < 3:
            started = time.perf_counter()
            self.multiply(way)
            found.append(self.flop / (time.perf_counter() - started))
        return found

    def prepare(self) -> None:
        """Make what `multiply` needs."""

    def multiply(self, way: str) -> Any:
        """One of WAYS."""
        raise NotImplementedError


class Ours(Products):
    """The kernels of the numba backend, without the tape."""

    def __init__(self, threads: int) -> None:
        self.k = import_tensorgrad("numba", threads).get_backend()
        self.k.leave_products(())  # to NumPy's library, whatever is faster

    def multiply(self, way: str) -> Any:
        """See Products."""
        x, weight, dy = self.arrays.values()
        if way == "y":
            return self.k.linear(x, weight, None)
        return self.k.linear_backward_x(dy, weight) if way == "dx" else self.k.linear_backward_weight(dy, x)


class OpenBLAS(Products):
    """NumPy's library, which is OpenBLAS in the wheels of pip."""

    def __init__(self, threads: int) -> None:
        import numpy as np

        self.out, self.matmul = np.empty_like, np.matmul

    def prepare(self) -> None:
        """See Products."""
        x, weight, dy = self.arrays.values()
        self.calls = {
            "y": (x, weight.T, self.out(dy)), "dx": (dy, weight, self.out(x)), "dW": (dy.T, x, self.out(weight)),
        }  # fmt: skip

    def multiply(self, way: str) -> Any:
        """See Products."""
        a, b, out = self.calls[way]
        return self.matmul(a, b, out=out)


class Mkl(OpenBLAS):
    """PyTorch's library, which is MKL in its builds for x86."""

    def __init__(self, threads: int) -> None:
        torch = import_torch(threads)
        if not torch.backends.mkl.is_available():
            raise Unavailable("this build of PyTorch has no MKL")
        self.torch, self.out, self.matmul = torch, torch.empty_like, torch.mm

    def prepare(self) -> None:
        """See Products."""
        self.arrays = {name: self.torch.from_numpy(x) for name, x in self.arrays.items()}
        super().prepare()


class Peak:
    """Fused multiply-adds in registers, on every thread."""

    def __init__(self, threads: int) -> None:
        compiler = shutil.which("g++") or shutil.which("clang++")
        if compiler is None:
            raise Unavailable("there is no C++ compiler here for the loop that measures the peak: install g++")
        self.threads, self.pool = threads, ThreadPoolExecutor(threads)
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "loop.so"
            command = [compiler, "-O2", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC", "-x", "c++", "-"]
            subprocess.run([*command, "-o", str(library)], input=LOOP, text=True, check=True)
            self.library = ctypes.CDLL(str(library))
        self.library.loop.argtypes, self.library.loop.restype = [ctypes.c_long, ctypes.c_float], ctypes.c_float

    def run(self, way: str, seconds: float) -> list[float]:
        """FLOP/s of all threads in a turn of about that many seconds."""
        n = 1_000_000
        found: list[float] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(found) < 3:
            started = time.perf_counter()
            list(self.pool.map(lambda _: self.library.loop(n, 0.5), range(self.threads)))
            found.append(self.threads * n * 12 * 2 * self.library.width() / (time.perf_counter() - started))
        return found


def main() -> int:
    options = parse()
    env = common.environment(options.threads, keep=True)
    print(common.environment_line(env))
    results: dict[str, Any] = {}
    with ExitStack() as stack:
        workers = []
        for name, contender in {**CONTENDERS, PEAK: "Peak"}.items():
            try:
                workers.append(stack.enter_context(start(name, contender, options.threads)))
            except Unavailable as reason:
                print(f"left out: {name}: {reason}")
        names = [worker.name for worker in workers]
        for config in options.config:
            setup = SETUPS[config]
            results[config] = [
                row for n_out, n_in, _ in setup.linears() for row in layer(setup.tokens, n_in, n_out, workers, options)
            ]
            print(f"\n{config}: {setup.describe()}\n{table(results[config], names)}")
    common.write_json(
        common.result_path("products", options.out), {"program": "products", "environment": env, "results": results}
    )
    return 0


def parse() -> argparse.Namespace:
    parser = ArgumentParser(description="Time the products of linear layers by our kernels and by other libraries.")
    known = one_of(*(name for name in SETUPS if name != "124M"))
    parser.add_argument("--config", type=known, nargs="+", default=["A", "B", "C"], help="the shapes")
    parser.add_argument("--turn-ms", type=common.at_least(1), default=100, help="length of a turn")
    common.add_common_flags(parser, rounds=7)
    return parser.parse_args()


def start(name: str, contender: str, threads: int) -> Worker:
    """Start the process of a contender."""
    return Worker(name, f"benchmarks.products:{contender}", {"threads": threads}, threads, common.KEEP_MEMORY)


def layer(rows: int, n_in: int, n_out: int, workers: list[Worker], options: argparse.Namespace) -> list[dict[str, Any]]:
    """GFLOP/s of the three products of a layer by every contender."""
    common.progress(f"{rows} x {n_in} x {n_out}")
    multiplying = [worker for worker in workers if worker.name != PEAK]
    norms = {worker.name: worker.call("load", rows=rows, n_in=n_in, n_out=n_out) for worker in multiplying}
    for name, found in norms.items():
        for way, a, b in zip(WAYS, norms[multiplying[0].name], found, strict=True):
            if not abs(a - b) <= TOLERANCE * a:
                raise UserError(f"not timed: {way} of {rows} x {n_in} x {n_out} has a norm of {a} and, by {name}, {b}")
    lines, turn_s = [], options.turn_ms / 1e3
    for way in WAYS:
        turns, idle = alternate(workers, options.rounds, partial(run_turn, way=way, seconds=turn_s))
        if warning := idle_warning(idle):
            print(warning)
        gflop_per_s = {name: common.median([x for turn in found for x in turn]) / 1e9 for name, found in turns.items()}
        lines.append({"rows": rows, "in": n_in, "out": n_out, "product": way, "gflop_per_s": gflop_per_s})
    return lines


def run_turn(worker: Worker, way: str, seconds: float) -> Any:
    """A turn of a contender."""
    return worker.call("run", way=way, seconds=seconds)


def table(rows: list[dict[str, Any]], names: list[str]) -> str:
    """Every product: the speeds, ours over the better of the others, and our share of the peak."""
    cells = []
    for row in rows:
        speeds = row["gflop_per_s"]
        others = [speeds[name] for name in names if name not in (OURS, PEAK)]
        cells.append([
            f"{row['rows']} x {row['in']} x {row['out']}", row["product"], *(f"{speeds[name]:.0f}" for name in names),
            f"{speeds[OURS] / max(others):.2f}" if others and OURS in speeds else "",
            f"{speeds[OURS] / speeds[PEAK]:.2f}" if OURS in speeds and PEAK in speeds else "",
        ])  # fmt: skip
    header = ["rows x in x out", "", *(f"{name}, GFLOP/s" for name in names), "ours / better", "of peak"]
    return common.table(header, cells)


if __name__ == "__main__":
    sys.exit(run_program(main))
