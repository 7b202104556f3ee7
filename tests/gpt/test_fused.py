"""The fused model, compared with the plain one: names, losses, gradients, dropout and generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pytest

import tensorgrad as tg
from gpt import fused
from gpt.config import GPTConfig, LlamaConfig
from gpt.fused import FusedGPT, FusedLlama
from gpt.generate import Generation
from gpt.llama import Llama
from gpt.model import GPT
from tensorgrad import nn, ops
from tensorgrad.autograd import Observer

pytest.importorskip("ml_dtypes")  # bfloat16
P, F = TypeVar("P", bound=nn.Module), TypeVar("F", bound=nn.Module)
CONFIG = GPTConfig(block_size=24, vocab_size=67, n_layer=2, n_head=3, n_embd=24, bias=True)
LLAMA = LlamaConfig(block_size=24, vocab_size=67, n_layer=2, n_head=6, n_kv_head=2, n_embd=24, n_hidden=40, tied=False)
# Relative to the norm of all gradients, and to the loss. The fused attention of numba skips masked scores and sums
# in another order.
TOLERANCE = {"float64": 1e-12, "float32": 5e-6, "bfloat16": 2e-2, "float16": 2e-3}


def pair(dtype: str = "float64", **changes: object) -> tuple[GPT, FusedGPT]:
    """A plain and a fused model with the same weights, far enough from the initial values that every part matters."""
    config = {**CONFIG.to_dict(), **changes}
    return with_equal_weights(GPT(config), FusedGPT(config), dtype)


def llamas(dtype: str = "float64", **changes: object) -> tuple[Llama, FusedLlama]:
    """The same for Llama."""
    config = replace(LLAMA, **changes)
    return with_equal_weights(Llama(config), FusedLlama(config), dtype)


def with_equal_weights(plain: P, fast: F, dtype: str) -> tuple[P, F]:
    rng = np.random.default_rng(1)
    for p in plain.parameters():
        p.data[...] += 0.1 * rng.standard_normal(p.shape)
    fast.load_state_dict(plain.state_dict())
    plain.astype(dtype)
    fast.astype(dtype)
    return plain, fast


def batch(rows: int = 3) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.random.default_rng(0).integers(CONFIG.vocab_size, size=(rows, CONFIG.block_size + 1))
    return tokens[:, :-1], tokens[:, 1:]


def loss_and_gradients(model: GPT) -> tuple[float, dict[str, np.ndarray]]:
    tg.manual_seed(3)  # the same dropout masks
    loss = model.loss(*batch())
    loss.backward()
    return float(loss.item()), {name: p.grad.astype(np.float64) for name, p in model.named_parameters()}


def assert_same_training(plain: GPT, fast: GPT, tolerance: float) -> None:
    loss, expected = loss_and_gradients(plain)
    fast_loss, got = loss_and_gradients(fast)
    assert fast_loss == pytest.approx(loss, rel=tolerance)
    assert got.keys() == expected.keys()
    norm = np.sqrt(sum((g**2).sum() for g in expected.values()))
    errors = {name: np.linalg.norm(got[name] - g) / norm for name, g in expected.items()}
    assert {name: error for name, error in errors.items() if not error <= tolerance} == {}


@pytest.mark.parametrize("bias", [True, False])
def test_state_dicts_have_the_same_names_and_shapes(bias: bool) -> None:
    plain, fast = ({name: x.shape for name, x in model.state_dict().items()} for model in pair(bias=bias))
    assert list(plain.items()) == list(fast.items())


def test_models_with_the_same_seed_have_the_same_weights() -> None:
    weights = []
    for make in (GPT, FusedGPT):
        tg.manual_seed(5)
        weights.append(make(CONFIG).state_dict())
    for name, array in weights[0].items():
        np.testing.assert_array_equal(array, weights[1][name], err_msg=name)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_losses_and_gradients_equal_those_of_the_plain_model(backend: str, dtype: str, dropout: float) -> None:
    """Also with dropout: both models draw the same masks in the same order."""
    with tg.use_backend(backend):
        assert_same_training(*pair(dtype, dropout=dropout), TOLERANCE[dtype])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_losses_and_gradients_equal_those_of_the_plain_llama(backend: str, dtype: str, tied: bool) -> None:
    with tg.use_backend(backend):
        assert_same_training(*llamas(dtype, tied=tied), TOLERANCE[dtype])


def test_both_models_drop_the_same_attention_weights() -> None:
    """Nearly all attention weights are dropped, so that a single different mask would be detected."""
    plain, fast = pair(dropout=0.0)
    for model in (plain, fast):
        for block in model.h:
            block.attn.attn_dropout.p = 0.95
    assert_same_training(plain, fast, TOLERANCE["float64"])
    tg.manual_seed(4)
    other = plain.loss(*batch()).item()
    tg.manual_seed(3)
    assert abs(plain.loss(*batch()).item() - other) > 1e-4


def test_recomputed_blocks_give_the_gradients_of_the_plain_model() -> None:
    plain, fast = pair(dropout=0.2)
    fast.recompute = True
    assert_same_training(plain, fast, TOLERANCE["float64"])


@pytest.mark.parametrize("make", [pair, llamas])
@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("prompts", [[[1, 2, 3]], [[1, 2, 3, 4, 5], [6], [7, 8]]], ids=["one", "of different lengths"])
def test_generation_computes_the_same_logits(prompts: Sequence[Sequence[int]], backend: str, make: Callable) -> None:
    """With a cache, within the window and past it."""
    with tg.use_backend(backend):
        compare_generation(prompts, *make())


def compare_generation(prompts: Sequence[Sequence[int]], *models: GPT | Llama) -> None:
    plain, fast = (Generation(model, prompts, max_new_tokens=30, temperature=0) for model in models)
    for _ in range(30):
        expected, got = plain.next_logits(), fast.next_logits()
        for row, logits in expected.items():
            np.testing.assert_allclose(got[row], logits, rtol=1e-10, atol=1e-12)
            for batch_ in (plain, fast):
                batch_.rows[row].append(int(logits.argmax()))


def test_a_replaced_module_is_not_fused() -> None:
    class ReLU2(nn.Module):
        """A replacement for the MLP that a reader might try."""

        def __init__(self) -> None:
            self.c_fc = nn.Linear(CONFIG.n_embd, CONFIG.n_embd)

        def forward(self, x: tg.Tensor) -> tg.Tensor:
            return tg.square(tg.relu(self.c_fc(x)))

    plain, fast = pair()
    for model in (plain, fast):
        tg.manual_seed(6)
        model.h[1].mlp = ReLU2().astype("float64")
    assert_same_training(plain, fast, TOLERANCE["float64"])


# --------------------------------------------------------------------------------------------------
# The structure of the two models


def test_the_fused_classes_override_few_methods() -> None:
    classes = [*fused.FUSED.values(), FusedGPT]
    for cls in classes:
        assert issubclass(cls, (GPT, *fused.FUSED)) and len(cls.__mro__) == len(cls.__bases__[0].__mro__) + 1
    defined = {cls.__name__: {name for name, value in vars(cls).items() if callable(value)} for cls in classes}
    assert defined.pop("FusedGPT") == {"__init__", "loss", "run_blocks"}
    assert defined.pop("FusedLlamaBlock") == {"forward", "weights"}
    assert set(map(frozenset, defined.values())) == {frozenset({"forward"})}


class Names(Observer):
    """The names of all ops, in order."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def after_op(self, name: str, *rest: object) -> None:
        self.names.append(name)


@pytest.mark.parametrize(("make", "norm", "sums"), [(pair, "layer_norm", 1), (llamas, "rms_norm", 0)])
def test_every_residual_sum_is_computed_with_the_norm_that_reads_it(make: Callable, norm: str, sums: int) -> None:
    """Only the first norm has no sum before it, and only the embeddings are added by themselves."""
    model = make()[1]

    def count() -> list[int]:
        with Names() as seen:
            model.loss(*batch())
        return [seen.names.count(name) for name in (f"add_{norm}", norm, "add")]

    assert count() == [4, 1, sums]
    block = model.h[1]
    model.h[1] = lambda x, *more: block(x, *more)  # what is no fused block gets and returns the stream itself
    assert count() == [2, 3, sums + 2]


def called_ops(model: GPT, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of the fused operations that a training step calls."""
    called = set()

    def spy(name: str) -> object:
        fn = getattr(ops, name)

        def call(*args: object, **options: object) -> object:
            called.add(name)
            return fn(*args, **options)

        return call

    for name in [*ops.__all__, *ops.LATER]:
        if hasattr(getattr(ops, name), "composition"):
            replacement = spy(name)
            for module in (tg, ops):
                monkeypatch.setattr(module, name, replacement)
    model.loss(*batch()).backward()
    monkeypatch.undo()
    return called


def test_the_plain_model_calls_no_fused_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fast = pair()
    assert called_ops(plain, monkeypatch) == set()
    assert called_ops(fast, monkeypatch) == {"attention", "mlp", "add_layer_norm", "linear_cross_entropy"}
