#!/usr/bin/env python3
"""Test and measure everything that needs a GPU, in less than nine minutes; benchmarks/gpu_check.sh calls it.

    python benchmarks/gpu_check.py                        all of it
    python benchmarks/gpu_check.py --only kernels ours    some parts
    python benchmarks/gpu_check.py --stand-in             without a GPU, at tiny sizes: its times mean nothing

Every part is a program with a time limit. A part that fails or runs out of time is recorded, and the next one runs.
Their figures and output are saved in one folder under benchmarks/results/ (--out).
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it works without installation

from benchmarks import common
from benchmarks.configurations import SETUPS, write_inputs
from benchmarks.gpu_report import report
from benchmarks.gpu_training import GPT2
from gpt.cli import ArgumentParser, one_of
from gpt.cli import run as run_program
from gpt.config import UserError
from tensorgrad import backend

BUDGET_S = 520
PROCESSES = 8  # that run the tests
PYTHON = sys.executable
SMALL_TESTS = "kernels_at_the_sizes or optimizer"


@dataclass(frozen=True)
class Part:
    """A program: its command, its time limit in seconds, and the seconds that are reserved for it."""

    name: str
    command: list[str]
    limit_s: float
    least_s: float
    environment: dict[str, str] = field(default_factory=dict)
    needs: str = ""  # why it cannot run here, if it cannot


def parts(folder: Path, stand_in: bool, data: str, no_torch: str = "") -> list[Part]:
    """All parts in order: correctness first, then speed, with PyTorch's slowest part last.

    no_torch: why PyTorch cannot be used for comparison, if it cannot.
    """
    inputs, flag = str(folder / "inputs.safetensors"), ["--stand-in"] if stand_in else []
    batches = ["--batches", "2", "1", "largest"] if stand_in else []
    chosen = ["-q", "-p", "no:cacheprovider", "-m", "not gpu" if stand_in else "gpu"]
    processes = str(2 if stand_in else max(1, min(PROCESSES, common.available_threads())))
    tests = [PYTHON, "-m", "benchmarks.gpu_tests", processes, *chosen, "tests/gpu"]
    few, fewer = (["-k", "generated_text"], ["-k", "optimizer"]) if stand_in else ([], ["-k", SMALL_TESTS])
    sanitizer = shutil.which("compute-sanitizer")
    without = "" if sanitizer or stand_in else "compute-sanitizer is not installed: it comes with the CUDA toolkit"
    under = [sanitizer, "--error-exitcode", "9", "--leak-check", "no"] if sanitizer and not stand_in else []

    def module(name: str, *arguments: str, out: str) -> list[str]:
        return [PYTHON, "-m", f"benchmarks.{name}", *arguments, str(folder / f"{out}.json"), *flag]

    losses = [*module("gpu_losses", out="losses"), "--data", data, *(["--max-iters", "3"] if stand_in else [])]
    return [
        Part("doctor", [PYTHON, "-m", "tensorgrad.doctor"], 30, 10),
        Part("tests", [*tests, *few], 170, 60),
        Part("sanitizer", [*under, PYTHON, "-m", "pytest", *chosen, "tests/gpu/test_kernels.py", *fewer],
             45, 20, {"TENSORGRAD_SMALL": "1"}, without),
        Part("losses", losses, 90, 40),
        Part("kernels", module("gpu_kernels", out="kernels"), 45, 30),
        Part("ours", [*module("gpu_training", "ours", inputs, out="ours"), *batches], 90, 70),
        Part("decoding", module("gpu_decode", "ours", inputs, out="decoding"), 30, 20),
        Part("torch compile", [*module("gpu_training", "compile", inputs, out="torch_compile"), *batches], 200, 80,
             needs=no_torch),
        Part("torch eager", [*module("gpu_training", "eager", inputs, out="torch_eager"), *batches], 60, 40,
             needs=no_torch),
        Part("torch decoding", module("gpu_decode", "torch", inputs, out="torch_decoding"), 30, 15, needs=no_torch),
    ]  # fmt: skip


def main() -> int:
    options = parse()
    no_torch = ""
    if not options.stand_in:
        if reason := backend.check("cupy"):
            raise UserError(f"no GPU to check: {reason}")
        no_torch = why_no_torch()
    started = time.monotonic()
    folder = Path(options.out) if options.out else common.RESULTS / f"gpu-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    folder.mkdir(parents=True, exist_ok=True)
    setup = SETUPS["tiny"] if options.stand_in else GPT2
    write_inputs(folder / "inputs.safetensors", setup, 1337)
    chosen = [part for part in parts(folder, options.stand_in, options.data, no_torch) if part.name in options.only]
    env = common.environment(common.available_threads(), ("numpy", "numba", "cupy-cuda13x", "cupy-cuda12x", "torch"))
    result: dict[str, Any] = {"program": "gpu_check", "environment": env, "stand_in": options.stand_in, "parts": {}}
    try:
        for i, part in enumerate(chosen):
            reserved = sum(later.least_s for later in chosen[i + 1 :])
            left = options.budget - (time.monotonic() - started) - reserved
            result["parts"][part.name] = run(part, folder, min(part.limit_s, max(left, part.least_s)))
            common.write_json(folder / "gpu_check.json", result | {"seconds": round(time.monotonic() - started, 1)})
    finally:
        (folder / "inputs.safetensors").unlink(missing_ok=True)  # half a gigabyte, which the seed reproduces
    text = report(result["parts"])
    (folder / "report.txt").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n\nin {time.monotonic() - started:.0f} s; results in {folder}")
    return 0 if all(part["status"] in ("passed", "left out") for part in result["parts"].values()) else 1


def parse() -> argparse.Namespace:
    names = [part.name for part in parts(Path(), False, "")]
    parser = ArgumentParser(description="Test and time tensorgrad on a GPU, beside the CPU and PyTorch.")
    parser.add_argument("--only", type=one_of(*names), nargs="+", default=names, help="these parts")
    parser.add_argument("--budget", type=common.at_least(1), default=BUDGET_S, help="seconds for all of it")
    parser.add_argument("--data", default="shakespeare", help="the text of the comparison with the CPU")
    parser.add_argument("--out", help="the folder (default: a new one in results/)")
    parser.add_argument("--stand-in", action="store_true", help="run without a GPU, to test the programs")
    return parser.parse_args()


def why_no_torch() -> str:
    """Why PyTorch cannot be used for comparison, in one line; empty if it sees the GPU."""
    question = "import torch, sys; sys.exit(not torch.cuda.is_available())"
    try:
        asked = subprocess.run([PYTHON, "-c", question], capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return "PyTorch did not answer within 120 s whether it sees the GPU"
    if not asked.returncode:
        return ""
    missing = "No module named 'torch'" in asked.stderr
    what = "is not installed" if missing else "does not see the GPU"
    return f"PyTorch, to compare with, {what}: pip install torch, of the CUDA that the driver can run"


def run(part: Part, folder: Path, limit_s: float) -> dict[str, Any]:
    """Run a part. Returns how it ended, its seconds, its figures, and its last lines of output."""
    if part.needs:
        common.progress(f"{part.name}: left out: {part.needs}")
        return {"status": "left out", "reason": part.needs}
    common.progress(f"{part.name} ({limit_s:.0f} s at most)")
    name = part.name.replace(" ", "_")
    log, started = folder / f"{name}.log", time.monotonic()
    variables = {**os.environ, **part.environment, "PYTHONPATH": str(common.ROOT)}
    with open(log, "w", encoding="utf-8") as said:
        process = subprocess.Popen(
            part.command, cwd=common.ROOT, env=variables, stdout=said, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(limit_s)
            status = "passed" if code == 0 else f"failed with status {code}"
        except subprocess.TimeoutExpired:
            status = f"out of time after {limit_s:.0f} s"
        finally:  # with all that it started, such as PyTorch's compilers
            kill(process)
    outcome: dict[str, Any] = {"status": status, "seconds": round(time.monotonic() - started, 1)}
    if (figures := folder / f"{name}.json").exists():
        outcome["figures"] = json.loads(figures.read_text(encoding="utf-8"))
    outcome["said"] = log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
    common.progress(f"{part.name}: {status}, {outcome['seconds']:.0f} s")
    return outcome


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a part and all processes of its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    sys.exit(run_program(main))
