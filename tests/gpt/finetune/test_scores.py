"""Accuracy, F1 and the confusion matrix, against their definitions."""

from pathlib import Path

import numpy as np
import pytest

from gpt.finetune.scores import Scores

LABELS = ["ham", "spam", "a very long label"]


def test_scores_equal_their_definitions() -> None:
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    scores = Scores.of(LABELS, true, predicted)
    pairs = list(zip(true.tolist(), predicted.tolist(), strict=True))
    assert scores.accuracy == sum(t == p for t, p in pairs) / 200
    for k, f1 in enumerate(scores.f1):
        right = sum(t == p == k for t, p in pairs)
        precision, recall = right / sum(p == k for _, p in pairs), right / sum(t == k for t, _ in pairs)
        assert f1 == pytest.approx(2 * precision * recall / (precision + recall), rel=1e-12)
    assert scores.macro_f1 == pytest.approx(sum(scores.f1) / 3)
    assert scores.counts[2, 0] == sum(pair == (2, 0) for pair in pairs)


def test_a_label_that_never_occurs_has_an_f1_of_0() -> None:
    scores = Scores.of(LABELS[:2], np.array([0, 0]), np.array([0, 0]))
    assert scores.f1.tolist() == [1.0, 0.0] and scores.accuracy == 1.0


def test_the_table_and_the_picture(tmp_path: Path) -> None:
    scores = Scores.of(LABELS, np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]))
    assert scores.table() == (
        "true \\ predicted  ham  spam  a very long…     F1\n"
        "             ham    1     1             0  0.500\n"
        "            spam    0     1             0  0.667\n"
        "    a very long…    1     0             0  0.000"
    )
    pytest.importorskip("matplotlib")
    scores.draw(tmp_path / "a.png", "$_title")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
