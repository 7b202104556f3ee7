"""The contenders of train_step.py: our backends, PyTorch's modes, and the matrix products alone."""

import argparse
import dataclasses
from typing import Any

from benchmarks import common
from benchmarks.configurations import Setup
from benchmarks.workers import Worker
from gpt.cli import one_of
from gpt.config import UserError
from tensorgrad import backend

PRODUCTS = "products alone"


def torch_mode(text: str) -> str:
    """An argparse type: eager, compile or compile-max, then +fused and +keep."""
    first, *rest = text.split("+")
    one_of("eager", "compile", "compile-max")(first)
    for word in rest:
        one_of("fused", "keep")(word)
    return "+".join([first, *sorted(set(rest))])


def usable(names: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return the backends that run here, and why the others do not. Raises UserError if none does."""
    reasons = {name: backend.check(name) for name in dict.fromkeys(names)}
    left_out = {name: reason for name, reason in reasons.items() if reason is not None}
    if len(left_out) == len(reasons):
        raise UserError("; ".join(f"{name}: {reason}" for name, reason in left_out.items()))
    return [name for name in reasons if name not in left_out], left_out


def begin(options: argparse.Namespace) -> dict[str, Any]:
    """Print and return the environment; keep the `options.backends` that run here, and print why the others do not."""
    env = common.environment(options.threads, keep=True)
    print(common.environment_line(env))
    options.backends, left_out = usable(options.backends)
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    return env


def start(name: str, setup: Setup, inputs: str, threads: int) -> Worker:
    """Start the process of a contender: one of our backends, a mode of PyTorch, or the products alone."""
    spec: dict[str, Any] = {"setup": dataclasses.asdict(setup)}
    if name == PRODUCTS:
        return Worker(name, "benchmarks.training:Products", spec, threads)
    spec |= {"inputs": inputs, "threads": threads}
    if not name.startswith("torch "):
        return Worker(name, "benchmarks.training:Ours", {**spec, "backend": name}, threads)
    first, *rest = name.removeprefix("torch ").split("+")
    compiled = {"compile": "default", "compile-max": "max"}.get(first, "")
    spec |= {"compiled": compiled, "fused": "fused" in rest}
    return Worker(name, "benchmarks.training:Torch", spec, threads, contender_environment(name))


def contender_environment(name: str) -> dict[str, str]:
    """The environment variables of a mode, besides the number of threads."""
    keep = common.KEEP_MEMORY if name.startswith("torch ") and "keep" in name.split("+") else {}
    # otherwise inductor starts compiler processes that keep running
    return keep | ({"TORCHINDUCTOR_COMPILE_THREADS": "1"} if "compile" in name else {})


def groups_in_memory(ours: list[str], modes: list[str], setup: Setup) -> list[list[str]]:
    """All contenders in one group if they fit into memory; otherwise several, each with our first backend."""
    room = max(int(0.8 * common.memory_available() / setup.memory()), 2)
    groups = [[*ours, *modes]]
    if len(groups[0]) > room:
        rest = [*ours[1:], *modes]
        groups = [[ours[0], *rest[i : i + room - 1]] for i in range(0, len(rest), room - 1)]
    return groups


def colour_of(name: str) -> str:
    """The colour of ours, theirs, or the bound."""
    if name == PRODUCTS:
        return common.BOUND
    return common.THEIRS if name.startswith("torch ") else common.OURS
