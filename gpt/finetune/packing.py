"""Examples side by side in the rows of a batch: less padding, and the same losses and gradients.

The positions of every example begin at 0, and its tokens attend to no other example: see gpt.model.causal_mask.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt.data.loaders import Array
from gpt.finetune.classifier import in_epochs
from gpt.finetune.conversations import Example
from gpt.weights import IGNORED
from tensorgrad.random import Generator


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return rows of indices whose lengths add up to at most the capacity: the longest first, each where it fits."""
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((row for row, left in enumerate(room) if lengths[i] <= left), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(i)
        room[row] -= lengths[i]
    return rows


class Examples:
    """Rows of examples as batches: see gpt.data.Batches.

    packed: several examples in a row, of at most block_size tokens; otherwise one. Training goes through all rows, in a
    new random order each time.
    """

    unit = "examples"

    def __init__(
        self, examples: Sequence[Example], *, block_size: int, batch_size: int, seed: int = 0, packed: bool = True
    ) -> None:
        self.examples = [Example(e.ids[: block_size + 1], e.in_answer[: block_size + 1]) for e in examples]
        # The last token of an example is a target, and no input.
        lengths = [len(example.ids) - 1 for example in self.examples]
        self.rows = pack(lengths, block_size) if packed else [[i] for i in range(len(lengths))]
        self.n_batches = math.ceil(len(self.rows) / batch_size)
        self.generator = Generator(seed)

    @property
    def size(self) -> int:
        """How many examples there are."""
        return len(self.examples)

    @property
    def fingerprint(self) -> Any:
        """Bytes that differ for other examples."""
        parts = [np.array([len(e.ids), *e.ids, *e.in_answer], np.int64) for e in self.examples]
        return np.concatenate(parts).tobytes()

    def draw(self, count: int, step: int) -> tuple[Array, ...]:
        """Return x, y and positions (count, T) of a step."""
        return self.arrays(in_epochs(self.generator, len(self.rows), count, step))

    def batch(self, step: int) -> tuple[Array, ...]:
        """Return batch `step` of n_batches of about the same number of rows, in which each row is once."""
        return self.arrays(np.array_split(np.arange(len(self.rows)), self.n_batches)[step % self.n_batches])

    def arrays(self, rows: Array) -> tuple[Array, ...]:
        """Return tokens, targets and positions (n, T), where T is the length of the longest of these rows.

        A target is IGNORED unless it belongs to an answer. What is left of a row attends to itself alone.
        """
        chosen = [[self.examples[i] for i in self.rows[row]] for row in rows]
        T = max(sum(len(example.ids) - 1 for example in row) for row in chosen)
        x, y, pos = (np.full((len(chosen), T), fill, np.int64) for fill in (0, IGNORED, 0))
        for r, row in enumerate(chosen):
            at = 0
            for ids, in_answer in row:
                part = slice(at, at := at + len(ids) - 1)
                x[r, part] = ids[:-1]
                y[r, part] = np.where(in_answer[1:], ids[1:], IGNORED)
                pos[r, part] = np.arange(len(ids) - 1)
        return x, y, pos
