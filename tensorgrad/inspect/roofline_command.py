"""python -m tensorgrad roofline: every op of a training step beside the machine's roofs, and at its three levels.

The step is that of a small transformer with random weights. Exits with status 0, 1 where two levels of an op disagree,
2 for a mistake on the command line.
"""

import argparse
import difflib
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

from tensorgrad import backend, cli, optim, random
from tensorgrad.autograd import Observer
from tensorgrad.gradcheck.cases import cases
from tensorgrad.gradcheck.precision import TOLERANCE
from tensorgrad.inspect.levels import LINE_HEADING, Levels, levels
from tensorgrad.inspect.roofline import Roofline, roofline
from tensorgrad.inspect.transformer import KINDS, Sizes, Transformer, random_batch
from tensorgrad.memory import keep_freed_memory
from tensorgrad.tensor import Tensor

DISAGREE = 1  # exit status
HELP = {
    "n_layer": "layers", "n_head": "heads of attention", "n_embd": "width", "block_size": "tokens of a sequence",
    "batch_size": "sequences", "vocab_size": "different tokens",
}  # fmt: skip
PICTURE = Path("roofline.png")
SILENCE_S = 2.5  # after which a line says how far it is


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    _check(parser, options)
    keep_freed_memory()
    random.manual_seed(0)
    report: dict[str, Any] = {"model": options.model, "plain": options.plain, "sizes": asdict(options.sizes)}
    try:
        if options.op:
            calls = [_find(parser, options, name) for name in options.op]
        else:
            step, optimizer = _step(options, options.model, options.plain)
            found = _print_step(options, step, optimizer)
            report["step"] = found.as_dict()
            busy = {row.op for row in found.rows if row.share is not None}
            calls = [call for name, call in _calls(step).items() if name in busy]
        report["levels"] = [of_op.as_dict() for of_op in _print_levels(calls, options.rounds)]
    except AssertionError as error:
        print(f"python -m tensorgrad roofline: {error}", file=sys.stderr)
        return DISAGREE
    except MemoryError as error:
        print(f"python -m tensorgrad roofline: error: {error}; smaller sizes need less memory", file=sys.stderr)
        return cli.MISTAKE
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(
        prog="python -m tensorgrad roofline", allow_abbrev=False,
        description="Measure every op of a training step: FLOPs, bytes and time, beside what this machine can do. Then "
        "run each at its three levels: plain array code, compiled for the CPU, and CUDA.",
    )  # fmt: skip
    add = parser.add_argument
    add("--op", action="append", metavar="NAME", help="the three levels of this op alone (may be given several times)")
    add("--model", choices=KINDS, default="gpt", help="whose step (default: gpt)")
    add("--plain", action="store_true", help="with plain ops in place of fused ones")
    for field in fields(Sizes):
        flag = f"--{field.name.replace('_', '-')}"
        add(flag, type=_positive, default=field.default, metavar="N", help=f"{HELP[field.name]} ({field.default})")
    add("--backend", default="auto", metavar="NAME", help=f"auto (default), {', '.join(backend.NAMES)}")
    add("--dtype", choices=list(TOLERANCE), default="float32", help="of the numbers (default: float32)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: every core)")
    add("--rounds", type=_positive, default=10, metavar="N", help="repetitions of every measurement (10)")
    add("--json", type=Path, metavar="FILE", help="write all figures as well")
    add("--out", type=Path, metavar="FILE", help=f"the picture, .png, .svg or .pdf (default: {PICTURE})")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return int(text)


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Choose the backend; report a mistake in one line."""
    options.sizes = sizes = Sizes(**{field.name: getattr(options, field.name) for field in fields(Sizes)})
    if sizes.n_embd % sizes.n_head:
        parser.error(f"--n-embd {sizes.n_embd} is not a multiple of --n-head {sizes.n_head}")
    if options.model == "llama" and sizes.n_embd // sizes.n_head % 2:
        parser.error(
            f"--n-embd {sizes.n_embd} / --n-head {sizes.n_head} is odd: rotary positions turn pairs of numbers"
        )
    for name in options.op or []:
        if name not in cases:
            near = difflib.get_close_matches(name, cases, 1)
            hint = f"did you mean {near[0]!r}?" if near else "tensorgrad/ops/ has them all"
            parser.error(f"unknown op {name!r}; {hint}")
        if not cases[name].gradient:
            parser.error(f"op {name!r} has no gradient to measure")
    try:
        used = backend.use_backend(options.backend)
        if options.threads is not None:
            backend.set_num_threads(options.threads)
    except (ValueError, backend.BackendUnavailable) as error:
        parser.error(str(error))
    if lacks := used.backend.lacks(options.dtype):
        parser.error(f"dtype {options.dtype}: {lacks}")
    if options.out is not None and options.out.suffix not in (".png", ".svg", ".pdf"):
        parser.error(f"--out {options.out} ends neither in .png nor .svg nor .pdf")
    for path in (options.out, options.json):
        try:
            if path is not None:  # one that cannot be written is an error now, not after the measurement
                open(path, "a", encoding="utf-8").close()
        except OSError as error:
            parser.error(f"cannot write {path}: {error.strerror}")


def _step(options: argparse.Namespace, model_kind: str, plain: bool) -> tuple[Callable[[], None], Any]:
    """A step, forward and backward, and the optimizer of its model."""
    model = Transformer(options.sizes, model_kind, plain).astype(options.dtype)
    batch = random_batch(options.sizes)
    half = options.dtype in ("float16", "bfloat16")
    return lambda: model(*batch).backward(), optim.AdamW(model.parameters(), master_weights=half)


def _with_progress(step: Callable[[], None], times: int) -> Callable[[], None]:
    """The step, which says on stderr how often it was run, where it is slow."""
    done, last = 0, time.monotonic()

    def run() -> None:
        nonlocal done, last
        if done and time.monotonic() - last > SILENCE_S:
            print(f"measuring: {done} of {times} steps", file=sys.stderr, flush=True)
            last = time.monotonic()
        step()
        done += 1

    return run


def _print_step(options: argparse.Namespace, step: Callable[[], None], optimizer: Any) -> Roofline:
    """Measure and print a step, and draw its picture."""
    n, sizes = sum(p.size for p in optimizer.params), options.sizes
    print(
        f"A training step of a {options.model} with {n:,} parameters: n_layer {sizes.n_layer}, n_head {sizes.n_head}, "
        f"n_embd {sizes.n_embd}; batch {sizes.batch_size} x {sizes.block_size}\n",
        flush=True,
    )
    found = roofline(_with_progress(step, 3 + 2 * options.rounds), optimizer, rounds=options.rounds)
    print(found)
    path = options.out or PICTURE
    try:
        found.save(path)
        print(f"\n{path}: the picture")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        print(f'\nno picture: {package} is not installed: pip install -e ".[plot]"')
    print()
    return found


class _Call(NamedTuple):
    """A call of an op."""

    op: Callable[..., Any]
    operands: list[Any]
    options: dict[str, Any]
    size: int  # the number of elements of all operands


class _Calls(Observer):
    """Keeps the largest call of every op that is recorded."""

    def __init__(self) -> None:
        self.calls: dict[str, _Call] = {}

    def after_op(self, name: str, operands: tuple[Any, ...], output: Any, op: Any, options: dict[str, Any]) -> None:
        """Keep the call with its operands on the host, if it is the largest so far."""
        first = output[0] if isinstance(output, list) else output
        size = sum(getattr(x, "size", 0) for x in operands)
        if first.edge is not None and (name not in self.calls or size > self.calls[name].size):
            host = [x.numpy() if isinstance(x, Tensor) else x for x in operands]
            given = {key: value for key, value in options.items() if key != "ctx"}
            self.calls[name] = _Call(op, host, given, size)


def _calls(step: Callable[[], None]) -> dict[str, _Call]:
    with _Calls() as found:
        step()
    return found.calls


def _find(parser: argparse.ArgumentParser, options: argparse.Namespace, name: str) -> _Call:
    """A call of that op in a step; of another op, an example of gradcheck's."""
    for model_kind in dict.fromkeys((options.model, *KINDS)):
        for plain in (False, True):
            calls = _calls(_step(options, model_kind, plain)[0])
            if name in calls:
                return calls[name]
    case, k = cases[name], backend.get_backend()
    example = case.examples[0]
    inputs = example.tensors(k, options.dtype)

    @functools.wraps(case.op)
    def call(*operands: Any) -> Any:
        return example.run(case.op, *operands)

    print(f"{name} is in no step: measured on an example of gradcheck's, which is small")
    return _Call(call, inputs, {}, 0)


def _print_levels(calls: Sequence[_Call], rounds: int) -> list[Levels]:
    """Measure and print every op at its levels; a single one in more detail."""
    if len(calls) == 1:
        ((op, operands, options, _),) = calls
        print(found := levels(op, *operands, rounds=rounds, **options))
        return [found]
    print(LINE_HEADING)
    rows = []
    for op, operands, options, _ in calls:
        rows.append(levels(op, *operands, rounds=rounds, **options))
        print(rows[-1].line(), flush=True)
    for level, reason in rows[-1].left_out.items() if rows else ():
        print(f"\n{level} is left out: {reason}")
    return rows


if __name__ == "__main__":
    sys.exit(cli.run(main))
