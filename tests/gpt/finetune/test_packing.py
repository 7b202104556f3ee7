"""Packed rows: the losses and gradients of the examples alone, also PyTorch's, and only those of answers."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorgrad as tg
from gpt.config import GPTConfig, LlamaConfig
from gpt.finetune.conversations import Example
from gpt.finetune.instruct import answer_loss
from gpt.finetune.packing import Examples, pack
from gpt.model import causal_mask
from gpt.train.step import accumulate_gradients
from gpt.weights import IGNORED, Model, build_model

pytestmark = pytest.mark.usefixtures("numpy_backend")

CONFIGS = [
    GPTConfig(block_size=24, vocab_size=13, n_layer=2, n_head=2, n_embd=8),
    LlamaConfig(block_size=24, vocab_size=13, n_layer=2, n_head=2, n_embd=8, n_kv_head=1, n_hidden=12),
]
RNG = np.random.default_rng(0)
EXAMPLES = [
    Example(RNG.integers(0, 13, n).tolist(), [i >= answer for i in range(n)])
    for n, answer in ((9, 4), (5, 2), (13, 11), (4, 1), (17, 3))
]


@pytest.fixture(params=[(config, plain) for config in CONFIGS for plain in (True, False)],
                ids=["gpt2-plain", "gpt2-fused", "llama-plain", "llama-fused"])  # fmt: skip
def model(request: pytest.FixtureRequest) -> Model:
    config, plain = request.param
    tg.manual_seed(1)
    model = build_model(config, plain=plain)
    for p in model.parameters():
        if p.ndim == 2:
            p.data *= 10  # so that attention is not uniform
    return model


def batch(examples: list[Example] = EXAMPLES, *, packed: bool) -> tuple[Any, ...]:
    """All examples as one batch, the rows of which are in a fixed order."""
    made = Examples(examples, block_size=24, batch_size=99, packed=packed)
    assert len(made.rows) == (2 if packed else 5)
    return made.batch(0)


def loss_and_gradients(model: Model, arrays: tuple[Any, ...]) -> tuple[float, dict[str, Any]]:
    for p in model.parameters():
        p.grad = None
    loss = model.loss(*arrays)
    loss.backward()
    return float(loss.item()), {name: np.array(p.grad) for name, p in model.named_parameters()}


def test_packed_and_unpacked_batches_have_equal_losses_and_gradients(model: Model) -> None:
    loss, gradients = loss_and_gradients(model, batch(packed=True))
    expected_loss, expected = loss_and_gradients(model, batch(packed=False))
    assert loss == pytest.approx(expected_loss, abs=1e-6)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-6, err_msg=name)


def test_the_loss_is_pytorchs_of_each_example_alone(model: Model) -> None:
    torch = pytest.importorskip("torch")
    model.astype("float64")
    weight = model.wte.weight  # of the output layer, too
    total, count = 0.0, 0
    for ids, in_answer in EXAMPLES:
        hidden = torch.tensor(model.hidden_states(np.array([ids[:-1]])).numpy()[0])
        targets = torch.where(torch.tensor(in_answer[1:]), torch.tensor(ids[1:]), -100)
        logits = hidden @ torch.tensor(weight.numpy()).T
        total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
        count += sum(in_answer[1:])
    assert float(model.loss(*batch(packed=True)).item()) == pytest.approx(total / count, rel=1e-12)


def test_packed_attention_is_pytorchs_with_a_mask_of_blocks() -> None:
    torch = pytest.importorskip("torch")
    x, _, pos = batch(packed=True)
    B, T = x.shape
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((B, 2, T, 4)) for _ in range(3))
    sequence = np.cumsum(pos == 0, axis=1)  # the number of each token's example in its row
    allowed = (sequence[:, None, :, None] == sequence[:, None, None, :]) & np.tri(T, dtype=bool)
    mask = causal_mask(tg.asarray(pos), T, packed=True)
    np.testing.assert_array_equal(mask.numpy(), allowed)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *map(torch.tensor, (q, k, v)), attn_mask=torch.tensor(allowed)
    )
    y = tg.attention(*map(tg.asarray, (q, k, v)), mask=mask)
    np.testing.assert_allclose(y.numpy(), expected.numpy(), rtol=0, atol=1e-12)


def test_labels_of_a_prompt_have_no_effect_and_those_of_an_answer_do(model: Model) -> None:
    """A label is what the token before it is to predict: changed in the targets alone, since it is also an input."""
    x, y, pos = batch(packed=True)
    loss, gradients = loss_and_gradients(model, (x, y, pos))
    first = EXAMPLES[4]  # the longest is packed first: its answer begins at token 3
    assert y[0, :2].tolist() == [IGNORED] * 2 and y[0, 2] == first.ids[3]
    for at, is_prompt in ((0, True), (1, True), (2, False), (15, False)):
        ids = [*first.ids]
        ids[at + 1] = (ids[at + 1] + 1) % 13
        changed = batch([*EXAMPLES[:4], Example(ids, first.in_answer)], packed=True)[1]
        other_loss, other = loss_and_gradients(model, (x, changed, pos))
        same = other_loss == loss and all((other[name] == g).all() for name, g in gradients.items())
        assert same == is_prompt


def test_an_example_does_not_see_the_others(model: Model) -> None:
    x, _, pos = batch(packed=True)
    before = model.hidden_states(x, pos=pos).numpy()
    inside = pos[0] == 0
    start = int(np.flatnonzero(inside)[1])  # of the second example in the first row
    x[0, :start] = (x[0, :start] + 1) % 13
    after = model.hidden_states(x, pos=pos).numpy()
    np.testing.assert_array_equal(before[0, start:], after[0, start:])
    assert (before[0, :start] != after[0, :start]).any()


@pytest.mark.parametrize("batch_size", [1, 2])
def test_accumulated_batches_count_every_answer_token_once(model: Model, batch_size: int) -> None:
    model.astype("float64")
    arrays = batch(packed=True)
    loss, gradients = loss_and_gradients(model, arrays)
    for p in model.parameters():
        p.grad = None
    assert accumulate_gradients(model, arrays, batch_size) == pytest.approx(loss, rel=1e-12)
    for name, p in model.named_parameters():
        np.testing.assert_allclose(np.asarray(p.grad), gradients[name], rtol=0, atol=1e-12)


def test_the_loss_of_answers_does_not_depend_on_batches_or_rows(model: Model) -> None:
    model.astype("float64")
    expected = float(model.loss(*batch(packed=False)).item())
    for packed, batch_size in ((True, 1), (True, 2), (False, 2)):
        examples = Examples(EXAMPLES, block_size=24, batch_size=batch_size, packed=packed)
        assert answer_loss(model, examples) == pytest.approx(expected, rel=1e-12)


@given(st.lists(st.integers(1, 10), min_size=1, max_size=30))
def test_every_example_is_in_one_row_that_has_room_for_it(lengths: list[int]) -> None:
    rows = pack(lengths, 10)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert max(sum(lengths[i] for i in row) for row in rows) <= 10
    # First fit: any two rows together have more than one row has room for, so at most twice as many as needed.
    assert len(rows) <= 2 * -(-sum(lengths) // 10)


def test_a_long_example_is_cut() -> None:
    x, y, pos = Examples(EXAMPLES, block_size=6, batch_size=9, packed=False).batch(0)
    ids = EXAMPLES[4].ids
    assert x.shape == (5, 6) and x[4].tolist() == ids[:6] and y[4].tolist() == [IGNORED, IGNORED, *ids[3:7]]
