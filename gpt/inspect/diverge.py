"""`python -m gpt inspect diverge RUN RUN`: the first step, op and element at which two runs stop agreeing."""

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import tensorgrad as tg
from gpt.checkpoint import load_checkpoint
from gpt.checkpoint.files import METRICS
from gpt.checkpoint.run_folder import is_same
from gpt.checkpoint.steps import newest_checkpoint, step_folders, step_of
from gpt.cli import ArgumentParser, one_of, use_backend
from gpt.cli import run as run_program
from gpt.config import BACKENDS, UserError
from gpt.evaluate.compare import config_of, differences, names_of
from gpt.finetune.tasks import task_of
from gpt.heartbeat import Heartbeat
from gpt.inspect.trace import Comparison, Difference, Trace, on_host
from gpt.train.flags import Arguments
from gpt.train.loop import batch_of, learning_rate
from gpt.train.run import Run, new_run, resumed_run
from gpt.train.step import TrainingStep
from gpt.weights.initial import load_initial
from tensorgrad.backend.threads import cpu_count

EXAMPLES = """examples:
  python -m gpt inspect diverge checkpoints/RUN checkpoints/OTHER
  python -m gpt inspect diverge checkpoints/RUN --threads 1 2
  python -m gpt inspect diverge checkpoints/RUN/step-001000 --backends numpy numba --steps 3

Two runs are repeated from the newest checkpoint before their metrics differ. The exit status is 0 where they agree, and
1 where they do not."""

Metrics = dict[int, dict[str, Any]]  # by step, counted from 1


@dataclass(frozen=True)
class Side:
    """One of the two: a run, and in what way it is repeated."""

    name: str
    folder: Path
    settings: dict[str, Any]  # in place of those of the run: backend, threads
    other: Path  # the run that it is compared with, which may have branched off from it, or it from that

    def checkpoint(self, step: int) -> Path | None:
        """The checkpoint of that step, of the run or else of the other; None for 0, the beginning."""
        return {**dict(step_folders(self.other)), **dict(step_folders(self.folder))}[step] if step else None


class Repetition:
    """A run that is taken up at a checkpoint, or begun anew, and takes its steps without writing anything.

    The two repetitions take turns, so each selects its backend, threads and random numbers again for every step.
    """

    def __init__(self, side: Side, step: int, scratch: Path) -> None:
        checkpoint = side.checkpoint(step)
        own = checkpoint if checkpoint is not None and is_same(checkpoint.parent, side.folder) else side.folder
        state = load_checkpoint(own, optimizer=False).state
        config = state.train_config
        given: dict[str, Any] = {**side.settings, "cuda_graph": False, "logger": None}  # a CUDA graph runs no op
        given["threads"] = given.get("threads") or config.threads or cpu_count()
        given["out"] = str(scratch / f"{len(list(scratch.iterdir()))}")
        if checkpoint is not None:
            settings = {name: value for name, value in config.to_dict().items() if name != "init_from"}
            self.run: Run = resumed_run(Arguments({**settings, **given}, resume=str(checkpoint)), task_of)
        else:
            config = replace(config, **given)
            initial = load_initial(config.init_from, config.n_head, config.quantize) if config.init_from else None
            self.run = new_run(config, initial, task_of(state))
        self.run.model.train()
        self.run.model.recompute = self.run.config.recompute
        self._rng, self._numpy_products = tg.random.default_generator.state_dict(), state.numpy_products
        self._take_step = TrainingStep(self.run.model, self.run.optimizer, self.run.config, scaler=self.run.scaler)

    def step(self, trace: Trace | None = None) -> dict[str, Any]:
        """Take a step, with a trace of all of it if one is given; return its learning rate, loss and gradient norm."""
        run, config = self.run, self.run.config
        use_backend(config.backend, config.threads, config.dtype, numpy_products=self._numpy_products)
        tg.random.default_generator.load_state_dict(self._rng)
        lr, batch = learning_rate(config, run.step), batch_of(run, run.step)
        if trace is None:
            loss, grad_norm = self._take_step(*batch[:2], lr, *batch[2:])
        else:
            trace.add("the learning rate", lr)
            for name, x in zip("xyz", batch, strict=False):
                trace.add(f"{name} of the batch", x)
            with trace:
                loss, grad_norm = self._take_step(*batch[:2], lr, *batch[2:])
            trace.add("the loss of the step", loss)
            trace.add("the norm of the gradient", grad_norm)
            for name, x in self.state().items():
                trace.add(f"the update of {name}", x)
        run.step += 1
        self._rng = tg.random.default_generator.state_dict()
        return {"lr": lr, "loss": float(loss), "grad_norm": float(grad_norm)}

    def state(self) -> dict[str, Any]:
        """The parameters that are trained, and the optimizer's moments."""
        parameters = {name: p.data for name, p in self.run.model.named_parameters() if p.requires_grad}
        return {**parameters, **self.run.optimizer.state_dict()["state"]}


class Digest:
    """A file that keeps nothing of what is written but a checksum: enough to see that something differs."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b()

    def write(self, data: bytes) -> None:
        """Add to the checksum."""
        self._hash.update(data)

    def __str__(self) -> str:
        return self._hash.hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """Print where the two differ; return 1 where they do, and else 0."""
    args = build_parser().parse_args(argv)
    sides, given_step = sides_of(args)
    metrics = read_metrics(sides[0].folder), read_metrics(sides[1].folder)
    if len(args.run) == 2:
        for line in differences({side.name: config_of(side.folder) for side in sides}):
            print(f"setting     {line}")
        recorded = first_difference(*metrics)
        print(f"metrics     {_metrics_text(*metrics, recorded)}")
        span = span_of_two(*sides, recorded)
        if span is None:
            return 0
    else:
        recorded, span = None, span_of_one(sides[0], given_step, args.steps)
    start, last = span
    print("repeated    from " + (f"the checkpoint of step {start}" if start else "the beginning"), flush=True)
    with Heartbeat("repeating the steps"), tempfile.TemporaryDirectory() as scratch:
        lines, differ = compare(sides, start, last, metrics, Path(scratch))
    print("\n".join(lines))
    if len(args.run) == 2 and not differ:
        print("            so what made the runs differ is neither in their settings nor in their checkpoints")
    return int(differ or len(args.run) == 2)


def sides_of(args: argparse.Namespace) -> tuple[tuple[Side, Side], int | None]:
    """Return the two sides of the command line, and the step of the checkpoint that it names, if it does."""
    paths = [Path(os.path.expanduser(path)) for path in args.run]
    if len(paths) > 2 or (len(paths) == 2) == bool(args.backends or args.threads):
        raise UserError("inspect diverge compares two runs, or one with itself by --backends A B or --threads N M")
    if args.steps < 1:
        raise UserError(f"--steps {args.steps}: at least 1 is needed")
    step = step_of(paths[0]) if len(paths) == 1 else None
    folders = [newest_checkpoint(path.parent if step is not None else path).parent for path in paths]
    if len(paths) == 2:
        names = names_of(folders)
        return (Side(names[0], folders[0], {}, folders[1]), Side(names[1], folders[1], {}, folders[0])), None
    ways = [
        {**({"backend": args.backends[i]} if args.backends else {}),
         **({"threads": args.threads[i]} if args.threads else {})}
        for i in range(2)
    ]  # fmt: skip
    names = [" ".join(f"{name} {value}" for name, value in way.items()) for way in ways]
    first, second = (Side(name, folders[0], way, folders[0]) for name, way in zip(names, ways, strict=True))
    return (first, second), step


def compare(
    sides: tuple[Side, Side], start: int, last: int, metrics: tuple[Metrics, Metrics], scratch: Path
) -> tuple[list[str], bool]:
    """Repeat both from step `start` to `last`; return what is to say about it, and whether they differ."""
    a, b = (Repetition(side, start, scratch) for side in sides)
    names = "first of each pair: " + sides[0].name
    if found := different_state(a, b):
        return [f"differs     at the start, {found[0]}", *_indented(found[1:]), f"            ({names})"], True
    lines: list[str] = []
    for step in range(start, last):
        digests = [Digest() for _ in sides]
        results = [r.step(Trace(r.run.model, digest)) for r, digest in zip((a, b), digests, strict=True)]
        for side, result, known in zip(sides, results, metrics, strict=True):
            if not lines and not side.settings and step + 1 in known and known[step + 1] != result:
                numbers = _numbers(known[step + 1], result)
                lines = [
                    f"not exact   step {step + 1} of {side.name}, when it trained and here, has {numbers}:",
                    "            another version, machine, number of processes or other settings made it",
                ]
        if str(digests[0]) != str(digests[1]):
            return [*lines, *trace_step(sides, start, step, scratch), f"            ({names})"], True
    return [*lines, f"agree       in every bit of every op, through step {last}"], False


def trace_step(sides: tuple[Side, Side], start: int, step: int, scratch: Path) -> list[str]:
    """Repeat both from step `start`, the step after `step` op by op, and return the first differences in it."""
    a, b = (Repetition(side, start, scratch) for side in sides)
    for _ in range(start, step):
        a.step()
        b.step()
    with tempfile.TemporaryFile() as file:
        trace = Trace(a.run.model, file)
        a.step(trace)
        comparison = Comparison(b.run.model, trace, file)
        b.step(comparison)
    if comparison.first is None:
        return [
            f"differs     step {step + 1}, but in no number when it is repeated: its results vary from one time to the",
            "            next, or the sign of a zero or the bits of a NaN are all that differs",
        ]
    first, *more = comparison.first.lines()
    lines = [f"differs     step {step + 1}, {first}", *_indented(more)]
    if comparison.beyond is None:
        return [*lines, "tolerance   every other difference in this step is within it, too"]
    if comparison.beyond is comparison.first:
        return lines
    first, *more = comparison.beyond.lines()
    return [*lines, f"tolerance   first exceeded in {first}", *_indented(more)]


def different_state(a: Repetition, b: Repetition) -> list[str]:
    """Return what is first different between the weights and moments of both; nothing where they are equal."""
    mine, other = a.state(), b.state()
    for name, x in mine.items():
        y = other.get(name)
        if y is None or x.shape != y.shape:
            raise UserError(f"{name} is {x.shape} in one run and {'absent' if y is None else y.shape} in the other: "
                            "only runs of the same model can be compared op by op")  # fmt: skip
        if (difference := Difference(name, on_host(x), on_host(y))).n:
            return difference.lines()
    return []


def read_metrics(folder: Path) -> Metrics:
    """Return the learning rate, loss and gradient norm of every step that a run has written."""
    rows: Metrics = {}
    if (folder / METRICS).is_file():
        for line in (folder / METRICS).read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
                rows[int(row["step"])] = {name: row[name] for name in ("lr", "loss", "grad_norm")}
            except (ValueError, KeyError, TypeError):
                continue  # an incomplete line
    return rows


def first_difference(a: Metrics, b: Metrics) -> int | None:
    """Return the first step in which the metrics differ, of those that both have."""
    return next((step for step in sorted(a.keys() & b.keys()) if a[step] != b[step]), None)


def span_of_two(a: Side, b: Side, recorded: int | None) -> tuple[int, int] | None:
    """Return the step to repeat two runs from, and the step to which; None where nothing differs in what they saved.

    It begins at the newest checkpoint before the recorded difference, if there is one, that is the same in both, or
    that only one of them has, as where the other has branched off from it.
    """
    mine, others = ({step for step, _ in step_folders(side.folder)} for side in (a, b))
    usable = mine & others if recorded is None else {step for step in mine | others if step < recorded}
    last = recorded
    for step in sorted(usable, reverse=True):
        if _same_checkpoint(a, b, step):
            if last is not None:
                return step, last
            print(f"agree       in every bit of the checkpoint of step {step}, the newest that both have")
            return None
        last = last or step
    if last is None:
        print("agree       in these, but they have no checkpoint of the same step")
        return None
    return 0, last


def span_of_one(side: Side, given: int | None, n_steps: int) -> tuple[int, int]:
    """Return the step to repeat a run from, and the step to which.

    It begins at the given checkpoint, or the newest before the end of the run; else at the beginning.
    """
    steps = dict(step_folders(side.folder))
    if given is not None and given not in steps:
        raise UserError(f"{side.folder}: no checkpoint of step {given}")
    end = load_checkpoint(steps[max(steps)], optimizer=False).state.train_config.max_iters
    if given is not None and given >= end:
        raise UserError(f"{steps[given]} is the end of its run: give an earlier checkpoint, or the run itself")
    start = given or max((step for step in steps if step < end), default=0)
    return start, min(start + n_steps, end)


def _same_checkpoint(a: Side, b: Side, step: int) -> bool:
    mine, other = (load_checkpoint(side.checkpoint(step) or "") for side in (a, b))
    x, y = ({**c.weights, **(c.optimizer or {})["state"]} for c in (mine, other))
    return x.keys() == y.keys() and all(np.array_equal(array, y[name]) for name, array in x.items())


def _metrics_text(a: Metrics, b: Metrics, differing: int | None) -> str:
    common = a.keys() & b.keys()
    if not common:
        return "there is no step of which both have some"
    if differing is None:
        return f"equal in all {len(common)} steps that both have"
    return f"equal before step {differing}, which has {_numbers(a[differing], b[differing])}"


def _numbers(a: dict[str, Any], b: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value} and {b[name]}" for name, value in a.items() if value != b[name])


def _indented(lines: list[str]) -> list[str]:
    return [f"            {line}" for line in lines]


def build_parser() -> ArgumentParser:
    """Return the flags of this program."""
    parser = ArgumentParser(
        prog="python -m gpt inspect diverge", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Repeat two runs, or one in two ways, and find the first step, op and element that differ.",
    )  # fmt: skip
    add = parser.add_argument
    add("run", nargs="+", metavar="RUN", help="two folders of runs; or one, or one of its checkpoints")
    add("--backends", nargs=2, type=one_of(*BACKENDS), metavar="NAME", help="repeat the run on these two backends")
    add("--threads", nargs=2, type=int, metavar="N", help="repeat the run on these two numbers of CPU threads")
    add("--steps", type=int, default=10, metavar="N", help="how many steps of one run to repeat (default: 10)")
    return parser


if __name__ == "__main__":
    sys.exit(run_program(main, prog="python -m gpt inspect diverge"))
