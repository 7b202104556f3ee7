"""Run tests with kernels that Numba compiles for one instruction set: python tests/held_to.py sse2 [pytest arguments].

The instruction sets are sse2, avx2 and avx512. Unless the arguments name files, it runs the tests of the numba backend.
A processor without AVX-512 runs the larger tiles of AVX-512 in the instructions of AVX2.
"""

import os
import subprocess
import sys
from pathlib import Path

TESTS = sorted(str(path) for path in (Path(__file__).parent / "tensorgrad/backend/numba").glob("test_*.py"))
AVX2 = ["+avx", "+avx2", "+fma"]
AVX512 = [f"+avx512{part}" for part in ("f", "bw", "cd", "dq", "vl")]
FEATURES = {"sse2": [], "avx2": AVX2, "avx512": [*AVX2, *AVX512, "-prefer-256-bit"]}


def environment(instructions: str) -> dict[str, str]:
    """What makes Numba compile for an instruction set."""
    import llvmlite.binding as llvm

    features, own = FEATURES[instructions], llvm.get_host_cpu_features()
    if instructions == "avx512" and not all(own.get(name[1:]) for name in AVX512):
        # LLVM takes the last word on a feature, and the backend asks whether one was turned on.
        features = [*features, *(name.replace("+", "-") for name in AVX512)]
    return {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": ",".join(features)}


def main() -> int:
    """Run pytest; its exit status."""
    if len(sys.argv) < 2 or sys.argv[1] not in FEATURES:
        print(f"usage: python {sys.argv[0]} {'|'.join(FEATURES)} [arguments of pytest]", file=sys.stderr)
        return 2
    arguments = sys.argv[2:]
    names_files = any(Path(argument.partition("::")[0]).exists() for argument in arguments)
    command = [sys.executable, "-m", "pytest", *arguments, *([] if names_files else TESTS)]
    return subprocess.run(command, env={**os.environ, **environment(sys.argv[1])}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
