"""A split into training, validation and test that leaks nothing: texts that are the same stay together."""

import unicodedata
from collections.abc import Sequence

from tensorgrad.random import Generator, Stream

SHARES = (0.7, 0.1, 0.2)  # of training, validation and test


def normal_form(text: str) -> str:
    """Return what texts that count as the same have in common: no case, no difference of spaces or of width."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def split_examples(
    texts: Sequence[str], labels: Sequence[str], seed: int, shares: Sequence[float] = SHARES
) -> list[list[int]]:
    """Return the indices of the examples in each part, for each label by these shares: the first part has all labels.

    Texts of the same normal form are in the same part, whatever their labels; such a group counts for its first label.
    """
    groups: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        groups.setdefault(normal_form(text), []).append(i)
    by_label: dict[str, list[list[int]]] = {}
    for group in groups.values():
        by_label.setdefault(labels[group[0]], []).append(group)
    parts: list[list[int]] = [[] for _ in shares]
    for k, label in enumerate(sorted(by_label)):
        members = by_label[label]
        total, done = sum(map(len, members)), 0
        for i in Generator(seed).permutation(len(members), stream=Stream.DATA, step=k).tolist():
            # The part in which the middle of this group falls, if all are laid side by side.
            middle = (done + len(members[i]) / 2) / total if done else 0.0
            part = next(j for j in range(len(shares)) if middle < sum(shares[: j + 1]) or j == len(shares) - 1)
            parts[part] += members[i]
            done += len(members[i])
    return [sorted(part) for part in parts]
