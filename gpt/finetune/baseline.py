"""Logistic regression on the words of a text: what a finetuned model has to beat to be worth its time."""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

import tensorgrad as tg
from gpt.data.loaders import Array
from tensorgrad import Tensor, nn
from tensorgrad.random import Generator, Stream

MAX_WORDS = 20_000  # the most frequent ones
BATCH, LR, WEIGHT_DECAY = 64, 0.03, 0.01
MIN_STEPS, MIN_EPOCHS = 1000, 3  # as many as both need, so that few texts are learned, too

_WORD = re.compile(r"\w+|[^\w\s]+")


class BagOfWords:
    """The words of a text, in any order, each with a weight for every label.

    A text of n words is the vector of log(1 + count) of each word, scaled to length 1. Punctuation counts as words.
    """

    def __init__(self, texts: Sequence[str], n_labels: int) -> None:
        """Take the words that are in at least two of the texts; in few texts, all."""
        seen = Counter(word for text in texts for word in set(_words(text)))
        at_least = 2 if len(texts) >= 100 else 1
        frequent = [word for word, n in seen.most_common(MAX_WORDS) if n >= at_least]
        self.ids = {word: i for i, word in enumerate(frequent)}
        self.weight = nn.Parameter(tg.zeros((n_labels, max(len(frequent), 1))).data)
        self.bias = nn.Parameter(tg.zeros(n_labels).data)

    def logits(self, counts: Sequence[Counter[int]]) -> Tensor:
        """Return the logits (N, labels) of texts, given by how often each has each word."""
        x = np.zeros((len(counts), self.weight.shape[1]), np.float32)
        for row, found in zip(x, counts, strict=True):
            row[list(found)] = np.log1p(list(found.values()))
        x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        return tg.linear(tg.asarray(x), self.weight, self.bias)

    def count(self, texts: Sequence[str]) -> list[Counter[int]]:
        """Return how often each text has each of the words that are known."""
        return [Counter(self.ids[word] for word in _words(text) if word in self.ids) for text in texts]

    def fit(self, texts: Sequence[str], labels: Array, class_weights: Array, seed: int) -> None:
        """Minimise the weighted cross-entropy of labels (N,), with a learning rate that falls to 0."""
        counts = self.count(texts)
        epochs = max(MIN_EPOCHS, math.ceil(MIN_STEPS / math.ceil(len(texts) / BATCH)))
        optimizer = tg.optim.AdamW([self.weight, self.bias], lr=LR, weight_decay=WEIGHT_DECAY)
        for epoch in range(epochs):
            optimizer.set_lr(LR * (1 - epoch / epochs))
            order = Generator(seed).permutation(len(texts), stream=Stream.DATA, step=epoch)
            for start in range(0, len(order), BATCH):
                rows = order[start : start + BATCH]
                losses = tg.cross_entropy(self.logits([counts[i] for i in rows]), labels[rows], reduction="none")
                tg.mean(losses * tg.asarray(class_weights[labels[rows]])).backward()
                optimizer.step()
                optimizer.zero_grad()

    def predict(self, texts: Sequence[str]) -> Array:
        """Return the most likely label of each text, (N,)."""
        counts = self.count(texts)
        parts = [counts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
        with tg.no_grad():
            return np.concatenate([self.logits(part).numpy().argmax(1) for part in parts] or [np.zeros(0, np.int64)])


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())
