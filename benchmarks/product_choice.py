#!/usr/bin/env python3
"""Time the kinds of matrix products by our kernels and by NumPy's library, as the first large product of a run does.

    python benchmarks/product_choice.py [--runs 5]

It prints how long each measurement took (at most 0.3 s), the medians of its pairs, and what it leaves to NumPy's
library. Nothing is kept. Both are timed on one thread, so that only that core has to be idle.
"""

import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it works without installation

from benchmarks import common
from gpt.cli import ArgumentParser
from gpt.cli import run as run_program
from tensorgrad.backend import blas, load
from tensorgrad.backend.numba.product_choice import FLOAT32, KINDS, clearly_faster, measure, parallel_product


def main() -> int:
    """Measure, and print the tables."""
    parser = ArgumentParser(description="Time the kinds of matrix products by our kernels and by NumPy's library.")
    parser.add_argument("--runs", type=common.at_least(1), default=1, metavar="N", help="measurements (1)")
    options = parser.parse_args()
    os.environ.pop("TENSORGRAD_PRODUCTS", None)  # which would force one of them
    backend, library = type(load("numba")), blas.find()
    parallel_product.compile(FLOAT32)
    print(f"{common.cpu_name()}, {library.name() if library else 'another library than OpenBLAS'}")
    for _ in range(options.runs):
        ours, numpys = backend(), backend()
        ours.leave_products(())
        numpys.leave_products(KINDS)
        start = time.perf_counter()
        times = measure(ours, numpys)
        print(f"\n{time.perf_counter() - start:.3f} s; left to NumPy's library: ", end="")
        print(", ".join(sorted(clearly_faster(times))) or "no product")
        print(f"{'ms':15}{'ours':>8}{'NumPy':>8}{'ratio':>7}{'pairs':>7}")
        for kind, pairs in times.items():
            if pairs:
                a, b = (1000 * statistics.median(column) for column in zip(*pairs, strict=True))
                print(f"{kind:15}{a:8.2f}{b:8.2f}{b / a:7.2f}{len(pairs):7}")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
