"""A GPT on the cupy backend, with its kernels emulated on the CPU: the same losses and gradients as on NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from gpt.config import GPTConfig
from gpt.fused import FusedGPT
from gpt.model import GPT

# sizes that are not multiples of a tile, and rows that are not aligned to 16 bytes
CONFIG = GPTConfig(vocab_size=67, block_size=21, n_layer=2, n_head=2, n_embd=64, dropout=0.1, bias=True)


def train(k: Any, dtype: str, steps: int, make: type[GPT] = FusedGPT) -> tuple[list[float], list[np.ndarray]]:
    """Train for a few steps and return their losses and gradient norms, and the gradients of the last step."""
    tg.manual_seed(1)
    model = make(CONFIG).astype(dtype)
    optimizer = tg.optim.AdamW(model.parameters(), lr=1e-2, master_weights=dtype != "float32")
    metrics: list[Any] = []
    grads: list[np.ndarray] = []
    for step in range(steps):
        tokens = tg.Generator(3).integers(0, CONFIG.vocab_size, (2, 22), step=step)
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        metrics += [loss.detach(), tg.optim.clip_grad_norm(model.parameters(), 1.0)]
        grads = [np.array(k.to_numpy(p.grad), np.float64) for p in model.parameters()]
        optimizer.step()
        optimizer.zero_grad()
    return [float(x.item() if isinstance(x, tg.Tensor) else x) for x in metrics], grads


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("bfloat16", 3e-2), ("float16", 1e-2)])
def test_training_equals_training_on_numpy(gpu: Any, dtype: str, tolerance: float) -> None:
    there, there_grads = train(gpu, dtype, 3)
    with tg.use_backend("numpy") as plainly:
        here, here_grads = train(plainly.backend, dtype, 3)
    np.testing.assert_allclose(there, here, rtol=tolerance)
    norm = np.sqrt(sum((g**2).sum() for g in here_grads))
    for a, b in zip(there_grads, here_grads, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * norm)


@pytest.mark.parametrize("gib", [80, 0])
def test_gelu_is_computed_inside_the_products_of_the_mlp(gpu: Any, gib: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its result is kept where there is room, else computed again."""
    monkeypatch.setattr(gpu.xp.cuda.runtime, "memGetInfo", lambda: (0, gib * 2**30))
    gpu.__dict__.pop("min_recompute_bytes", None)
    gpu.cublaslt.requested.clear()
    gpu.launcher.launches.clear()
    train(gpu, "bfloat16", 1)
    gpu.__dict__.pop("min_recompute_bytes", None)
    used = [product.epilogue for product in gpu.cublaslt.requested]
    assert used.count("bias_gelu") == used.count("dgelu") == CONFIG.n_layer
    kernels = [launch.kernel for launch in gpu.launcher.launches if "gelu" in launch.kernel]
    assert kernels == ([] if gib else ["gelu_tanh"] * CONFIG.n_layer)


def test_a_step_of_the_plain_model_equals_one_of_the_fused_model(gpu: Any) -> None:
    (loss, norm), grads = train(gpu, "float32", 1, GPT)
    (fused_loss, fused_norm), fused_grads = train(gpu, "float32", 1)
    np.testing.assert_allclose([fused_loss, fused_norm], [loss, norm], rtol=2e-5)
    for a, b in zip(fused_grads, grads, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * norm)


def test_a_step_copies_nothing_to_the_host(gpu: Any) -> None:
    """This includes the forward pass, the backward pass, clipping and the update."""
    tg.manual_seed(1)
    model = FusedGPT(CONFIG)
    optimizer = tg.optim.AdamW(model.parameters(), lr=1e-2)
    tokens = tg.Generator(3).integers(0, CONFIG.vocab_size, (2, 22))
    for _ in range(2):
        before = gpu.xp.copied_to_host
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        tg.optim.clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        assert gpu.xp.copied_to_host == before
