"""`train.py --dry-run`: how large a run is and how long it takes, printed before anything is written."""

import ctypes
import io
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

import tensorgrad as tg
from gpt.checkpoint import load_checkpoint
from gpt.checkpoint.run_folder import CHECKPOINTS
from gpt.checkpoint.steps import newest_checkpoint
from gpt.cli import use_backend, user_errors
from gpt.data import Array, Batches
from gpt.data.documents import describe_files
from gpt.evaluate import evaluating
from gpt.evaluate.plot import History, draw_run, why_not
from gpt.lora import LoRA, add_lora
from gpt.tokenizer import Tokenizer
from gpt.train.build import make_optimizer, make_scaler, open_data, resolve
from gpt.train.config import TrainConfig
from gpt.train.config_file import describe
from gpt.train.flags import Arguments
from gpt.train.footprint import (
    Memory,
    as_size,
    checkpoint_bytes,
    disk_bytes,
    flops_per_token,
    memory,
    n_trained,
    weight_bytes,
)
from gpt.train.kernels import compile_ahead
from gpt.train.run import configure, freeze_parts, model_without_weights
from gpt.train.step import TrainingStep
from gpt.train.task import Task, language_model
from gpt.weights import Model, build_model
from gpt.weights.arrays import converted

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

MAX_STEPS, MAX_SECONDS = 5, 20.0  # of the timed steps, of which there is at least one
INDENT = " " * 9


def dry_run(arguments: Arguments) -> int:
    """Print what a run with these arguments is and needs; take a few of its steps in memory, and write nothing."""
    config, tokenizer, step, build = _config_of(arguments)
    chosen = use_backend(config.backend, config.threads, config.dtype)
    config, backend = resolve(config), tg.get_backend().name
    tokenizer, train, val = open_data(config, tokenizer)
    vocab_size = tokenizer.vocab_size
    _warm_up(config)
    has_weights = build is not None
    model = build(vocab_size) if build is not None else model_without_weights(Task(), config, vocab_size)
    freeze_parts(model, config)
    del build  # with all that it has read
    _read_mapped_weights(model)
    _release_freed_memory()
    before, need = Resident.now(), memory(config, model, backend)
    more = need.peak
    if has_weights:  # they are in use already
        before, more = Resident(before.in_use - weight_bytes(model), before.peak), more - weight_bytes(model)
    else:  # a run makes them, and the moments, while it loads its kernels
        before = Resident(before.in_use, before.peak + need.weights + need.moments)

    print(f"backend  {chosen}")
    print(f"data     {config.data}: {train.size:,} {train.unit} for training, {val.size:,} for validation")
    if files := describe_files(config.data):
        print(f"{INDENT}in {files}")
    print(*_model_lines(config, model), sep="\n")
    print(*_memory_lines(config, need, before), sep="\n")
    print(*_disk_lines(config, model), sep="\n", flush=True)
    if more > available_memory():
        sizes = f"{as_size(more)} more are needed, {as_size(available_memory())} are available"
        print(f"time     not measured: {sizes}")
    else:
        if not has_weights:
            model = Task().build_model(config, vocab_size, None)
            freeze_parts(model, config)
        print(*_time_lines(_Trial(config, model, train), val, step, before), sep="\n")
    print("config   all settings:")
    print(*describe(config, INDENT), sep="\n")
    return 0


def _config_of(arguments: Arguments) -> tuple[TrainConfig, Tokenizer | None, int, Callable[[int], Model] | None]:
    """Return the configuration and, where there are weights already, their tokenizer, the steps taken and the model."""
    if arguments.resume is None:
        config, initial = configure(arguments)
        with user_errors():
            LoRA.of(config)
        if initial is None:
            return config, None, 0, None
        initial.require_fit(config)
        return config, initial.tokenizer, 0, lambda vocab_size: Task().build_model(config, vocab_size, initial)
    place = Path(arguments.resume or arguments.given.get("out") or CHECKPOINTS)
    checkpoint = load_checkpoint(place if arguments.resume else newest_checkpoint(place), optimizer=False)
    task = language_model(checkpoint.state)
    config = arguments.train_config(under=checkpoint.state.train_config.to_dict())
    return config, checkpoint.tokenizer, checkpoint.state.step, lambda _: task.restore_model(checkpoint, config)


def _warm_up(config: TrainConfig) -> None:
    """Load every kernel as a run does, and the plotting library, so that they are part of the program's size."""
    if (compilation := compile_ahead(config)) is not None:
        compilation.wait()
    tiny = replace(
        config, n_layer=1, n_head=1, n_kv_head=None, n_embd=64, block_size=128, batch_size=2, freeze=None
    )
    how = "q4_1" if config.quantize == "file" else config.quantize
    weights = build_model(shape := tiny.model_config(16)).state_dict()
    model = build_model(shape, plain=config.plain, weights={n: converted(n, a, how) for n, a in weights.items()})
    if lora := LoRA.of(config):
        add_lora(model, lora)
    _Trial(tiny, model, None).take_step(0)
    if config.plot:
        try:
            draw_run(io.BytesIO(), History(), "")
        except Exception as error:  # of any kind: the run would continue without its plot
            print(f"no plot of the losses: {why_not(error)}")


@dataclass(frozen=True)
class Resident:
    """Physical memory of this process in bytes; 0 where the system does not say it, as Windows."""

    in_use: int
    peak: int

    @classmethod
    def now(cls) -> "Resident":
        """Return what it is now, and the most that it was."""
        resident = peak = 0
        if resource is not None:
            unit = 1 if sys.platform == "darwin" else 1024
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        if sys.platform == "linux":
            lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            resident, peak = (int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
        return cls(resident or peak, peak)


def _release_freed_memory() -> None:
    """Make the C library return freed memory to the system: new arrays would use it, so it must not be counted."""
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _read_mapped_weights(model: Model) -> None:
    """Have the pages of quantised weights in memory that are mapped from a file, as they are during training."""
    for array in model.state_dict().values():
        if isinstance(array, tg.QuantizedArray):
            array.blocks[:, 0].sum()


def available_memory() -> int:
    """Return the bytes that can be allocated without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        return sys.maxsize


def _model_lines(config: TrainConfig, model: Model) -> Iterator[str]:
    shape, trained = model.config, n_trained(model.parameters())
    parameters = shape.count_parameters()
    flops, total = flops_per_token(model), flops_per_token(model, config.recompute)
    yield (
        f"model    {parameters.total:,} parameters, {parameters.total - parameters.embeddings:,} without embeddings: "
        f"{shape.n_layer} layers, {shape.n_head} heads, width {shape.n_embd}, window {shape.block_size}"
    )
    if trained != parameters.total:
        yield f"trained  {trained:,} parameters"
    more = f", {total:,} with recomputation" if total != flops else ""
    tokens = config.tokens_per_step
    yield f"FLOPs    {flops:,} per token{more}; {total * tokens:.3g} per step of {tokens:,} tokens"


def _memory_lines(config: TrainConfig, need: Memory, before: Resident) -> Iterator[str]:
    accumulated = f", kept over {config.grad_accum} batches" if config.grad_accum > 1 else ""
    recomputed = " (recomputed)" if config.recompute else ""
    yield f"memory   {as_size(predicted_peak(need, before))} at most (predicted), of which"
    yield (
        f"{INDENT}{as_size(before.in_use)} program and data, {as_size(need.weights)} weights, "
        f"{as_size(need.moments)} moments;"
    )
    activations = f"{as_size(need.activations)} activations{recomputed}"
    yield f"{INDENT}{as_size(need.gradients)} gradients{accumulated}, {activations},"
    yield f"{INDENT}{as_size(need.logits)} logits and loss, but not all of these at the same time"
    if need.snapshot:
        yield f"{INDENT}and {as_size(need.snapshot)} to save checkpoints during training (--async-save False avoids it)"


def predicted_peak(need: Memory, before: Resident) -> int:
    """Return the largest physical memory of the process; reading the data may already have needed more."""
    return max(before.peak, before.in_use + need.peak)


def _disk_lines(config: TrainConfig, model: Model) -> Iterator[str]:
    one = as_size(checkpoint_bytes(config, model))
    yield (
        f"disk     {as_size(disk_bytes(config, model))} at most: {one} per checkpoint, "
        f"for the last {config.keep_checkpoints}, the best and the one being written"
    )


def _time_lines(trial: "_Trial", val: Batches, step: int, before: Resident) -> Iterator[str]:
    config = trial.config
    seconds, computed = _timed_steps(trial)
    validation = trial.validation_seconds(val)
    left = max(config.max_iters - step, 0)
    validations = math.ceil(left / config.eval_interval)
    per_step = median(seconds)
    total = left * per_step + validations * config.eval_iters * validation
    yield f"time     {duration(total)} for {left:,} steps and {validations:,} validations:"
    speed = f"{config.tokens_per_step / per_step:,.0f} tokens/s"
    over = f"{len(seconds)} step{'s' * (len(seconds) > 1)}"
    if computed < config.grad_accum:
        over = f"{computed} batch of the {config.grad_accum} of a step"
    yield f"{INDENT}{per_step * 1e3:,.3g} ms per step, {speed}, measured over {over}"
    if before.peak and tg.get_backend().array_type.__module__.startswith("numpy"):
        need = memory(replace(config, async_save=False, grad_accum=computed), trial.model, tg.get_backend().name)
        expected, measured = predicted_peak(need, before), Resident.now().peak
        yield f"{INDENT}{as_size(measured)} of memory were used, {measured / expected - 1:+.1%} beside the prediction"


class _Trial:
    """A model that is trained in memory, on batches of the data or, without data, on token 0."""

    def __init__(self, config: TrainConfig, model: Model, data: Batches | None) -> None:
        self.config, self.model, self.data = config, model, data
        if config.half:
            self.model.astype(config.dtype)
        self.model.train()
        self.model.recompute = config.recompute
        optimizer = make_optimizer(self.model, config)
        eager = replace(config, cuda_graph=False)
        self.step = TrainingStep(self.model, optimizer, eager, scaler=make_scaler(config))

    def take_step(self, step: int, n_batches: int = 1) -> float:
        """Take one step of so many batches and return its seconds."""
        started = time.perf_counter()
        n_windows = self.config.batch_size * n_batches
        if self.data is None:
            batch: tuple[Array, ...] = (np.zeros((n_windows, self.config.block_size), np.int64),) * 2
        else:
            batch = self.data.draw(n_windows, step)
        x, y, *more = batch
        loss, _ = self.step(x, y, self.config.lr, *more)
        tg.get_backend().numbers([loss])  # waits for a GPU
        return time.perf_counter() - started

    def validation_seconds(self, loader: Batches) -> float:
        """Return the seconds of one batch of a validation."""
        batch = loader.batch(0)
        started = time.perf_counter()
        with evaluating(self.model):
            float(self.model.loss(*batch).item())
        return time.perf_counter() - started


def _timed_steps(trial: _Trial) -> tuple[list[float], int]:
    """Return the seconds of a few steps, and how many batches of each were computed: all, or one where that is long.

    The first batch, which touches new memory, counts only where there is no time for more.
    """
    n_batches = trial.config.grad_accum
    end = time.perf_counter() + MAX_SECONDS
    first = trial.take_step(0) * n_batches
    if first > MAX_SECONDS:
        return [first], 1
    seconds: list[float] = []
    while not seconds or (len(seconds) < MAX_STEPS and time.perf_counter() < end):
        seconds.append(trial.take_step(1 + len(seconds), n_batches))
    return seconds, n_batches


def duration(seconds: float) -> str:
    """90061 -> 1 d 1 h; at most two units."""
    parts = [(int(seconds // 86400), "d"), (int(seconds // 3600) % 24, "h"), (int(seconds // 60) % 60, "min")]
    parts.append((int(seconds % 60), "s"))
    first = next((i for i, (n, _) in enumerate(parts) if n), len(parts) - 1)
    return " ".join(f"{n} {unit}" for n, unit in parts[first : first + 2])
