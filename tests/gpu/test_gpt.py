"""A GPT on a GPU: every gradient against float64 on the CPU, the same bits twice, recorded steps, writing."""

from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from gpt.config import GPTConfig, LlamaConfig
from gpt.fused import FusedGPT, FusedLlama
from gpt.generate import generate
from gpt.model import GPT
from tensorgrad.random import Stream, default_generator

pytest.importorskip("ml_dtypes")
# of the norm of all gradients together
TOLERANCE = {"float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}


def config(place: Any, dropout: float = 0.1) -> GPTConfig:
    n_layer, n_head, n_embd, block_size, vocab_size = place.size((4, 6, 384, 250, 1031), (2, 1, 64, 21, 67))
    return GPTConfig(
        vocab_size=vocab_size, block_size=block_size, n_layer=n_layer, n_head=n_head, n_embd=n_embd, dropout=dropout,
        bias=True,
    )  # fmt: skip


def batch(c: GPTConfig, step: int = 0) -> tuple[Any, Any]:
    tokens = tg.Generator(3).integers(0, c.vocab_size, (3, c.block_size + 1), step=step)
    return tokens[:, :-1], tokens[:, 1:]


def loss_and_gradients(model: GPT, c: GPTConfig) -> tuple[float, dict[str, Any]]:
    tg.manual_seed(5)  # of dropout: the same masks on every backend
    loss = model.loss(*batch(c))
    loss.backward()
    k = tg.get_backend()
    grads = {name: k.to_numpy(p.grad).astype(np.float64) for name, p in model.named_parameters()}
    return float(loss.item()), grads


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_every_gradient_is_close_to_float64_on_the_cpu(place: Any, dtype: str) -> None:
    c = config(place)
    tg.manual_seed(1)
    model = FusedGPT(c)
    model.astype(dtype)
    weights = {name: place.k.to_numpy(p.data).astype(np.float64) for name, p in model.named_parameters()}
    loss, got = loss_and_gradients(model, c)
    with tg.use_backend("numpy"):
        exact = FusedGPT(c)
        exact.astype("float64")
        exact.load_state_dict(weights)
        true_loss, truth = loss_and_gradients(exact, c)
    assert loss == pytest.approx(true_loss, rel=TOLERANCE[dtype])
    norm = np.sqrt(sum((g**2).sum() for g in truth.values()))
    wrong = {name: np.sqrt(((got[name] - g) ** 2).sum()) / norm for name, g in truth.items()}
    assert {name: error for name, error in wrong.items() if not error <= TOLERANCE[dtype]} == {}


def trained(place: Any, dtype: str, recorded: bool, steps: int = 6) -> list[bytes]:
    """The losses of a few steps, and the weights after them."""
    c = config(place)
    tg.manual_seed(1)
    model = FusedGPT(c)
    model.astype(dtype)
    optimizer = tg.optim.AdamW(model.parameters(), lr=1e-3, master_weights=dtype != "float32")

    def step(x: Any, y: Any) -> Any:
        loss = model.loss(x, y)
        loss.backward()
        norm = tg.optim.clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.data, norm

    run = step
    if recorded:
        optimizer.capturable()
        run = place.k.record(step, lambda n: default_generator.next_step(Stream.DROPOUT, n))
    seen = []
    for i in range(steps):
        optimizer.set_lr(1e-3 * (i + 1))
        with np.errstate(all="ignore"):  # the stand-in records by computing on what is not there yet
            loss, norm = run(*place.k.stage(*batch(c, i)))
        seen += [np.float64(float(loss)).tobytes(), np.float64(float(norm)).tobytes()]
    return [*seen, *(place.k.to_numpy(p.data).tobytes() for p in model.parameters())]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_is_reproducible_bit_by_bit_and_equals_a_cuda_graph(place: Any, dtype: str) -> None:
    first = trained(place, dtype, recorded=False)
    assert trained(place, dtype, recorded=False) == first
    assert trained(place, dtype, recorded=True) == first


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "seed": [1, 2, 3]}], ids=str
)
@pytest.mark.parametrize("make", [FusedGPT, FusedLlama])
def test_generated_text_equals_that_of_the_cpu(place: Any, make: Any, options: Any) -> None:
    """Prompts of different lengths, with a cache; a step recorded once and replayed."""
    c: Any = config(place, dropout=0.0)
    if make is FusedLlama:
        c = LlamaConfig(
            vocab_size=c.vocab_size, block_size=c.block_size, n_layer=c.n_layer, n_head=c.n_head, n_kv_head=1,
            n_embd=c.n_embd, n_hidden=2 * c.n_embd,
        )  # fmt: skip
    tg.manual_seed(2)
    model = make(c)
    weights = {name: place.k.to_numpy(p.data) for name, p in model.named_parameters()}
    prompts = [[1, 2, 3, 4], [5], [6, 7]]
    n = place.size(100, 8)
    there = generate(model, prompts, max_new_tokens=n, **options)
    with tg.use_backend("numpy"):
        same = make(c)
        same.load_state_dict(weights)
        assert generate(same, prompts, max_new_tokens=n, **options) == there
