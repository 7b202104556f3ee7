"""The plain and the fused model, compared with an independent GPT-2 in PyTorch: a dict of weights and functions.

Both use the same weights and data, in float32; the weights may be in Hugging Face's layout.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import tensorgrad as tg
from gpt.fused import FusedGPT
from gpt.model import GPT
from gpt.weights import build_model
from gpt.weights.huggingface import read_weights

torch = pytest.importorskip("torch")
F = torch.nn.functional

FOUR_LAYERS = {"block_size": 32, "vocab_size": 65, "n_layer": 4, "n_head": 4, "n_embd": 64}


def torch_gpt(w: dict, idx: torch.Tensor, n_layer: int, n_head: int, *, conv1d: bool = False) -> torch.Tensor:
    """Logits (B, T, V); conv1d: matrices are stored (in, out), as in Hugging Face's files."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        mean = x.mean(-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(-1, keepdim=True)
        y = (x - mean) / torch.sqrt(variance + 1e-5) * w[f"{name}.weight"]
        return y + w.get(f"{name}.bias", 0)

    def affine(x: torch.Tensor, name: str) -> torch.Tensor:
        matrix = w[f"{name}.weight"]
        return x @ (matrix if conv1d else matrix.T) + w.get(f"{name}.bias", 0)

    def heads(x: torch.Tensor) -> list[torch.Tensor]:
        size = x.shape[-1] // n_head
        return [x[..., i * size : (i + 1) * size] for i in range(n_head)]

    T = idx.shape[1]
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    x = F.embedding(idx, w["wte.weight"]) + w["wpe.weight"][:T]
    for layer in range(n_layer):
        h = f"h.{layer}"
        q, k, v = affine(norm(x, f"{h}.ln_1"), f"{h}.attn.c_attn").chunk(3, dim=-1)
        outputs = []
        for q1, k1, v1 in zip(heads(q), heads(k), heads(v), strict=True):
            scores = q1 @ k1.mT / math.sqrt(q1.shape[-1])
            outputs.append(scores.masked_fill(future, -torch.inf).softmax(-1) @ v1)
        x = x + affine(torch.cat(outputs, -1), f"{h}.attn.c_proj")
        u = affine(norm(x, f"{h}.ln_2"), f"{h}.mlp.c_fc")
        u = 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
        x = x + affine(u, f"{h}.mlp.c_proj")
    return norm(x, "ln_f") @ w["wte.weight"].T


def torch_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over every token."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def batch(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.random.default_rng(seed).integers(65, size=(rows, 33))
    return tokens[:, :-1], tokens[:, 1:]


def randomise(model: GPT) -> None:
    """Move the weights away from their small initial values, so that attention is not uniform."""
    rng = np.random.default_rng(1)
    for _, p in model.named_parameters():
        p.data += 0.05 * rng.standard_normal(p.shape).astype(np.float32)


def as_torch(model: GPT) -> dict:
    return {name: torch.tensor(np.array(p.numpy()), requires_grad=True) for name, p in model.named_parameters()}


@pytest.fixture(params=[True, False], ids=["bias", "no-bias"])
def bias(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(params=[GPT, FusedGPT])
def pair(request: pytest.FixtureRequest, bias: bool) -> tuple[GPT, dict]:
    tg.manual_seed(1)
    model = request.param({**FOUR_LAYERS, "bias": bias})
    randomise(model)
    return model, as_torch(model)


def test_logits_and_gradients_equal_those_of_pytorch(pair: tuple) -> None:
    model, w = pair
    x, y = batch(4)
    logits, loss = model(x, y)
    loss.backward()
    expected = torch_gpt(w, torch.tensor(x), 4, 4)
    expected_loss = torch_loss(expected, torch.tensor(y))
    expected_loss.backward()
    np.testing.assert_allclose(logits.numpy(), expected.detach().numpy(), atol=1e-5, rtol=1e-5)
    assert loss.item() == pytest.approx(expected_loss.item(), abs=1e-5)
    for name, p in model.named_parameters():
        error = np.linalg.norm(p.grad - w[name].grad.numpy())
        assert error <= 1e-4 * np.linalg.norm(w[name].grad.numpy()), name


def test_ten_adamw_steps_equal_those_of_pytorch(pair: tuple) -> None:
    model, w = pair
    options = {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.1}
    optimizer = tg.optim.AdamW(model.parameters(), **options)
    expected_optimizer = torch.optim.AdamW(w.values(), **options)
    for step in range(10):
        x, y = batch(4, seed=step)
        loss = model.loss(x, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        expected = torch_loss(torch_gpt(w, torch.tensor(x), 4, 4), torch.tensor(y))
        expected.backward()
        expected_optimizer.step()
        expected_optimizer.zero_grad()
        assert loss.item() == pytest.approx(expected.item(), abs=1e-5), step


# --------------------------------------------------------------------------------------------------
# GPT-2's weights as Hugging Face stores them


def test_hugging_face_weights_give_the_same_logits(tmp_path: Path) -> None:
    """A file with Hugging Face's names and layout is loaded, and compared with PyTorch on that same layout."""
    generator = torch.Generator().manual_seed(2)
    width, n_layer, n_head = 32, 3, 4
    shapes = {"wte.weight": (50, width), "wpe.weight": (16, width)}
    for h in [f"h.{layer}." for layer in range(n_layer)]:
        for conv, n_in, n_out in [("attn.c_attn", 1, 3), ("attn.c_proj", 1, 1), ("mlp.c_fc", 1, 4),
                                  ("mlp.c_proj", 4, 1)]:  # fmt: skip
            shapes[f"{h}{conv}.weight"] = (n_in * width, n_out * width)
            shapes[f"{h}{conv}.bias"] = (n_out * width,)
    norms = [*(f"h.{layer}.{ln}" for layer in range(n_layer) for ln in ("ln_1", "ln_2")), "ln_f"]
    shapes |= {f"{norm}.{kind}": (width,) for norm in norms for kind in ("weight", "bias")}
    w = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}

    file = {f"transformer.{name}": value.numpy() for name, value in w.items()}
    save_file(file, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config, weights = read_weights(tmp_path / "model.safetensors", n_head=n_head)
    model = build_model(config, weights=weights)
    idx = np.random.default_rng(0).integers(50, size=(2, 16))
    expected = torch_gpt(w, torch.tensor(idx), n_layer, n_head, conv1d=True)
    np.testing.assert_allclose(model(idx, idx)[0].numpy(), expected.numpy(), atol=2e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by the import of torch.func
def test_a_hessian_vector_product_equals_that_of_pytorch(pair: tuple) -> None:
    model, w = pair
    model.astype(np.float64)
    idx, targets = batch(2)
    rng = np.random.default_rng(2)
    vs = {name: rng.standard_normal(p.shape) for name, p in model.named_parameters()}
    params = dict(model.named_parameters())
    with tg.higher_order():
        found = tg.gradients(model.loss(idx, targets), list(params.values()), create_graph=True)
        dot = sum(tg.sum(dx * v) for dx, v in zip(found, vs.values(), strict=True))
        product = tg.gradients(dot, list(params.values()))

    def loss(w: dict) -> torch.Tensor:
        return torch_loss(torch_gpt(w, torch.tensor(idx), 4, 4), torch.tensor(targets))

    w = {name: p.detach().double() for name, p in w.items()}
    _, expected = torch.func.jvp(torch.func.grad(loss), (w,), ({name: torch.tensor(v) for name, v in vs.items()},))
    for name, hv in zip(params, product, strict=True):
        size = float(expected[name].abs().max())
        np.testing.assert_allclose(hv.data, expected[name].numpy(), rtol=1e-9, atol=1e-9 * size, err_msg=name)
