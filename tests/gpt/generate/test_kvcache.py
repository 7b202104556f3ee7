"""The key/value cache: removing tokens, growing, and evaluating a text in pieces, on every CPU backend."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import tensorgrad as tg
from gpt.config import GPTConfig, LlamaConfig
from gpt.generate import Generation
from gpt.generate.kvcache import KVCache
from gpt.weights import Model, build_model

WINDOW, VOCAB = 40, 19
CONFIGS = {
    "gpt2": GPTConfig(block_size=WINDOW, vocab_size=VOCAB, n_layer=2, n_head=2, n_embd=16),
    "llama": LlamaConfig(
        block_size=WINDOW, vocab_size=VOCAB, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, n_hidden=48
    ),
}
IDS = np.random.default_rng(0).integers(VOCAB, size=(1, WINDOW))


@pytest.fixture(params=["numpy", "numba"], autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with tg.use_backend(request.param), tg.no_grad():
        yield


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> Model:
    tg.manual_seed(3)  # the same weights whatever ran before: rounding differs from model to model
    made = build_model(CONFIGS[request.param])
    rng = np.random.default_rng(3)
    for p in made.parameters():
        p.data = (p.data + 0.3 * rng.standard_normal(p.shape)).astype(np.float32)
    return made


def logits_of(model: Model, ids: np.ndarray, cache: KVCache | None = None) -> np.ndarray:
    return model(ids, cache=cache)[0].numpy()[:, -1]


@pytest.mark.parametrize("cuts", [[7, 33], [1, 39], [30, 2, 8], [20, 1, 1, 18], [4] * 10])
def test_a_text_in_pieces_gives_the_logits_of_the_whole(model: Model, cuts: list[int]) -> None:
    """Of every position: the first new token does not see the last, and all see the tokens in the cache."""
    cache, whole, end = KVCache(model, 1), model.hidden_states(IDS).numpy(), 0
    for n in cuts:
        piece = model.hidden_states(IDS[:, end : end + n], cache).numpy()
        np.testing.assert_allclose(piece, whole[:, end : end + n], atol=2e-5)
        end += n


def test_a_cropped_cache_continues_with_other_tokens(model: Model) -> None:
    cache = KVCache(model, 1)
    logits_of(model, IDS[:, :30], cache)
    cache.crop(11)
    assert cache.lengths.tolist() == [11]
    cache.crop(20)  # removes nothing
    other = np.concatenate([IDS[:, :11], IDS[:, 20:29]], axis=1)
    np.testing.assert_allclose(logits_of(model, other[:, 11:], cache), logits_of(model, other), atol=2e-5)


def test_a_cache_grows_without_losing_tokens(model: Model) -> None:
    cache, capacities = KVCache(model, 1, capacity=0), set()
    for i in range(WINDOW):
        cache.reserve(i + 1)
        capacities.add(cache.capacity)
        logits = logits_of(model, IDS[:, i : i + 1], cache)
        np.testing.assert_allclose(logits, logits_of(model, IDS[:, : i + 1]), atol=2e-5)
    assert capacities == {1, 2, 4, 8, 16, 32, WINDOW}  # it doubles, up to the window
    cache.reserve(10**9)
    assert cache.capacity == WINDOW == cache.layers[0].k.shape[2]


def test_generation_continues_a_cache(model: Model) -> None:
    """It evaluates only what the cache does not hold, whatever the number of these tokens."""
    prompt = IDS[0, :20].tolist()
    expected = [new[0] for new in Generation(model, [prompt], max_new_tokens=12, temperature=0)]
    for n_held in (1, 12, 19):
        cache = KVCache(model, 1, capacity=n_held)
        logits_of(model, IDS[:, :n_held], cache)
        batch = Generation(model, [prompt], max_new_tokens=12, temperature=0, cache=cache)
        assert [new[0] for new in batch] == expected
        assert cache.lengths.tolist() == [len(prompt) + 11] and cache.capacity >= 31
