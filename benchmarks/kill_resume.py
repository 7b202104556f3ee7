#!/usr/bin/env python3
"""Compare a run that is killed and resumed many times with one that is not: all bytes must be equal.

    python benchmarks/kill_resume.py [--kills 20] [--backends numpy numba] [--seed 0]

The run is a small GPT with dropout and accumulated gradients that saves every five steps. It is killed with SIGKILL at
random moments of three kinds in turn: after some steps, while a checkpoint is being written, and while it starts; each
time the same command with --resume continues it. Then it runs a few steps more and ends; a second run,
never killed, takes as many steps. Exits with 1 if the two differ.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it works without installation

from benchmarks import common

BACKENDS = ("numpy", "numba")
SETTINGS = [
    "--n-layer=2", "--n-head=2", "--n-embd=64", "--block-size=32", "--batch-size=4", "--grad-accum=2", "--dropout=0.1",
    "--eval-interval=40", "--eval-iters=2", "--checkpoint-interval=5", "--warmup-iters=20", "--lr=1e-2",
    "--tokenizer=char",
]  # fmt: skip
ENDLESS = 1_000_000  # steps: a run never ends by itself before it is killed, however busy the machine is
MORE_STEPS = 10  # after the last kill
MOMENTS = ("after some steps", "while saving", "while starting")
DEADLINE_S = 600  # of one process, in case it hangs
TEXT = "".join(f"{i} times {j} is {i * j}.\n" for i in range(100) for j in range(20))


class Killed:
    """A run that is started, killed and resumed, always by the same two commands."""

    def __init__(self, folder: Path, backend: str, settings: list[str], rng: random.Random) -> None:
        self.folder = folder
        data = folder.parent / "text.txt"
        self.settings = [f"--data={data}", f"--backend={backend}", "--lr-decay-iters=1000", *settings]
        self.rng = rng
        self.kills: list[dict[str, Any]] = []
        self.output = ""

    def start(self, max_iters: int = ENDLESS) -> subprocess.Popen[str]:
        """Start the run, or resume it from its newest checkpoint."""
        begun = any(self.folder.glob("step-*"))
        words = ["--resume", str(self.folder)] if begun else [*self.settings, f"--out={self.folder}"]
        command = [sys.executable, str(common.ROOT / "train.py"), *words, f"--max-iters={max_iters}"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def kill(self, moment: str) -> None:
        """Start it, wait for the moment, and kill it. Raises RuntimeError if it ends by itself before."""
        process = self.start()
        if moment == "while starting":
            time.sleep(self.rng.uniform(0, 1.5))
        else:
            before = self._size()
            self._wait(process, lambda: self._size() > before)
            time.sleep(self.rng.uniform(0, 0.3))
        if moment == "while saving":
            self._wait(process, lambda: any(self.folder.glob(".*.writing")))
            time.sleep(self.rng.uniform(0, 0.01))
        process.kill()
        self.output += process.communicate()[0]
        if process.returncode >= 0:
            raise RuntimeError(f"ended by itself with {process.returncode}, before it was killed:\n{self.output}")
        kill = {"moment": moment, "steps": self.steps(), "half_saved": any(self.folder.glob(".*.writing"))}
        self.kills.append(kill)

    def finish(self, max_iters: int) -> None:
        """Start it a last time, and let it end after that many steps in total."""
        process = self.start(max_iters)
        self.output += process.communicate(timeout=DEADLINE_S)[0]
        if process.returncode != 0:
            raise RuntimeError(f"ended with {process.returncode}:\n{self.output}")

    def results(self) -> dict[str, bytes]:
        """What has to be equal at the end."""
        step = self.folder / f"step-{self.steps():06d}"
        state = json.loads((step / "state.json").read_text())
        kept = {name: state[name] for name in ("step", "rng", "best_val_loss", "best_step", "skipped")}
        files = [step / "model.safetensors", step / "optimizer.safetensors", self.folder / "metrics.jsonl"]
        return {"state": json.dumps(kept).encode(), **{file.name: file.read_bytes() for file in files}}

    def steps(self) -> int:
        """The number of steps so far, according to its metrics."""
        metrics = self.folder / "metrics.jsonl"
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    def _size(self) -> int:
        metrics = self.folder / "metrics.jsonl"
        return metrics.stat().st_size if metrics.exists() else 0

    def _wait(self, process: subprocess.Popen[str], holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not holds() and process.poll() is None:
            if time.monotonic() > deadline:
                process.kill()
                raise RuntimeError(f"nothing happened for {DEADLINE_S} s:\n{process.communicate()[0]}")
            time.sleep(0.0005)


def compare(backend: str, kills: int, seed: int, settings: list[str], folder: Path) -> dict[str, Any]:
    """Kill and resume one run, do not kill another, and return what differs after as many steps."""
    (folder / "text.txt").write_text(TEXT)
    rng = random.Random(seed)
    killed, whole = (Killed(folder / name, backend, settings, rng) for name in ("killed", "whole"))
    for i in range(kills):
        killed.kill(MOMENTS[i % len(MOMENTS)])
    steps = killed.steps() + MORE_STEPS
    for run in (killed, whole):
        run.finish(steps)
    expected, found = whole.results(), killed.results()
    return {
        "backend": backend, "steps": steps, "kills": killed.kills,
        "damaged": killed.output.count("which is damaged"),
        "differs": [name for name in expected if found[name] != expected[name]],
    }  # fmt: skip


def main() -> int:
    """Compare, print a table, and return 0 if nothing differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=common.at_least(1), default=20, help="of every backend")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--seed", type=common.at_least(0), default=0, help="decides the moments")
    parser.add_argument("--out", help="the JSON file (default: a new one in results/)")
    options = parser.parse_args()
    env = common.environment(common.available_threads(), packages=("numpy", "numba"))
    print(common.environment_line(env))
    rows = []
    for backend in options.backends:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(compare(backend, options.kills, options.seed, SETTINGS, Path(folder)))
        print(line_of(rows[-1]), flush=True)
    common.write_json(
        common.result_path("kill_resume", options.out), {"program": "kill_resume", "environment": env, "runs": rows}
    )
    return 1 if any(row["differs"] for row in rows) else 0


def line_of(row: dict[str, Any]) -> str:
    """The result of one backend in words."""
    counts = Counter(kill["moment"] for kill in row["kills"])
    moments = ", ".join(f"{count} {moment}" for moment, count in counts.items())
    halves = sum(kill["half_saved"] for kill in row["kills"])
    outcome = "weights, moments and metrics the same bytes"
    if row["differs"]:
        outcome = f"DIFFERENT: {', '.join(row['differs'])}"
    return (
        f"{row['backend']:6} {row['steps']} steps, killed {len(row['kills'])} times ({moments}), "
        f"{halves} with half a checkpoint on the disk, {row['damaged']} damaged: {outcome}"
    )


if __name__ == "__main__":
    sys.exit(main())
