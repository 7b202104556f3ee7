#!/usr/bin/env python3
"""Compile the kernels of a training step and of decoding ahead, on a machine with or without a GPU.

    python benchmarks/gpu_cubins.py FOLDER --arch sm_90a

FOLDER is what `benchmarks/gpu_check.py --cubins` takes, and XDG_CACHE_HOME of any other program. A tiny GPT with heads
of 64 numbers, run on the CPU, says which kernels they are. It needs a C++ compiler, and NVRTC of CuPy's packages.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it works without installation

from benchmarks import common
from benchmarks.configurations import Setup, write_inputs
from benchmarks.gpu_card import Ours
from benchmarks.gpu_decode import ours as decoding
from benchmarks.gpu_kernels import GROUPS, Bench, Sizes
from benchmarks.gpu_training import Ourselves

TINY = Setup(1, 12, 768, 16, 128, bias=True, batch=2)  # rows as long as GPT-2's have kernels of their own
Needed = set[tuple[str, tuple[tuple[str, str], ...]]]  # files, and the macros that they are compiled with


def needed(folder: Path) -> Needed:
    """Every kernel file of a step, of decoding and of gpu_kernels.py."""
    path = folder / "inputs.safetensors"
    write_inputs(path, TINY, 0)
    found: Needed = set()
    step = Ourselves(TINY, str(path), stand_in=True)
    step.make(2, "launched")()
    write, card = decoding(TINY, str(path), True, 2, 2)
    write()
    timed = Ours(stand_in=True)
    for kernels in GROUPS.values():
        for kernel in kernels(Bench(timed, Sizes(1, 16, 12, 64, 128, 2**10, 32))):
            kernel.call()
    for k in (step.card.k, card.k, timed.k):
        found |= {(launch.source, launch.defines) for launch in launches(k)}
    path.unlink()
    return found


def launches(k: Any) -> Any:
    """What the stand-in for a GPU has launched."""
    return k.launcher.launches


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile the kernels of a training step for a GPU that is not here.")
    parser.add_argument("folder", help="where they are kept")
    parser.add_argument("--arch", default="sm_90a", help="sm_80, sm_90a ...: of the GPU")
    options = parser.parse_args()
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(folder.resolve())
    every = needed(folder)
    from tensorgrad.backend.cupy.launcher import cached_build

    for i, (source, defines) in enumerate(sorted(every), 1):
        common.progress(f"{i} of {len(every)}: {source}.cu, {', '.join(f'{name} {value}' for name, value in defines)}")
        cached_build(source, options.arch, defines)
    print(f"{len(every)} kernel files for {options.arch} in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
