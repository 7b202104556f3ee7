"""Labelling texts as the task of a run: its data, its split and its model."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from gpt.checkpoint import Checkpoint, RunState
from gpt.checkpoint.files import MODEL
from gpt.cli import user_errors
from gpt.config import UserError
from gpt.data import Array, Batches
from gpt.files import file_errors
from gpt.finetune.classifier import Classifier, LabelledTexts, balanced_weights
from gpt.finetune.split import split_examples
from gpt.finetune.tables import column, read_rows
from gpt.lora import LoRA, add_lora
from gpt.tokenizer import Tokenizer, TokenizerError
from gpt.train.build import make_tokenizer
from gpt.train.config import TrainConfig
from gpt.train.task import Task
from gpt.weights import Model, build_model
from gpt.weights.initial import InitialWeights

NAME = "classify"
TUNE = ("last-block", "head", "all")
PARTS = {"train": "training", "validation": "validation", "test": "test"}


class Split(NamedTuple):
    """The indices of the examples in each part, in their order."""

    train: list[int]
    validation: list[int]
    test: list[int]


@dataclass(frozen=True)
class Classification(Task):
    """Labels for texts, which a file has in two of its columns."""

    data: str
    text_column: str
    label_column: str
    tune: str = TUNE[0]
    class_weights: bool = True
    seed: int = 0  # of the split
    pool: str = "last"  # of a run that does not name it: older ones had no choice

    rows_of_one_length = False
    saves_adapters_alone = False  # the linear layer on top is trained as well

    def settings(self) -> dict[str, Any]:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"name": NAME, **given, "labels": self.labels}

    @cached_property
    def examples(self) -> tuple[list[str], list[str]]:
        """All texts, and their labels."""
        path = Path(self.data)
        rows = read_rows(path)
        texts = column(rows, self.text_column, path, "--text-column")
        labels = column(rows, self.label_column, path, "--label-column")
        if len(set(labels)) < 2:
            what = f"every {self.label_column!r} is {labels[0]!r}"
            raise UserError(f"data {path}: {what}: at least two labels are needed")
        return texts, labels

    @cached_property
    def labels(self) -> list[str]:
        """The labels, in the order of their numbers."""
        return sorted(set(self.examples[1]))

    @cached_property
    def split(self) -> Split:
        """Which examples belong to training, validation and test; UserError where there are too few."""
        parts = Split(*split_examples(*self.examples, self.seed))
        for name, indices in zip(PARTS.values(), parts, strict=True):
            if not indices:
                what = f"{len(self.examples[0])} texts with {len(self.labels)} labels"
                raise UserError(f"data {self.data}: {what} are too few: none is left for {name}")
        return parts

    def part(self, indices: Sequence[int]) -> tuple[list[str], Array]:
        """Return the texts of a part, and the numbers of their labels."""
        texts, labels = self.examples
        return [texts[i] for i in indices], np.array([self.labels.index(labels[i]) for i in indices])

    @cached_property
    def weights(self) -> Array:
        """The weight of each label in the loss, (K,)."""
        if not self.class_weights:
            return np.ones(len(self.labels), np.float32)
        return balanced_weights(self.part(self.split.train)[1], len(self.labels))

    def open_data(self, config: TrainConfig, tokenizer: Tokenizer | None) -> tuple[Tokenizer, Batches, Batches]:
        tokenizer = tokenizer or make_tokenizer(config, "\n".join(self.part(self.split.train)[0]))
        loaders = []
        for indices in (self.split.train, self.split.validation):
            tokens, labels = self.tokens(indices, tokenizer, config.block_size), self.part(indices)[1]
            loader = LabelledTexts(
                tokens, labels, batch_size=config.batch_size, weights=self.weights, seed=config.seed
            )
            loaders.append(loader)
        return tokenizer, loaders[0], loaders[1]

    def tokens(self, indices: Sequence[int], tokenizer: Tokenizer, block_size: int) -> list[list[int]]:
        """Return the tokens of these texts, of long ones how they begin and end."""
        rows = self.encoded(tokenizer)
        return [cut(rows[i], block_size) for i in indices]

    def encoded(self, tokenizer: Tokenizer) -> list[list[int]]:
        """Return all tokens of every text, computed once."""
        known: dict[Tokenizer, list[list[int]]] = self.__dict__.setdefault("_encoded", {})
        if tokenizer not in known:
            known[tokenizer] = encode(self.examples[0], tokenizer, f"data {self.data}")
        return known[tokenizer]

    def build_model(self, config: TrainConfig, vocab_size: int, initial: InitialWeights | None) -> Model:
        model = Classifier(super().build_model(config, vocab_size, initial), len(self.labels), self.pool)
        model.train_only(self.tune)
        return cast(Model, model)  # the trainer needs its loss and its parameters alone

    def restore_model(self, checkpoint: Checkpoint, config: TrainConfig) -> Model:
        model = restore_classifier(checkpoint, plain=config.plain)
        model.train_only(self.tune)
        return cast(Model, model)


def task_of(state: RunState) -> Classification:
    """Return the task of a run to resume; UserError for one that is no classifier."""
    require_classifier(state, "the run")
    known = {field.name for field in fields(Classification)}
    return Classification(**{name: value for name, value in state.task.items() if name in known})


def require_classifier(state: RunState, what: str) -> None:
    """Raise UserError for a run that `classify` has not made."""
    if state.task.get("name") != NAME:
        raise UserError(f"{what} is no classifier: python -m gpt finetune {NAME} makes them")


def restore_classifier(checkpoint: Checkpoint, *, plain: bool = False) -> Classifier:
    """Return the classifier of a checkpoint."""
    state = checkpoint.state
    with file_errors(checkpoint.path / MODEL):
        language_model = build_model(state.model_config, plain=plain)
        model = Classifier(language_model, len(state.task["labels"]), task_of(state).pool)
        if lora := LoRA.of(state.train_config):
            add_lora(model.model, lora)
        model.load_state_dict(checkpoint.weights, assign=True)
    return model


def encode(texts: Sequence[str], tokenizer: Tokenizer, about: str) -> list[list[int]]:
    """Return the tokens of each text."""
    start = [] if tokenizer.bos is None else [tokenizer.bos]
    with user_errors(TokenizerError, about=about):
        return [start + tokenizer.encode(text) for text in texts]


def cut(row: list[int], block_size: int) -> list[int]:
    """Return the tokens of a text; of a long one the first and the last, block_size together.

    How a text ends often tells as much as how it begins (Sun et al. 2019, "How to Fine-Tune BERT for Text
    Classification?").
    """
    n_first, n_last = first_and_last(block_size)
    return row if len(row) <= block_size else row[:n_first] + row[len(row) - n_last :]


def describe_cut(rows: Sequence[Sequence[int]], block_size: int) -> str | None:
    """Return how many of these texts `cut` makes shorter, and to what; None for none."""
    n_cut = sum(len(row) > block_size for row in rows)
    n_first, n_last = first_and_last(block_size)
    return f"{n_cut:,} of {len(rows):,} texts to their {n_first:,} first and {n_last:,} last tokens" if n_cut else None


def first_and_last(block_size: int) -> tuple[int, int]:
    """Return how many tokens of a long text are kept from its beginning and from its end."""
    return block_size - block_size // 2, block_size // 2
