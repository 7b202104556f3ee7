"""A hundred training steps on the numpy and numba backends: the same losses, reproducible bit for bit."""

import numpy as np
import pytest

import tensorgrad as tg
from gpt.config import GPTConfig
from gpt.fused import FusedGPT

pytest.importorskip("numba")

STEPS, BATCH, BLOCK = 100, 4, 64


def losses(backend: str) -> list[float]:
    """The losses of a model that learns sequences in which every token is the previous one plus 0, 1 or 2."""
    rng = np.random.default_rng(0)
    text = np.cumsum(rng.integers(0, 3, 20_000)) % 65
    with tg.use_backend(backend):
        tg.manual_seed(1337)
        model = FusedGPT(GPTConfig(block_size=BLOCK, vocab_size=65, n_layer=2, n_head=4, n_embd=64))
        parameters = list(model.parameters())
        optimizer = tg.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.95))
        found = []
        for _ in range(STEPS):
            windows = np.stack([text[i : i + BLOCK + 1] for i in rng.integers(0, len(text) - BLOCK, BATCH)])
            loss = model.loss(windows[:, :-1], windows[:, 1:])
            loss.backward()
            tg.optim.clip_grad_norm(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            found.append(float(loss.item()))
    return found


def test_a_hundred_training_steps_agree_between_numpy_and_numba() -> None:
    numpy, numba = losses("numpy"), losses("numba")
    assert numpy[-1] < 0.7 * numpy[0]  # it learned, so that an error would have grown
    np.testing.assert_allclose(numba, numpy, rtol=0, atol=1e-5)
    assert losses("numba") == numba
    assert losses("numpy") == numpy
