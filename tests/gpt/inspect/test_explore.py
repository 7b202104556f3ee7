"""What the explorer computes: attention, stream and logit lens beside transformers, gradients beside differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from gpt.config import GPTConfig, LlamaConfig
from gpt.fused import FusedGPT, FusedLlama
from gpt.inspect.attribution import attribute, slopes
from gpt.inspect.capture import capture, final_norm, head_weight, lens
from gpt.inspect.explore import explore, neighbours
from gpt.llama import Llama
from gpt.lora import LoRA, add_lora
from gpt.model import GPT
from gpt.weights import Model, build_model
from gpt.weights.arrays import converted
from gpt.weights.huggingface import read_weights

HERE = Path(__file__).parent
MODELS = HERE.parent / "weights" / "transformers"  # with random weights, far from the initial values
NAMES = ("gpt2", "llama-tied", "llama-untied")
SMALL: list[Any] = [
    GPTConfig(vocab_size=11, block_size=24, n_layer=2, n_head=2, n_embd=8, bias=True, dropout=0.5),
    LlamaConfig(vocab_size=11, block_size=24, n_layer=2, n_head=4, n_kv_head=2, n_embd=16, n_hidden=24, tied=False),
]
small = pytest.mark.parametrize("config", SMALL, ids=["gpt", "llama"])


@pytest.fixture(autouse=True)
def backend(numpy_backend: None) -> None:
    """NumPy: other backends compute the same and are tested as such."""


def randomised(config: Any, *, plain: bool = True) -> Model:
    model = build_model(config, plain=plain)
    rng = np.random.default_rng(0)
    for p in model.parameters():
        p.data[...] += 0.4 * rng.standard_normal(p.shape)
    return model


def wide(model: Model) -> Model:
    """The same in float64, without dropout and without gradients of its weights."""
    model.eval().astype("float64")
    for p in model.parameters():
        p.requires_grad = False
    return model


def pretrained(name: str, quantize: str = "none") -> Model:
    config, weights = read_weights(MODELS / name)
    return build_model(config, plain=True, weights={n: converted(n, a, quantize) for n, a in weights.items()})


@pytest.mark.parametrize("name", NAMES)
def test_attention_stream_and_lens_are_those_of_transformers(name: str) -> None:
    """GPT-2, shared heads of keys and a single one, tied and untied."""
    figures = np.load(HERE / "transformers.npz")
    model = pretrained(name)
    captured = capture(model, figures["idx"])
    attention = np.concatenate([x.numpy() for x in captured.attention])
    np.testing.assert_allclose(attention, figures[f"{name}.attention"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(attention.sum(axis=-1), 1, rtol=1e-6)
    assert (np.triu(attention, 1) == 0).all()
    stream = np.concatenate([x.numpy() for x in captured.stream[::2]])
    theirs = figures[f"{name}.stream"]
    np.testing.assert_allclose(stream[:-1], theirs, rtol=1e-4, atol=1e-5)
    logits = lens(model, captured.stream[-1])[0]
    np.testing.assert_allclose(logits, figures[f"{name}.logits"], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(logits, model(figures["idx"], figures["idx"])[0].numpy()[0])

    found = explore(model, figures["idx"][0])
    norms = np.sqrt((theirs.astype(np.float64) ** 2).sum(axis=-1))
    np.testing.assert_allclose(found.stream_norms[:-1:2], norms, rtol=1e-4)
    added = [x.numpy()[0] for x in captured.updates]
    np.testing.assert_allclose(found.added_norms, [[np.sqrt(row @ row) for row in x.astype(np.float64)] for x in added])
    whole = stream[0] + sum(added[:2])  # the stream is what went in and all that was added
    np.testing.assert_allclose(whole, stream[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_predictions_are_those_of_the_logits(name: str) -> None:
    figures = np.load(HERE / "transformers.npz")
    idx, logits = figures["idx"][0], figures[f"{name}.logits"].astype(np.float64)
    found = explore(pretrained(name), idx)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    top = np.argsort(-expected, axis=1)[:, :10]
    np.testing.assert_array_equal(found.top_ids[-1], top)
    np.testing.assert_allclose(found.top_probabilities[-1], np.take_along_axis(expected, top, axis=1), rtol=1e-4)
    np.testing.assert_allclose(found.logit, logits.max(axis=1), rtol=1e-5)
    for t, following in enumerate(idx[1:]):
        assert found.next_probability[-1, t] == pytest.approx(expected[t, following], rel=1e-4)
        assert found.next_rank[-1, t] == list(np.argsort(-expected[t])).index(following)


@small
def test_gradient_times_input_is_that_of_finite_differences(config: Any) -> None:
    """More positions than are computed in one pass; nothing depends on a later token."""
    model = wide(randomised(config))
    T = 20
    tokens = np.random.default_rng(1).integers(11, size=T)
    x = capture(model, tokens[None]).stream[0].numpy()[0]
    targets = np.random.default_rng(2).integers(11, size=T)
    found = attribute(model, x, targets)

    def logits(x: np.ndarray) -> np.ndarray:
        y = tg.asarray(x[None])
        for block in model.h:
            y = block(y, tg.arange(T))
        return tg.linear(final_norm(model)(y), head_weight(model)).numpy()[0][np.arange(T), targets]

    h = 1e-5
    with tg.no_grad():
        for s in range(T):
            up, down = x.copy(), x.copy()
            up[s] *= 1 + h
            down[s] *= 1 - h
            difference = (logits(up) - logits(down)) / (2 * h)
            np.testing.assert_allclose(found[:, s], difference, rtol=1e-6, atol=1e-8)
    assert (np.triu(found, 1) == 0).all() and np.abs(found).max() > 0.1
    np.testing.assert_allclose(found.sum(axis=1), slopes(model, x, targets), rtol=1e-4, atol=1e-4)


def test_the_slope_in_float32_checks_the_sum() -> None:
    found = explore(pretrained("llama-tied"), np.load(HERE / "transformers.npz")["idx"][0])
    np.testing.assert_allclose(found.attribution.sum(axis=1), found.slope, atol=5e-3 * np.abs(found.attribution).max())


@small
def test_fused_and_quantised_models_are_shown_too(config: Any) -> None:
    """A fused model is read in its plain form; neither is changed."""
    plain = randomised(config, plain=True)
    fused = (FusedLlama if isinstance(plain, Llama) else FusedGPT)(config)
    fused.load_state_dict(plain.state_dict())
    tokens = [1, 2, 3, 2, 5]
    one, other = explore(plain, tokens), explore(fused, tokens)
    for name in ("attention", "top_ids", "attribution", "neighbour_ids"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert fused.training and all(p.requires_grad for p in fused.parameters())
    with pytest.raises(ValueError, match="fused ops hides its attention"):
        capture(fused, np.array([tokens]))


def test_a_model_with_quantised_weights() -> None:
    config = LlamaConfig(
        vocab_size=37, block_size=16, n_layer=2, n_head=4, n_kv_head=2, n_embd=64, n_hidden=96, tied=True
    )
    weights = randomised(config).state_dict()
    quantised = {name: converted(name, array, "q8_0") for name, array in weights.items()}
    exact = {name: converted(name, array, "none") for name, array in quantised.items()}
    tokens = np.arange(12)
    one, other = (explore(build_model(config, weights=w), tokens) for w in (quantised, exact))
    np.testing.assert_allclose(one.attention, other.attention, atol=1e-5)
    np.testing.assert_allclose(one.attribution, other.attribution, atol=1e-4 * np.abs(other.attribution).max())
    np.testing.assert_allclose(one.neighbour_cosines, other.neighbour_cosines, atol=1e-6)


def test_the_nearest_tokens_of_the_embedding() -> None:
    model = GPT(GPTConfig(vocab_size=5, block_size=8, n_layer=1, n_head=1, n_embd=2))
    model.wte.weight.data[...] = [[1, 0], [2, 0.2], [0, 3], [-1, 0], [0, 0]]
    ids, cosines = neighbours(model, np.array([0, 2, 0]))
    assert ids[0].tolist() == ids[2].tolist() == [1, 2, 4, 3]
    assert cosines[0] == pytest.approx([2 / np.hypot(2, 0.2), 0, 0, -1])
    assert ids[1].tolist()[0] == 1


@pytest.mark.parametrize("tokens", [[], [0] * 25])
def test_what_cannot_be_explored(tokens: list[int]) -> None:
    with pytest.raises(ValueError, match="GPT: "):
        explore(randomised(SMALL[0]), tokens)


def test_weights_that_are_not_finite() -> None:
    model = randomised(SMALL[0])
    model.wte.weight.data[3] = np.inf
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="the logits are not finite"):
        explore(model, [1, 2])


def test_adapters_have_to_be_merged() -> None:
    model = randomised(SMALL[1])
    add_lora(model, LoRA(rank=2, alpha=4))
    with pytest.raises(ValueError, match="a model with adapters"):
        explore(model, [1, 2])


def test_one_token() -> None:
    found = explore(randomised(SMALL[0]), [3])
    assert found.next_probability.shape == (3, 0) and found.attention.reshape(-1).tolist() == [1] * 4
