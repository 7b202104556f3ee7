"""What can be seen of a run beside its lines of JSON: a picture, samples, TensorBoard, Weights & Biases.

Each observer is told every step, and takes a run up after a resume without gaps or doubles: what it wrote beyond the
checkpoint is taken back, as metrics.jsonl is.
"""

from __future__ import annotations

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

from gpt.checkpoint.metrics import METRICS, SAMPLE_HEADING, SAMPLES
from gpt.evaluate.plot import PNG, History, draw_run
from gpt.generate import stream_text
from gpt.train.progress import Observer
from gpt.train.run import LIBRARIES, Run

SAMPLE_TOKENS = 200
TENSORBOARD = "tensorboard"
WANDB_ID = "wandb-id.txt"
SHARE = 0.02  # of the time of a run that its picture may take

Figures = Mapping[str, Any]


def make_observers(run: Run, say: Callable[[str], None]) -> list[Observer]:
    """Return those that the configuration asks for; `say` prints a line."""
    config = run.config
    observers: list[Observer] = []
    if config.logger == "tensorboard":
        observers.append(TensorBoard(run))
    if config.logger == "wandb":
        observers.append(WandB(run))
    if config.plot:
        observers.append(Picture(run, say))
    if config.sample_interval:
        observers.append(Samples(run, say))
    return observers


class Picture:
    """loss.png, drawn again as the run goes; so seldom that it costs next to nothing, and once more at the end."""

    def __init__(self, run: Run, say: Callable[[str], None]) -> None:
        self.path, self.title, self.say = run.folder / PNG, run.folder.name, say
        self.history = History.read(run.folder) if (run.folder / METRICS).exists() else History()
        self.dirty = self.possible = True
        self.next_time = 0.0

    def step(self, step: int, figures: Figures) -> None:
        """See Observer."""
        if self.possible:
            self.history.add(step, figures)
            self.dirty = True
            if "val_loss" in figures and time.monotonic() >= self.next_time:
                self.draw()

    def draw(self) -> None:
        """Draw it now; a line says why where that cannot be done, and the run goes on."""
        started = time.monotonic()
        try:
            draw_run(self.path, self.history, self.title)
        except ImportError:
            self.possible = False
            self.say("no picture of the losses: matplotlib is not installed (pip install matplotlib)")
        except OSError as error:
            self.say(f"{self.path}: not drawn: {error.strerror}")
        gc.collect()  # a figure is all circles: left to itself, the memory of many would be held at once
        ended = time.monotonic()
        self.next_time = ended + (ended - started) / SHARE
        self.dirty = False

    def close(self) -> None:
        """See Observer."""
        if self.possible and self.dirty and len(self.history.columns["step"]):
            self.draw()


class Samples:
    """samples.txt: what the model writes, every so many steps. Its numbers are its own: training is as without it."""

    def __init__(self, run: Run, say: Callable[[str], None]) -> None:
        self.run, self.path, self.say = run, run.folder / SAMPLES, say

    def step(self, step: int, figures: Figures) -> None:
        """See Observer. A line says why where the disk takes no sample, and the run goes on."""
        if step % self.run.config.sample_interval:
            return
        try:
            self.append(f"{SAMPLE_HEADING.format(step)}\n{self.write()}\n\n".encode())
        except OSError as error:
            self.say(f"{self.path}: the sample of step {step} is not written: {error.strerror}")

    def write(self) -> str:
        """What the model writes; where its weights have become no numbers, as far as it comes, and why no further."""
        text = ""
        try:
            for piece in sample(self.run, SAMPLE_TOKENS):
                text += piece
        except FloatingPointError as error:
            text += f" ({error})"
        return text

    def append(self, sample: bytes) -> None:
        """Add a sample to the file, or nothing."""
        with open_to_append(self.path) as file:
            size = os.fstat(file.fileno()).st_size
            try:
                if (n := file.write(sample)) < len(sample):
                    file.write(sample[n:])  # the system says why it did not take these
            except OSError:
                file.truncate(size)
                raise

    def close(self) -> None:
        """See Observer."""


def open_to_append(path: Path) -> io.FileIO:
    """Return a file at whose end all is written at once."""
    return io.FileIO(path, "a")


def sample(run: Run, n_tokens: int) -> Iterator[str]:
    """Return what the model writes of its own accord, in pieces; the same at the same step of the same run."""
    # A tokenizer with an end-of-text token would begin there, where this model never was.
    prompt = "" if run.tokenizer.eot is None else "\n"
    return stream_text(
        run.model, run.tokenizer, prompt, max_new_tokens=n_tokens, temperature=0.8, top_k=200, seed=run.config.seed
    )


class TensorBoard:
    """Event files in the folder `tensorboard` of the run: tensorboard --logdir checkpoints."""

    def __init__(self, run: Run) -> None:
        library = importlib.import_module(LIBRARIES["tensorboard"])
        folder = run.folder / TENSORBOARD
        again = folder.exists()
        # What was written beyond the checkpoint is hidden: TensorBoard drops it when it meets this mark.
        self.writer = library.SummaryWriter(
            str(folder), purge_step=run.step + 1 if again else None, filename_suffix=f".{run.step}"
        )
        if not again:
            replay(run, self)

    def step(self, step: int, figures: Figures) -> None:
        """See Observer."""
        for name, value in flat(figures).items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """See Observer."""
        self.writer.close()


class WandB:
    """A run of Weights & Biases, taken up again under its id; WANDB_MODE=offline keeps it on this machine.

    Its server takes every step once: those that are done again after a resume have the same figures and change nothing.
    """

    def __init__(self, run: Run) -> None:
        library = importlib.import_module(LIBRARIES["wandb"])
        path = run.folder / WANDB_ID
        again = run.step > 0 and path.exists()
        if not again:
            path.write_text(secrets.token_hex(8), encoding="utf-8")
        self.run = library.init(
            project="tensorgrad", name=run.folder.name, dir=str(run.folder), id=path.read_text(encoding="utf-8"),
            resume="allow", config=run.config.to_dict(),
        )  # fmt: skip
        if not again:
            replay(run, self)

    def step(self, step: int, figures: Figures) -> None:
        """See Observer."""
        self.run.log(flat(figures), step=step)

    def close(self) -> None:
        """See Observer."""
        self.run.finish()


def replay(run: Run, observer: Observer) -> None:
    """Tell an observer that is new to a run that goes on what it has missed."""
    if run.step:
        with (run.folder / METRICS).open(encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                observer.step(row.pop("step"), row)


def flat(figures: Figures) -> dict[str, float]:
    """{"ratios": {"h.0": 1.0}} -> {"ratios/h.0": 1.0}, as the loggers want it."""
    values: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            values |= {f"{name}/{key}": part for key, part in value.items()}
        else:
            values[name] = value
    return values
