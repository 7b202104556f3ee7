"""Llama, plain and fused: against an independent one in PyTorch, with a cache, in training and in checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from gpt.checkpoint import load_checkpoint
from gpt.config import LlamaConfig
from gpt.evaluate import score
from gpt.generate import Generation
from gpt.llama import Llama
from gpt.train.config import NAMED_CONFIGS
from gpt.train.flags import Arguments
from gpt.train.loop import train
from gpt.train.run import Run, make_run
from gpt.weights import Model, build_model

torch = pytest.importorskip("torch")
F = torch.nn.functional
pytestmark = pytest.mark.usefixtures("numpy_backend")

SHAPE: dict[str, Any] = {"block_size": 12, "vocab_size": 31, "n_layer": 2, "n_head": 6, "n_embd": 24, "n_hidden": 20}
CONFIGS = {
    "one head of keys, tied": LlamaConfig(**SHAPE, n_kv_head=1),
    "three, untied": LlamaConfig(**SHAPE, n_kv_head=3, tied=False, rope_base=50.0, norm_eps=0.1),
    "all": LlamaConfig(**SHAPE, n_kv_head=6),
}


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> LlamaConfig:
    return CONFIGS[request.param]


@pytest.fixture(params=[True, False], ids=["plain", "fused"])
def model(config: LlamaConfig, request: pytest.FixtureRequest) -> Model:
    """In float64, with weights far enough from their initial values that every part matters."""
    model = build_model(config, plain=request.param)
    rng = np.random.default_rng(1)
    for p in model.parameters():
        p.data[...] += 0.3 * rng.standard_normal(p.shape)
    model.astype("float64")
    return model


def tokens(rows: int = 2, n: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(31, size=(rows, n))


def torch_llama(w: dict[str, torch.Tensor], idx: np.ndarray, c: LlamaConfig) -> torch.Tensor:
    """Logits (B, T, V); a position is a complex number: x[i] + i x[i + D/2] is multiplied by exp(i position angle)."""
    B, T = idx.shape
    D = c.n_embd // c.n_head
    angles = torch.outer(torch.arange(T).double(), c.rope_base ** (-torch.arange(0, D, 2).double() / D))

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.rms_norm(x, (c.n_embd,), w[f"{name}.weight"], c.norm_eps)

    def heads(x: torch.Tensor, name: str, rotated: bool) -> torch.Tensor:
        y = (x @ w[f"{name}.weight"].T).view(B, T, -1, D).transpose(1, 2)  # (B, heads, T, D)
        if not rotated:
            return y
        z = torch.complex(y[..., : D // 2], y[..., D // 2 :]) * torch.exp(1j * angles)
        return torch.cat([z.real, z.imag], -1)

    x = F.embedding(torch.tensor(idx), w["wte.weight"])
    for i in range(c.n_layer):
        h, a = f"h.{i}", norm(x, f"h.{i}.norm_1")
        q, k, v = (heads(a, f"{h}.attn.{n}_proj", n != "v") for n in "qkv")
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + y.transpose(1, 2).reshape(B, T, c.n_embd) @ w[f"{h}.attn.o_proj.weight"].T
        u = norm(x, f"{h}.norm_2")
        gate, up = (u @ w[f"{h}.mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        x = x + (F.silu(gate) * up) @ w[f"{h}.mlp.down_proj.weight"].T
    return norm(x, "norm_f") @ w["wte.weight" if c.tied else "lm_head.weight"].T


def test_logits_loss_and_gradients_are_those_of_pytorch(model: Model, config: LlamaConfig) -> None:
    idx, targets = tokens()[:, :-1], tokens()[:, 1:]
    w = {name: torch.tensor(np.array(p.data), requires_grad=True) for name, p in model.named_parameters()}
    expected = torch_llama(w, idx, config)
    np.testing.assert_allclose(model(idx, targets)[0].numpy(), expected.detach().numpy(), rtol=1e-9, atol=1e-9)
    expected_loss = F.cross_entropy(expected.flatten(0, 1), torch.tensor(targets).flatten())
    loss = model.loss(idx, targets)
    loss.backward()
    expected_loss.backward()
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-12)
    for name, p in model.named_parameters():
        np.testing.assert_allclose(p.grad, w[name].grad.numpy(), rtol=1e-7, atol=1e-11, err_msg=name)


def test_parameters_are_counted_by_the_configuration(model: Model, config: LlamaConfig) -> None:
    parameters = config.count_parameters()
    assert parameters.total == model.num_params()
    assert parameters.block == model.h[0].num_params()
    looked_up = 0 if config.tied else model.wte.weight.size
    attention = 12 * config.n_layer * config.n_embd * config.block_size
    assert model.estimate_flops_per_token() == 6 * (model.num_params() - looked_up) + attention


@pytest.mark.parametrize("prompts", [[[1, 2, 3]], [[1, 2, 3, 4, 5], [6], [7, 8]]], ids=["one", "of different lengths"])
def test_a_cache_gives_the_logits_that_the_whole_text_gives(model: Model, prompts: list[list[int]]) -> None:
    """Within the window and past it, where the model sees the last tokens."""
    batch = Generation(model, prompts, max_new_tokens=14, temperature=0)
    for _ in range(14):
        for row, logits in batch.next_logits().items():
            with tg.no_grad():
                expected = model(np.array([batch.rows[row][-12:]]))[0].numpy()[0, 0]
            np.testing.assert_allclose(logits, expected, rtol=1e-8, atol=1e-8)
            batch.rows[row].append(int(logits.argmax()))


def test_a_text_is_scored_as_by_the_loss_of_its_windows(model: Model) -> None:
    text = tokens(1, 37)[0]
    losses = [model.loss(text[i : i + 12][None], text[i + 1 : i + 13][None]).item() for i in (0, 12, 24)]
    assert score(model, text).loss == pytest.approx(np.mean(losses), rel=1e-6)


def test_recomputed_blocks_give_the_same_gradients(model: Model) -> None:
    gradients = []
    for model.recompute in (False, True):
        model.loss(tokens(), tokens()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
        for p in model.parameters():
            p.grad = None
    for name, gradient in gradients[0].items():
        np.testing.assert_allclose(gradients[1][name], gradient, rtol=1e-12, atol=1e-15, err_msg=name)


# --------------------------------------------------------------------------------------------------
# Training


def begin(**given: Any) -> Run:
    own = {"data": "text.txt", "backend": "numpy", "max_iters": 6, "eval_interval": 3, "eval_iters": 1, "plot": False}
    return make_run(Arguments(given={**NAMED_CONFIGS["llama-char"], **own, "out": "run", **given}, resume=None))


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    return tmp_path


def test_llama_char_learns(workplace: Path) -> None:
    run = begin(max_iters=20, warmup_iters=2)
    assert isinstance(run.model, Llama) and run.model.config.n_kv_head == 2
    before = score(run.model, run.val_loader.tokens[:200]).loss
    train(run)
    assert before > 3 > 2.6 > score(run.model, run.val_loader.tokens[:200]).loss


def test_a_resumed_run_has_the_same_weights_bit_for_bit(workplace: Path) -> None:
    train(begin(out="whole", tied=False))
    train(begin(out="half", tied=False, max_iters=3, lr_decay_iters=6))
    train(make_run(Arguments(given={"max_iters": 6}, resume="half")))
    whole, half = (load_checkpoint(folder) for folder in ("whole", "half"))
    assert whole.state.model_config == half.state.model_config
    for name, array in load_checkpoint("whole/step-000003").weights.items():
        np.testing.assert_array_equal(load_checkpoint("half/step-000003").weights[name], array, err_msg=name)
    assert "lm_head.weight" in whole.weights
    for name, array in whole.weights.items():
        np.testing.assert_array_equal(half.weights[name], array, err_msg=name)
