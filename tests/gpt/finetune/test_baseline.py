"""Logistic regression on word counts, against the same in PyTorch."""

import numpy as np
import pytest

from gpt.finetune import baseline
from gpt.finetune.baseline import BagOfWords
from tensorgrad.random import Generator, Stream

pytestmark = pytest.mark.usefixtures("numpy_backend")

TEXTS = ["Win a prize, win!", "a meeting at ten", "prize now", "see you at ten", "win now", "a report"]
LABELS = np.array([1, 0, 1, 0, 1, 0])
WEIGHTS = np.array([0.5, 2.0], np.float32)


def test_training_equals_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(baseline, "BATCH", 4)
    monkeypatch.setattr(baseline, "MIN_STEPS", 60)
    bag = BagOfWords(TEXTS, 2)
    bag.fit(TEXTS, LABELS, WEIGHTS, seed=5)

    words = [text.lower().replace(",", " ,").replace("!", " !").split() for text in TEXTS]
    x = torch.tensor([[row.count(word) for word in bag.ids] for row in words], dtype=torch.float32).log1p()
    x = torch.nn.functional.normalize(x)
    model = torch.nn.Linear(len(bag.ids), 2)
    torch.nn.init.zeros_(model.weight), torch.nn.init.zeros_(model.bias)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03, weight_decay=0.01)
    for epoch in range(30):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - epoch / 30)
        order = Generator(5).permutation(6, stream=Stream.DATA, step=epoch)
        for rows in (order[:4], order[4:]):
            y = torch.tensor(LABELS[rows])
            losses = torch.nn.functional.cross_entropy(model(x[rows]), y, reduction="none")
            (losses * torch.tensor(WEIGHTS)[y]).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    np.testing.assert_allclose(bag.weight.numpy(), model.weight.detach().numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(bag.bias.numpy(), model.bias.detach().numpy(), rtol=0, atol=1e-5)
    assert bag.predict(TEXTS).tolist() == LABELS.tolist()


def test_words_that_are_not_known_have_no_effect() -> None:
    bag = BagOfWords(TEXTS, 2)
    bag.fit(TEXTS, LABELS, WEIGHTS, seed=5)
    np.testing.assert_array_equal(bag.logits(bag.count(["win zebra"])).numpy(), bag.logits(bag.count(["win"])).numpy())
    np.testing.assert_allclose(bag.logits(bag.count(["zebra"])).numpy()[0], bag.bias.numpy(), rtol=0, atol=1e-7)
    assert bag.predict([]).shape == (0,)
