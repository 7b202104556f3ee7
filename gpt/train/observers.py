"""What shows a run besides its lines of JSON: a plot, sampled texts, TensorBoard, Weights & Biases.

Each observer receives the metrics of every step. After a resume it continues without gaps or repetitions: what it
recorded after the checkpoint is removed, as in metrics.jsonl.
"""

import gc
import importlib
import io
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gpt.checkpoint.files import METRICS, SAMPLE_HEADING, SAMPLES
from gpt.evaluate.plot import PNG, History, draw_run, why_not
from gpt.generate import stream_text
from gpt.train.progress import Observer, failure
from gpt.train.run import LOGGERS, Run

SAMPLE_TOKENS = 200
TENSORBOARD = "tensorboard"
WANDB_ID = "wandb-id.txt"
MAX_PLOT_SHARE = 0.02  # of the time of a run

Metrics = Mapping[str, Any]


def make_observers(
    run: Run, print_line: Callable[[str], None], interrupted: Callable[[], bool] = lambda: False
) -> list[Observer]:
    """Return the observers that the configuration asks for. interrupted: whether the run is to end soon."""
    config = run.config
    observers: list[Observer] = []
    if config.logger is not None:
        logger = TensorBoard if config.logger == "tensorboard" else WandB
        try:
            observers.append(logger(run))
        except Exception as error:  # of any kind: no server, no login, no space
            print_line(failure(logger.__name__, error))
    if config.plot:
        observers.append(Plot(run, print_line))
    if config.sample_interval:
        observers.append(Samples(run, print_line, interrupted))
    return observers


class Plot:
    """loss.png, drawn during training, so rarely that it takes little time, and at the end."""

    def __init__(self, run: Run, print_line: Callable[[str], None]) -> None:
        self.path, self.title, self.print_line = run.folder / PNG, run.folder.name, print_line
        self.history = History.read(run.folder) if (run.folder / METRICS).exists() else History()
        self.outdated = self.possible = True
        self.next_time = 0.0

    def step(self, step: int, metrics: Metrics) -> None:
        if self.possible:
            self.history.add(step, metrics)
            self.outdated = True
            if "val_loss" in metrics and time.monotonic() >= self.next_time:
                self.draw()

    def draw(self) -> None:
        """Draw the plot; where that fails, print a line with the reason, and the run continues."""
        started = time.monotonic()
        try:
            draw_run(self.path, self.history, self.title)
        except OSError as error:  # the disk may have space again at the next time
            self.print_line(f"{self.path}: not drawn: {error.strerror}")
        except Exception as error:
            self.possible = False
            self.print_line(f"no plot of the losses: {why_not(error)}")
        gc.collect()  # figures contain reference cycles: otherwise the memory of several would be in use at once
        ended = time.monotonic()
        self.next_time = ended + (ended - started) / MAX_PLOT_SHARE
        self.outdated = False

    def close(self) -> None:
        if self.possible and self.outdated and len(self.history.columns["step"]):
            self.draw()


class Samples:
    """samples.txt: texts that the model generates at regular steps. Their random numbers do not affect training."""

    def __init__(self, run: Run, print_line: Callable[[str], None], interrupted: Callable[[], bool]) -> None:
        self.run, self.path, self.print_line = run, run.folder / SAMPLES, print_line
        self.interrupted = interrupted

    def step(self, step: int, metrics: Metrics) -> None:
        """See Observer. Where the disk is full, print a line, and the run continues."""
        if step % self.run.config.sample_interval:
            return
        try:
            self.append(f"{SAMPLE_HEADING.format(step)}\n{self.generate()}\n\n".encode())
        except OSError as error:
            self.print_line(f"{self.path}: the sample of step {step} is not written: {error.strerror}")

    def generate(self) -> str:
        """Generate a text; where the weights are not finite, it ends with the error, and early where interrupted."""
        text = ""
        try:
            for piece in sample(self.run, SAMPLE_TOKENS):
                text += piece
                if self.interrupted():
                    return f"{text} (interrupted)"
        except FloatingPointError as error:
            text += f" ({error})"
        return text

    def append(self, sample: bytes) -> None:
        """Append a sample to the file, completely or not at all."""
        with open_to_append(self.path) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                if (n := file.write(sample)) < len(sample):
                    file.write(sample[n:])  # raises the error for which the rest was not written
            except OSError:
                file.truncate(size)
                raise

    def close(self) -> None:
        """Nothing is open."""


def open_to_append(path: Path) -> io.FileIO:
    """Return an unbuffered file in append mode."""
    return io.FileIO(path, "a")


def sample(run: Run, n_tokens: int, temperature: float = 0.8) -> Iterator[str]:
    """Return pieces of a text that the model generates, the same at the same step of the same run."""
    # A tokenizer with an end-of-text token would begin with it, which this model has never seen.
    prompt = "" if run.tokenizer.eot is None else "\n"
    return stream_text(
        run.model, run.tokenizer, prompt,
        max_new_tokens=n_tokens, temperature=temperature, top_k=200, seed=run.config.seed,
    )  # fmt: skip


class TensorBoard:
    """Event files in the folder `tensorboard` of the run: tensorboard --logdir checkpoints."""

    def __init__(self, run: Run) -> None:
        library = importlib.import_module(LOGGERS["tensorboard"])
        folder = run.folder / TENSORBOARD
        resumed = folder.exists()
        # purge_step makes TensorBoard hide what was recorded after the checkpoint.
        self.writer = library.SummaryWriter(
            str(folder), purge_step=run.step + 1 if resumed else None, filename_suffix=f".{run.step}"
        )
        if not resumed:
            replay(run, self)

    def step(self, step: int, metrics: Metrics) -> None:
        for name, value in flatten(metrics).items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A run of Weights & Biases, resumed under its id; WANDB_MODE=offline keeps it on this machine.

    The server accepts every step once: steps that are repeated after a resume have the same metrics and change nothing.
    """

    def __init__(self, run: Run) -> None:
        library = importlib.import_module(LOGGERS["wandb"])
        path = run.folder / WANDB_ID
        resumed = run.step > 0 and path.exists()
        if not resumed:
            path.write_text(secrets.token_hex(8), encoding="utf-8")
        self.run = library.init(
            project="tensorgrad", name=run.folder.name, dir=str(run.folder), id=path.read_text(encoding="utf-8"),
            resume="allow", config=run.config.to_dict(),
        )  # fmt: skip
        if not resumed:
            replay(run, self)

    def step(self, step: int, metrics: Metrics) -> None:
        self.run.log(flatten(metrics), step=step)

    def close(self) -> None:
        self.run.finish()


def replay(run: Run, observer: Observer) -> None:
    """Send the metrics of earlier steps to an observer that is new to a resumed run."""
    if run.step:
        with (run.folder / METRICS).open(encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                observer.step(row.pop("step"), row)


def flatten(metrics: Metrics) -> dict[str, float]:
    """{"ratios": {"h.0": 1.0}} -> {"ratios/h.0": 1.0}, the form that the loggers need."""
    values: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            values |= {f"{name}/{key}": part for key, part in value.items()}
        else:
            values[name] = value
    return values
