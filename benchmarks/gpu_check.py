#!/usr/bin/env python3
"""Test and measure everything that needs a GPU, in two runs of a few minutes; benchmarks/gpu_check.sh calls it.

    python benchmarks/gpu_check.py first --out FOLDER     does it work, and how fast: 280 s at most
    python benchmarks/gpu_check.py second --out FOLDER    all tests, and PyTorch beside it: 400 s at most
    python benchmarks/gpu_check.py extra --out FOLDER --data text.txt    training beside the CPU, other batches
    python benchmarks/gpu_check.py first --stand-in --out FOLDER         without a GPU, at tiny sizes

Every part is a program with its own time limit. A part that fails or runs out of time is recorded, and the next one
runs. The folder gets report.txt, gpu_check.json and, with the output of every part, gpu_check.tar.gz; they are written
again after every part. --only runs some parts of a run. --cubins is a folder of kernels that benchmarks/gpu_cubins.py
has compiled on any machine: without it, the card waits while they compile.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
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

BUDGET_S = {"first": 280, "second": 400, "extra": 400}  # of all parts of a run together
STAND_IN_LIMIT_S = 600  # of a part in a rehearsal, whose times mean nothing
START_S = 15  # of a run: the weights are drawn and written
PROCESSES = 8  # that run the tests
PYTHON = sys.executable
FIRST_TESTS = "bfloat16 and kernels_at_the_sizes or optimizer"
BLOCKING = {"CUDA_LAUNCH_BLOCKING": "1"}  # an error is reported by the launch that made it
SMALL = {"TENSORGRAD_SMALL": "1"}
FILES = ("report.txt", "gpu_check.json", "gpu_check.tar.gz")


@dataclass(frozen=True)
class Part:
    """A program: its command and its time limit in seconds."""

    name: str
    command: list[str]
    limit_s: float
    environment: dict[str, str] = field(default_factory=dict)
    needs: str = ""  # why it cannot run here, if it cannot
    background: bool = False  # starts beside the next part, which takes its time


@dataclass(frozen=True)
class Plan:
    """What the commands of all parts depend on."""

    scratch: Path  # the folder of the parts' files
    stand_in: bool = False
    data: str | None = None  # the text of the comparison with the CPU
    no_torch: str = ""  # why PyTorch cannot be used for comparison, if it cannot

    def parts(self, run: str) -> list[Part]:
        """The parts of a run in order, the most valuable facts first."""
        parts = {"first": self.first, "second": self.second, "extra": self.extra}[run]()
        return [replace(part, limit_s=STAND_IN_LIMIT_S) for part in parts] if self.stand_in else parts

    def first(self) -> list[Part]:
        """Does it work, how fast is a step, and where is its time?"""
        return [
            Part("doctor", [PYTHON, "-m", "tensorgrad.doctor"], 30, BLOCKING),
            Part("tests", self.tests("tests/gpu/test_kernels.py", FIRST_TESTS), 60, BLOCKING),
            self.training("ours", 80),
            Part("kernels", self.module("gpu_kernels", out="kernels"), 60),
            self.decoding("ours", "decoding", 25),
        ]

    def second(self) -> list[Part]:
        """Is all of it right, and is it ahead of PyTorch? What compiles there is compiled beside the tests."""
        attention = self.few_tests("attention and bfloat16")
        race, profile = ["--tool", "racecheck", "--error-exitcode", "9"], ["--clock-control", "none", "-c", "3"]
        return [
            self.training("compile", 110, name="torch warm-up", background=True),
            Part("tests", self.tests("tests/gpu"), 110),
            self.training("compile", 70, name="torch compile"),
            self.training("ours", 45),
            self.training("eager", 30, name="torch eager"),
            self.under("compute-sanitizer", race, "racecheck", attention, 70),
            self.under("ncu", [*profile, "-k", "regex:attention"], "ncu", self.attention_kernels(), 30),
        ]

    def extra(self) -> list[Part]:
        """What takes longer, once the rest is known to work."""
        kernels = self.few_tests(FIRST_TESTS)
        return [
            Part("losses", self.losses(), 90, needs="" if self.data else "it trains on a text: give --data FILE"),
            self.training("ours", 110, ("64", "16", "largest")),
            self.under("compute-sanitizer", ["--error-exitcode", "9", "--leak-check", "no"], "sanitizer", kernels, 60),
            self.decoding("torch", "torch decoding", 30),
            self.decoding("ours", "decoding", 30),
        ]

    def module(self, name: str, *arguments: str, out: str) -> list[str]:
        """The command of a program beside this one, which writes its figures to `out`.json."""
        flag = ["--stand-in"] if self.stand_in else []
        return [PYTHON, "-m", f"benchmarks.{name}", *arguments, str(self.scratch / f"{out}.json"), *flag]

    @property
    def inputs(self) -> str:
        """The file of weights and batches."""
        return str(self.scratch / "inputs.safetensors")

    def training(
        self, contender: str, limit_s: float, batches: tuple[str, ...] = ("64", "4"), name: str | None = None,
        background: bool = False,
    ) -> Part:  # fmt: skip
        """Training steps of a contender."""
        name = name or contender
        batches = {"64": ("2", "1")}.get(batches[0], ()) if self.stand_in else batches
        command = [*self.module("gpu_training", contender, self.inputs, out=file_name(name)), "--batches", *batches]
        cache = {"TORCHINDUCTOR_CACHE_DIR": str(self.scratch / "inductor"), "TORCHINDUCTOR_FX_GRAPH_CACHE": "1"}
        compiled = contender == "compile"
        needs = "" if contender == "ours" else self.no_torch
        if compiled and self.stand_in:
            needs = "it compiles for a GPU"
        return Part(name, command, limit_s, cache if compiled else {}, needs, background)

    def decoding(self, contender: str, name: str, limit_s: float) -> Part:
        """Generation of text by a contender."""
        command = self.module("gpu_decode", contender, self.inputs, out=file_name(name))
        return Part(name, command, limit_s, needs="" if contender == "ours" else self.no_torch)

    def losses(self) -> list[str]:
        """Training on the card and on the CPU."""
        few = ["--max-iters", "3"] if self.stand_in else []
        return [*self.module("gpu_losses", out="losses"), "--data", os.path.abspath(self.data or ""), *few]

    def attention_kernels(self) -> list[str]:
        """Attention's kernels, timed in one process."""
        return self.module("gpu_kernels", "--group", "attention", out="ncu")

    def few_tests(self, chosen: str) -> list[str]:
        """Tests of kernels in one process."""
        command = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", self.mark, "tests/gpu/test_kernels.py"]
        return [*command, "-k", "optimizer" if self.stand_in else chosen]

    def tests(self, path: str, chosen: str = "") -> list[str]:
        """Tests on the card, a process for each group of kernels."""
        processes = str(2 if self.stand_in else max(1, min(PROCESSES, common.available_threads())))
        groups = ["--groups", "optimizer"] if self.stand_in else []
        command = [PYTHON, "-m", "benchmarks.gpu_tests", processes, path, "-m", self.mark, *groups]
        return [*command, "-k", chosen] if chosen else command

    @property
    def mark(self) -> str:
        """The tests' mark."""
        return "not gpu" if self.stand_in else "gpu"

    def under(self, tool: str, options: list[str], name: str, command: list[str], limit_s: float) -> Part:
        """A part that runs under one of CUDA's tools; on the stand-in, without it."""
        found = shutil.which(tool)
        needs = "" if found or self.stand_in else f"{tool} is not installed: it comes with the CUDA toolkit"
        return Part(name, [*([tool, *options] if found and not self.stand_in else []), *command], limit_s, SMALL, needs)


def file_name(name: str) -> str:
    """The name of a part's files."""
    return name.replace(" ", "_")


def main() -> int:
    options = parse()
    no_torch = ""
    if not options.stand_in:
        if reason := backend.check("cupy"):
            raise UserError(f"no GPU to check: {reason}")
        no_torch = "" if options.run == "first" else why_no_torch()  # which takes seconds, and first has no need of it
    started, folder = time.monotonic(), Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    env = common.environment(common.available_threads(), ("numpy", "numba", "cupy-cuda13x", "cupy-cuda12x", "torch"))
    result: dict[str, Any] = {
        "program": "gpu_check", "run": options.run, "environment": env, "stand_in": options.stand_in, "parts": {},
    }  # fmt: skip
    if options.cubins:
        os.environ["XDG_CACHE_HOME"] = os.path.abspath(options.cubins)
    with tempfile.TemporaryDirectory(prefix="gpu_check-") as scratch:
        plan = Plan(Path(scratch), options.stand_in, options.data, no_torch)
        write_inputs(Path(plan.inputs), SETUPS["tiny"] if options.stand_in else GPT2, 1337)
        parts = [part for part in plan.parts(options.run) if not options.only or part.name in options.only]
        for name in run_all(parts, plan.scratch, result["parts"]):
            common.progress(f"{name}: {result['parts'][name]['status']}")
            result["seconds"] = round(time.monotonic() - started, 1)
            save(folder, plan.scratch, result)
    print(f"\n{report(result['parts'])}\n\nin {result.get('seconds', 0):.0f} s; results in {folder}")
    return 0 if all(part["status"] in ("passed", "left out") for part in result["parts"].values()) else 1


def run_all(parts: list[Part], scratch: Path, outcomes: dict[str, Any]) -> Iterator[str]:
    """Run the parts one after another; yield the name of each when its outcome is there."""
    behind: list[Running] = []
    for part in parts:
        if part.needs:
            outcomes[part.name] = {"status": "left out", "reason": part.needs}
            yield part.name
            continue
        common.progress(f"{part.name} ({part.limit_s:.0f} s at most)")
        running = Running(part, scratch)
        if part.background:
            behind.append(running)
            continue
        for finished in (running, *behind):  # what ran beside it has had its time
            outcomes[finished.part.name] = finished.outcome()
            yield finished.part.name
        behind.clear()
    for finished in behind:
        outcomes[finished.part.name] = finished.outcome()
        yield finished.part.name


def save(folder: Path, scratch: Path, result: dict[str, Any]) -> None:
    """Write the three files, each whole."""
    text, figures, archive = (folder / name for name in FILES)
    aside = folder / "gpu_check.part"
    with tarfile.open(aside, "w:gz") as packed:
        for path in sorted(scratch.glob("*.json")) + sorted(scratch.glob("*.log")):
            packed.add(path, path.name)
    os.replace(aside, archive)
    for path, content in ((text, report(result["parts"])), (figures, json.dumps(result, indent=2))):
        aside.write_text(content + "\n", encoding="utf-8")
        os.replace(aside, path)


def parse() -> argparse.Namespace:
    parser = ArgumentParser(description="Test and time tensorgrad on a GPU, beside the CPU and PyTorch.")
    parser.add_argument("run", type=one_of(*BUDGET_S), metavar="RUN", help="first, second or extra")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the report and the figures are written")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts of the run")
    parser.add_argument("--data", metavar="FILE", help="the text of the comparison with the CPU")
    parser.add_argument("--cubins", metavar="FOLDER", help="kernels that benchmarks/gpu_cubins.py has compiled")
    parser.add_argument("--stand-in", action="store_true", help="run without a GPU, to test the programs")
    options = parser.parse_args()
    names = [part.name for part in Plan(Path()).parts(options.run)]
    for name in options.only or ():
        if name not in names:
            raise UserError(f"--only {name}: the parts of {options.run} are {', '.join(names)}")
    return options


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


class Running:
    """A part that has been started."""

    def __init__(self, part: Part, scratch: Path) -> None:
        self.part, self.scratch, self.started = part, scratch, time.monotonic()
        self.log = scratch / f"{file_name(part.name)}.log"
        variables = {**os.environ, **part.environment, "PYTHONPATH": str(common.ROOT)}
        with open(self.log, "w", encoding="utf-8") as said:
            self.process = subprocess.Popen(
                part.command, cwd=common.ROOT, env=variables, stdout=said, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def outcome(self) -> dict[str, Any]:
        """Wait until its time is over. Returns how it ended, its seconds, its figures, and its last lines of output."""
        limit_s = self.part.limit_s
        try:
            code = self.process.wait(max(0.1, limit_s - (time.monotonic() - self.started)))
            status = "passed" if code == 0 else f"failed with status {code}"
        except subprocess.TimeoutExpired:
            status = f"out of time after {limit_s:.0f} s"
        finally:  # with all that it started, such as PyTorch's compilers
            kill(self.process)
        outcome: dict[str, Any] = {"status": status, "seconds": round(time.monotonic() - self.started, 1)}
        if (figures := self.log.with_suffix(".json")).exists():
            outcome["figures"] = json.loads(figures.read_text(encoding="utf-8"))
        outcome["said"] = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
        return outcome


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a part and all processes of its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    sys.exit(run_program(main))
