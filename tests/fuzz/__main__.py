"""python tests/fuzz WHAT --seed N --count M: random programs, checkpoints, weights, data files or command lines.

Each seed is a case of its own: what fails is printed with its seed, and --seed with --count 1 repeats it.
Exits with status 0 where nothing fails, 1 where something does.
"""

import argparse
import importlib
import sys
import time
import warnings
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
WHAT = {
    "programs": ("programs", "programs of ops: results and gradients against PyTorch's, on numpy and numba", 10_000),
    "checkpoints": ("damaged_checkpoints", "damaged checkpoints: refused in one line or skipped, never wrong", 1_500),
    "weights": ("damaged_weights", "damaged weights, as GGUF or from Hugging Face: refused in one line or loaded", 500),
    "data": ("odd_data_files", "odd data files: read as they are or refused in one line", 500),
    "commands": ("command_lines", "command lines: no traceback, no hang, nothing half-written", 300),
}


def main() -> int:
    """Run the cases of the command line; their exit status."""
    parser = argparse.ArgumentParser(prog="python tests/fuzz", description="Random cases, each from its seed.")
    parser.add_argument("what", choices=WHAT, help="; ".join(f"{name}: {text}" for name, (_, text, _) in WHAT.items()))
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--count", type=int, help="cases (default: as many as a release is checked with)")
    options = parser.parse_args()
    module, _, usual = WHAT[options.what]
    sys.path[:0] = [str(TESTS.parent), str(TESTS / "fuzz"), str(TESTS / "tensorgrad")]
    warnings.simplefilter("ignore")
    seeds = range(options.seed, options.seed + (usual if options.count is None else options.count))
    failed, started = 0, time.perf_counter()
    for seed, text in importlib.import_module(module).failures(seeds):
        failed += 1
        print(f"# seed {seed}\n{text}\n", flush=True)
    seconds = time.perf_counter() - started
    print(f"{len(seeds):,} {options.what}, seeds {seeds.start} to {seeds.stop - 1}: {failed} failed ({seconds:.0f} s)")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
