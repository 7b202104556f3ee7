"""The classifier: padding changes nothing, its loss and gradients are PyTorch's, and what is frozen stays."""

import tracemalloc
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from gpt.config import GPTConfig, LlamaConfig
from gpt.finetune.classifier import POOL, Classifier, LabelledTexts, balanced_weights, in_epochs, padded, probabilities
from gpt.train.build import make_optimizer
from gpt.train.config import TrainConfig
from gpt.train.footprint import memory
from gpt.train.loop import gradient_ratios
from gpt.weights import build_model
from tensorgrad.backend.numpy import NumpyBackend
from tensorgrad.random import Generator

pytestmark = pytest.mark.usefixtures("numpy_backend")

CONFIGS = [
    GPTConfig(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=8),
    LlamaConfig(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=8, n_kv_head=1, n_hidden=12),
]
ROWS = [[1, 2, 3, 4], [5], [0, 0, 10]]  # token 0 is a token as any other


@pytest.fixture(params=CONFIGS, ids=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> Classifier:
    tg.manual_seed(1)
    model = Classifier(build_model(request.param), 3)
    model.score.weight.data *= 50  # so that the logits differ
    return model


def pooled(model: Classifier, row: list[int]) -> Any:
    """What the labels of a text alone are read from, (C,)."""
    states = model.model.hidden_states(np.array([row])).numpy()[0]  # (T, C)
    return states[-1] if model.pool == "last" else states.mean(axis=0)


@pytest.mark.parametrize("pool", POOL)
def test_padding_changes_nothing(model: Classifier, pool: str) -> None:
    model.pool = pool
    for dtype, tolerance in (("float32", 1e-6), ("float64", 1e-14)):
        model.astype(dtype)
        together = model(padded(ROWS)).numpy()
        largest = np.abs(together).max()
        for row, logits in zip(ROWS, together, strict=True):
            alone = pooled(model, row) @ model.score.weight.numpy().T
            np.testing.assert_allclose(logits, alone, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("pool", POOL)
def test_gradients_are_those_of_finite_differences(model: Classifier, pool: str) -> None:
    """For the labels' layer, and for the norm below it, whose results are pooled."""
    model.pool = pool
    model.astype("float64")
    norm = model.model.ln_f if isinstance(model.config, GPTConfig) else model.model.norm_f

    def loss(score: tg.Tensor, scale: tg.Tensor) -> tg.Tensor:
        model.score.weight, norm.weight = score, scale
        return model.loss(padded(ROWS), np.array([2, 0, 1]), np.array([0.5, 2.0, 1.5]))

    assert tg.gradcheck(loss, model.score.weight, norm.weight, full=True)


@pytest.mark.parametrize("pool", POOL)
def test_the_loss_and_its_gradients_are_pytorchs(model: Classifier, pool: str) -> None:
    torch = pytest.importorskip("torch")
    model.pool = pool
    model.astype("float64")
    y, weights = np.array([2, 0, 1]), np.array([0.5, 2.0, 1.5])
    hidden = [torch.tensor(pooled(model, row)) for row in ROWS]
    score = torch.tensor(model.score.weight.numpy(), requires_grad=True)
    losses = torch.nn.functional.cross_entropy(torch.stack(hidden) @ score.T, torch.tensor(y), reduction="none")
    expected = (losses * torch.tensor(weights)).mean()
    expected.backward()
    loss = model.loss(padded(ROWS), y, weights)
    loss.backward()
    assert float(loss.item()) == pytest.approx(expected.item(), rel=1e-12)
    np.testing.assert_allclose(model.score.weight.grad, score.grad.numpy(), rtol=0, atol=1e-12)


def test_probabilities_do_not_depend_on_the_batch(model: Classifier) -> None:
    exponentials = np.exp(model(padded(ROWS)).numpy())
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    for batch_size in (1, 2, 3):
        np.testing.assert_allclose(probabilities(model, ROWS, batch_size), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("tune", "trained"), [("head", 1), ("last-block", None), ("all", 3)])
def test_only_what_is_tuned_has_gradients(model: Classifier, tune: str, trained: int | None) -> None:
    model.train_only(tune)
    model.loss(padded(ROWS), np.array([2, 0, 1]), np.ones(3)).backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    every = {name for name, _ in model.named_parameters()}
    block = {name for name in every if name.startswith(("model.h.1.", "model.ln_f", "model.norm_f"))}
    expected: dict[str, Any] = {"head": set(), "last-block": block, "all": every}
    assert with_gradient == expected[tune] | {"score.weight"}


def test_an_epoch_has_every_text_once_in_any_batch_size() -> None:
    numbers = [in_epochs(Generator(3), 5, 3, step) for step in range(5)]
    together = np.concatenate(numbers).reshape(3, 5)
    assert np.sort(together, axis=1).tolist() == [[0, 1, 2, 3, 4]] * 3
    assert len({tuple(row) for row in together.tolist()}) == 3
    single = np.concatenate([in_epochs(Generator(3), 5, 1, step) for step in range(15)])
    assert single.tolist() == together.reshape(-1).tolist()
    assert in_epochs(Generator(3), 2, 5, 1).shape == (5,)


def test_batches_of_a_validation_have_every_text_once() -> None:
    texts = LabelledTexts([[i + 1] * (i + 1) for i in range(7)], np.arange(7) % 3, batch_size=3, weights=np.arange(3.0))
    batches = [texts.batch(i) for i in range(texts.n_batches)]
    assert [len(y) for _, y, _ in batches] == [3, 2, 2]
    assert [row[row >= 0].tolist() for x, _, _ in batches for row in x] == texts.tokens
    assert all((w == y).all() for _, y, w in batches)


def test_the_fingerprint_tells_texts_and_labels_apart() -> None:
    made = [
        LabelledTexts(tokens, np.array(labels), batch_size=2, weights=np.ones(2)).fingerprint
        for tokens, labels in (([[1, 2], [3]], [0, 1]), ([[1], [2, 3]], [0, 1]), ([[1, 2], [3]], [1, 1]))
    ]
    assert len(set(made)) == 3


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    labels = np.array([0, 0, 0, 1])
    np.testing.assert_allclose(balanced_weights(labels, 2), [4 / (2 * 3), 4 / (2 * 1)])  # n / (n_classes * count)
    assert balanced_weights(labels, 2)[labels].mean() == pytest.approx(1)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("tune", ["all", "last-block", "head"])
def test_the_memory_of_a_step_is_predicted(backend: str, tune: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in tests/gpt/train/test_dry_run.py: within 10 % of NumPy's peak memory, by tracemalloc."""
    config = TrainConfig(n_embd=192, block_size=128, batch_size=4, async_save=False, threads=1)
    x, y, weights = np.zeros((4, 128), np.int64), np.zeros(4, np.int64), np.ones(4, np.float32)
    monkeypatch.setattr(NumpyBackend, "threads", 1)  # how many blocks exist at a time depends on the load
    with tg.use_backend(backend):
        model = Classifier(build_model(config.model_config(300)), 3)
        model.train_only(tune)
        need = memory(config, model, backend)
        optimizer = make_optimizer(model, config)
        for _ in range(2):  # the first step makes the moments
            tracemalloc.start()
            try:
                model.loss(x, y, weights).backward()
                optimizer.step()
                optimizer.zero_grad()
                held = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
    assert need.peak - need.weights - need.moments == pytest.approx(held, rel=0.1)


def test_ratios_are_those_of_the_layers(model: Classifier) -> None:
    model.train_only("last-block")
    model.loss(padded(ROWS), np.array([0, 1, 2]), np.ones(3, np.float32)).backward()
    norm = "ln_f" if isinstance(model.config, GPTConfig) else "norm_f"
    assert gradient_ratios(model).keys() == {"h.1", norm, "score"}
