"""The loss over a whole text, compared with a loop that predicts one token at a time, and the loss estimate."""

import math

import numpy as np
import pytest

import tensorgrad as tg
from gpt.config import GPTConfig
from gpt.data import DataLoader
from gpt.evaluate import Score, estimate_loss, evaluate, evaluating, score
from gpt.model import GPT

pytestmark = pytest.mark.usefixtures("numpy_backend")

T = 4
TOKENS = np.array([0, 3, 1, 4, 1, 5, 2, 6, 5, 3, 5, 0, 4, 3, 2], dtype=np.uint16)


@pytest.fixture
def model() -> GPT:
    tg.manual_seed(3)
    config = GPTConfig(block_size=T, vocab_size=7, n_layer=1, n_head=2, n_embd=8, dropout=0.5)
    model = GPT(config)
    for p in model.parameters():
        p.data *= 20  # far from uniform predictions, which give every window the same loss
    return model


def mean_loss_token_by_token(model: GPT, tokens: np.ndarray, block_size: int) -> float:
    """The mean loss from the last logits of every context, without windows of targets and without batches."""
    model.eval()
    losses = []
    for i in range(1, len(tokens)):
        start = (i - 1) // block_size * block_size
        context = tokens[start:i].astype(np.int64)[None]
        logits = model(context)[0].numpy()[0, 0].astype(np.float64)
        losses.append(np.log(np.exp(logits).sum()) - logits[tokens[i]])
    model.train()
    return float(np.mean(losses))


@pytest.mark.parametrize("n", [2, 4, 5, 6, 13, 15])  # full windows with and without a remainder, and only a remainder
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_every_token_is_scored_once(model: GPT, n: int, batch_size: int) -> None:
    expected = mean_loss_token_by_token(model, TOKENS[:n], T)
    assert evaluate(model, TOKENS[:n], batch_size=batch_size) == pytest.approx(expected, rel=1e-5)


def test_windows_may_be_shorter_than_the_block_size_of_the_model(model: GPT) -> None:
    assert evaluate(model, TOKENS, block_size=3) == pytest.approx(mean_loss_token_by_token(model, TOKENS, 3))


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_tokens_are_refused(model: GPT, n: int) -> None:
    with pytest.raises(ValueError, match=f"at least 2 tokens are needed, not {n}"):
        evaluate(model, TOKENS[:n])


def test_an_estimate_is_the_mean_over_its_batches_and_is_reproducible(model: GPT) -> None:
    loader = DataLoader(TOKENS, batch_size=2, block_size=T, seed=1)
    before = tg.random.default_generator.state_dict()
    first = estimate_loss(model, loader, 3)
    with evaluating(model):
        expected = np.mean([model(*loader.batch(i))[1].item() for i in range(3)])
    assert first == pytest.approx(expected)
    assert estimate_loss(model, loader, 3) == first
    assert tg.random.default_generator.state_dict() == before  # the generator of the training is unchanged


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_restores_the_mode_after_an_error(model: GPT, training: bool) -> None:
    model.train(training)
    with pytest.raises(ZeroDivisionError), evaluating(model):
        assert not model.training
        assert not tg.is_grad_enabled()
        _ = 1 / 0
    assert model.training is training
    assert tg.is_grad_enabled()


# --------------------------------------------------------------------------------------------------
# With a stride: each token is scored once, given the tokens before it in its window


def reference_score(model: GPT, tokens: np.ndarray, stride: int) -> tuple[float, int]:
    """The sum of -log p over every token but the first, in float64; the window of each token is searched for."""
    model.eval()
    total = 0.0
    for i in range(1, len(tokens)):
        start = next(s for s in range(0, len(tokens), stride) if s + T >= i)  # the first window that includes it
        logits = model(tokens[start:i].astype(np.int64)[None])[0].numpy()[0, 0].astype(np.float64)
        total += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[tokens[i]]
    return float(total), len(tokens) - 1


@pytest.mark.parametrize("n", [2, 4, 5, 6, 9, 13, 15])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_with_a_stride_every_token_is_scored_once_with_its_context(
    model: GPT, n: int, stride: int, batch_size: int
) -> None:
    token_bytes = np.arange(7) + 1
    advanced: list[int] = []
    found = score(
        model, TOKENS[:n], stride=stride, batch_size=batch_size, token_bytes=token_bytes, advance=advanced.append
    )  # fmt: skip
    nats, n_tokens = reference_score(model, TOKENS[:n], stride)
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert found.n_tokens == sum(advanced) == n_tokens
    assert found.n_bytes == int((TOKENS[1:n] + 1).sum())


def test_a_score_equals_pytorch_in_float64(model: GPT) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")
    model.eval()
    logits, _ = model(TOKENS[None, :T].astype(np.int64), TOKENS[None, 1 : T + 1].astype(np.int64))
    log_p = torch.log_softmax(torch.tensor(logits.numpy(), dtype=torch.float64), -1)
    expected = -log_p[0, torch.arange(T), torch.tensor(TOKENS[1 : T + 1].astype(np.int64))].sum()
    found = score(model, TOKENS[: T + 1], token_bytes=np.full(7, 2))
    assert found.nats == pytest.approx(float(expected), rel=1e-5)
    assert found.perplexity == pytest.approx(float(torch.exp(expected / T)), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(float(expected) / math.log(2) / (2 * T), rel=1e-5)


@pytest.mark.parametrize("stride", [-1, 5])
def test_a_stride_out_of_range_is_rejected(model: GPT, stride: int) -> None:
    with pytest.raises(ValueError, match=f"^stride {stride} is not between 1 and block_size 4$"):
        score(model, TOKENS, stride=stride)


def test_scores_add_up() -> None:
    assert Score(1.0, 2, 3) + Score(4.0, 5, 6) == Score(5.0, 7, 9)
    assert Score(1e6, 2, 3).perplexity == math.inf
    assert math.isnan(Score(1.0, 2, 0).bits_per_byte)
