"""`train.py --dry-run`: how large a run is and how long it takes, told before anything is written."""

from __future__ import annotations

import ctypes
import io
import math
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import tensorgrad as tg
from gpt.checkpoint import load_checkpoint
from gpt.checkpoint.run_folder import CHECKPOINTS
from gpt.checkpoint.step_folders import newest_checkpoint
from gpt.cli import use_backend
from gpt.config import TrainConfig
from gpt.data import DataLoader, random_windows
from gpt.evaluate.plot import History, draw_run
from gpt.fused import FusedGPT
from gpt.tokenizer import Tokenizer
from gpt.train.config_file import describe
from gpt.train.flags import Arguments
from gpt.train.footprint import Memory, checkpoint_bytes, count_parameters, disk_bytes, flops_per_token, memory
from gpt.train.run import make_optimizer, make_scaler, open_data
from gpt.train.step import UNSCALED, accumulate_gradients

STEPS, ENOUGH_S = 5, 20.0  # timed steps: so many, or as many as are begun in that time
INDENT = " " * 9


def dry_run(arguments: Arguments) -> int:
    """Print what a run with these arguments is and needs; take a few steps of it in memory, and write nothing."""
    config, tokenizer, step = _asked_for(arguments)
    chosen = use_backend(config.backend, config.threads, config.dtype)
    backend = tg.get_backend().name
    tokenizer, train, val = open_data(config, tokenizer)
    vocab_size = tokenizer.vocab_size
    _warm_up(config)
    _give_back_freed_memory()
    before = Resident.now()
    need = memory(config, vocab_size, backend)

    print(f"backend  {chosen}")
    print(f"data     {config.data}: {len(train.tokens):,} tokens to train on, {len(val.tokens):,} to validate with")
    for line in _model_lines(config, vocab_size):
        print(line)
    for line in _memory_lines(config, need, before):
        print(line)
    print(*_disk_lines(config, vocab_size), sep="\n", flush=True)
    if before.in_use + need.peak > available_memory() + before.in_use:
        print(f"time     not measured: {_size(need.peak)} more are not to be had, {_size(available_memory())} are free")
    else:
        print(*_time_lines(config, vocab_size, train, val, step, before), sep="\n")
    print("config   all of it:")
    print(*describe(config, INDENT), sep="\n")
    return 0


def _asked_for(arguments: Arguments) -> tuple[TrainConfig, Tokenizer | None, int]:
    """The configuration, and of a run to resume its tokenizer and the steps it has done."""
    if arguments.resume is None:
        return arguments.train_config(), None, 0
    place = Path(arguments.resume or arguments.given.get("out") or CHECKPOINTS)
    checkpoint = load_checkpoint(place if arguments.resume else newest_checkpoint(place), optimizer=False)
    config = arguments.train_config(under=checkpoint.state.train_config.to_dict())
    return config, checkpoint.tokenizer, checkpoint.state.step


def _warm_up(config: TrainConfig) -> None:
    """Load every kernel, with a model too small to count, and what draws: the program then has its size."""
    tiny = replace(config, n_layer=1, n_head=1, n_embd=64, block_size=128, batch_size=2, grad_accum=1)
    _Steps(tiny, 16, None).take(0)
    if config.plot:
        with suppress(ImportError):
            draw_run(io.BytesIO(), History(), "")


@dataclass(frozen=True)
class Resident:
    """Physical memory of this process in bytes."""

    in_use: int
    peak: int

    @classmethod
    def now(cls) -> Resident:
        """Return what it is now, and at most was."""
        resident, peak = 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if sys.platform == "linux":
            lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            resident, peak = (int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
        return cls(resident or peak, peak)


def _give_back_freed_memory() -> None:
    """Have the allocator give back what it keeps for the next arrays, which would not come on top of them."""
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def available_memory() -> int:
    """Return the bytes that can be taken without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        return sys.maxsize


# --------------------------------------------------------------------------------------------------
# What is said


def _model_lines(config: TrainConfig, vocab_size: int) -> Iterator[str]:
    shape = config.model_config(vocab_size)
    parameters = count_parameters(shape)
    flops, again = flops_per_token(shape), flops_per_token(shape, config.recompute)
    yield (
        f"model    {parameters.total:,} parameters, {parameters.total - parameters.embeddings:,} without embeddings: "
        f"{shape.n_layer} layers, {shape.n_head} heads, width {shape.n_embd}, window {shape.block_size}"
    )
    more = f", {again:,} with what is recomputed" if again != flops else ""
    tokens = config.tokens_per_step
    yield f"FLOPs    {flops:,} a token{more}; {again * tokens:.3g} a step of {tokens:,} tokens"


def _memory_lines(config: TrainConfig, need: Memory, before: Resident) -> Iterator[str]:
    accumulated = f", kept over {config.grad_accum} batches" if config.grad_accum > 1 else ""
    recomputed = " (recomputed)" if config.recompute else ""
    yield f"memory   {_size(predicted_peak(need, before))} at the most (predicted), of which"
    yield (
        f"{INDENT}{_size(before.in_use)} program and data, {_size(need.weights)} weights, "
        f"{_size(need.moments)} moments;"
    )
    yield f"{INDENT}{_size(need.gradients)} gradients{accumulated}, {_size(need.activations)} activations{recomputed},"
    yield f"{INDENT}{_size(need.logits)} logits and loss, but these not all at one time"
    if need.snapshot:
        yield f"{INDENT}and {_size(need.snapshot)} for checkpoints beside training (not with --async-save False)"


def predicted_peak(need: Memory, before: Resident) -> int:
    """Return the most physical memory that the process will hold: also what reading the data has already taken."""
    return max(before.peak, before.in_use + need.peak)


def _disk_lines(config: TrainConfig, vocab_size: int) -> Iterator[str]:
    one = _size(checkpoint_bytes(config.model_config(vocab_size)))
    kept = config.keep_checkpoints
    yield (
        f"disk     {_size(disk_bytes(config, vocab_size))} at the most: {one} a checkpoint, of which there are "
        f"the last {kept}, the best and the one being written"
    )


def _time_lines(
    config: TrainConfig, vocab_size: int, train: DataLoader, val: DataLoader, step: int, before: Resident
) -> Iterator[str]:
    steps = _Steps(config, vocab_size, train)
    seconds = list(_timed(steps))
    validation = steps.validation_s(val)
    left = max(config.max_iters - step, 0)
    validations = math.ceil(left / config.eval_interval)
    one = median(seconds)
    whole = left * one + validations * config.eval_iters * validation
    yield f"time     {duration(whole)} for {left:,} steps and {validations:,} validations:"
    speed = f"{config.tokens_per_step / one:,.0f} tokens/s"
    yield f"{INDENT}{one * 1e3:,.3g} ms a step, {speed}, by {len(seconds)} steps just taken"
    if tg.get_backend().array_type.__module__.startswith("numpy"):
        need = replace(config, async_save=False)
        expected = predicted_peak(memory(need, vocab_size, tg.get_backend().name), before)
        held = Resident.now().peak
        yield f"{INDENT}they held {_size(held)} of memory, {held / expected - 1:+.1%} of what is predicted for them"


class _Steps:
    """A model that is trained in memory, on batches of the data or, without any, on one token."""

    def __init__(self, config: TrainConfig, vocab_size: int, data: DataLoader | None) -> None:
        self.config, self.data = config, data
        before = tg.random.default_generator.state_dict()
        self.model = FusedGPT(config.model_config(vocab_size))
        tg.random.default_generator.load_state_dict(before)
        if config.half:
            self.model.astype(config.dtype)
        self.model.train()
        self.model.recompute = config.recompute
        self.optimizer, self.scaler = make_optimizer(self.model, config), make_scaler(config)

    def take(self, step: int) -> float:
        """Take one step and return the seconds that it took."""
        started, config = time.perf_counter(), self.config
        n_windows = config.batch_size * config.grad_accum
        if self.data is None:
            x = y = tg.get_backend().xp.zeros((n_windows, config.block_size), "int64")
        else:
            x, y = random_windows(self.data.tokens, self.data.block_size, n_windows, self.data.generator, step)
        accumulate_gradients(self.model, x, y, config.batch_size, self.scaler or UNSCALED)
        self.scaler.unscale_(self.optimizer)
        tg.optim.clip_grad_norm(list(self.model.parameters()), config.grad_clip or math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return time.perf_counter() - started

    def validation_s(self, loader: DataLoader) -> float:
        """Return the seconds that one batch of a validation takes."""
        x, y = loader.batch(0)
        started = time.perf_counter()
        with tg.no_grad():
            float(self.model.loss(x, y).item())
        return time.perf_counter() - started


def _timed(steps: _Steps) -> Iterator[float]:
    """Seconds of a few steps; the first, which touches new memory, is not one of them unless there is time for one."""
    first = steps.take(0)
    ends = time.perf_counter() + ENOUGH_S - first
    if time.perf_counter() >= ends:
        yield first
        return
    for step in range(1, STEPS + 1):
        yield steps.take(step)
        if time.perf_counter() >= ends:
            return


def _size(n_bytes: float) -> str:
    """1536000 -> 1.54 MB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}" if n_bytes < 999.5 * size else f"{n_bytes / size:,.0f} {unit}"
    return f"{n_bytes / 1e3:.3g} kB"


def duration(seconds: float) -> str:
    """90061 -> 1 d 1 h; two units are enough."""
    parts = [(int(seconds // 86400), "d"), (int(seconds // 3600) % 24, "h"), (int(seconds // 60) % 60, "min")]
    parts.append((int(seconds % 60), "s"))
    first = next((i for i, (n, _) in enumerate(parts) if n), len(parts) - 1)
    return " ".join(f"{n} {unit}" for n, unit in parts[first : first + 2])
