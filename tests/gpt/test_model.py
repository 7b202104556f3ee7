"""The plain and the fused model: parameters, dropout, bad input, and gradients."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from gpt.config import (
    GPT_CONFIG_124M,
    GPT_CONFIG_355M,
    GPT_CONFIG_774M,
    GPT_CONFIG_1558M,
    GPT_CONFIG_SHAKESPEARE_CHAR,
    GPT_CONFIG_SHAKESPEARE_CHAR_CPU,
    GPTConfig,
)
from gpt.data import DataLoader
from gpt.evaluate import estimate_loss
from gpt.fused import FusedGPT
from gpt.model import GPT
from gpt.train.step import accumulate_gradients
from tensorgrad import nn

TINY = GPTConfig(block_size=4, vocab_size=7, n_layer=2, n_head=2, n_embd=4, bias=True)
FOUR_LAYERS = {"block_size": 32, "vocab_size": 65, "n_layer": 4, "n_head": 4, "n_embd": 128}


@pytest.fixture(params=[GPT, FusedGPT])
def make(request: pytest.FixtureRequest) -> type[GPT]:
    """The class of the model."""
    return request.param


def batch(config: GPTConfig, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.random.default_rng(seed).integers(config.vocab_size, size=(rows, config.block_size + 1))
    return tokens[:, :-1], tokens[:, 1:]


def randomise(model: GPT, std: float) -> None:
    """Give every parameter, including biases and norms, a value that affects the result."""
    rng = np.random.default_rng(1)
    for name, p in model.named_parameters():
        centre = 1.0 if ".ln_" in f".{name}" and name.endswith("weight") else 0.0
        p.data[...] = centre + std * rng.standard_normal(p.shape)


# --------------------------------------------------------------------------------------------------
# Shape


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (GPT_CONFIG_SHAKESPEARE_CHAR_CPU, 804_096),
        (GPT_CONFIG_SHAKESPEARE_CHAR, 10_646_784 + 256 * 384),  # nanoGPT does not count the position embeddings
        (GPT_CONFIG_124M, 124_439_808),
        (GPT_CONFIG_355M, 354_823_168),
        (GPT_CONFIG_774M, 774_030_080),
        (GPT_CONFIG_1558M, 1_557_611_200),
    ],
    ids=["char-cpu", "char", "124M", "355M", "774M", "1558M"],
)
def test_parameter_counts_are_those_published(config: dict, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole model is built, but its matrices are a broadcast zero, so that 6 GB of weights need no memory."""

    def broadcast_zero(_: object, shape: tuple, *args: object, **options: object) -> np.ndarray:
        return np.broadcast_to(np.float32(0), shape)

    monkeypatch.setattr(tg.Generator, "normal", broadcast_zero)
    monkeypatch.setattr(tg.Generator, "uniform", broadcast_zero)
    model = GPT(config)
    assert model.num_params() == count
    assert len(model.h) == config["n_layer"]


def test_parameter_names_are_those_of_nanogpt(make: type[GPT]) -> None:
    names = [name for name, _ in make(TINY).named_parameters()]
    block = [
        f"{part}.{kind}"
        for part in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
        for kind in ("weight", "bias")
    ]
    layers = [f"h.{i}.{name}" for i in range(2) for name in block]
    outside = ["wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias"]  # no lm_head: it is wte
    assert sorted(names) == sorted(layers + outside)


def test_a_model_without_bias_has_no_bias_parameters() -> None:
    model = GPT({**TINY.to_dict(), "bias": False})
    assert not [name for name, _ in model.named_parameters() if "bias" in name]


def test_a_dict_and_a_config_build_the_same_model(make: type[GPT]) -> None:
    tg.manual_seed(5)
    one = make(TINY)
    tg.manual_seed(5)
    other = make(TINY.to_dict())
    assert one.config == other.config
    for (name, p), (_, q) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert np.array_equal(p.data, q.data), name


def test_initial_weights_have_the_gpt2_distribution() -> None:
    model = GPT(FOUR_LAYERS)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert not p.data.any(), name
        elif "ln_" in name:
            assert (p.data == 1).all(), name
        else:
            std = 0.02 / np.sqrt(8) if name.endswith("c_proj.weight") else 0.02
            n_deviations = 5 / np.sqrt(2 * p.size)  # of a standard deviation over p.size draws
            assert p.data.std() == pytest.approx(std, rel=n_deviations), name
            assert abs(p.data.mean()) < 5 * std / np.sqrt(p.size), name
        assert p.dtype == np.float32


def test_flops_per_token_equal_a_count_by_hand() -> None:
    model = GPT(GPT_CONFIG_SHAKESPEARE_CHAR_CPU)
    assert model.estimate_flops_per_token() == 6 * (804_096 - 64 * 128) + 12 * 4 * 4 * 32 * 64


def test_the_untrained_loss_is_that_of_a_uniform_guess(make: type[GPT]) -> None:
    model = make(FOUR_LAYERS)
    _, loss = model(*batch(model.config, 4))
    assert loss.item() == pytest.approx(np.log(65), abs=0.1)


# --------------------------------------------------------------------------------------------------
# Behaviour


def test_without_targets_only_the_last_position_has_logits(make: type[GPT]) -> None:
    model = make(TINY)
    x, y = batch(TINY, 3)
    every, loss = model(x, y)
    last, none = model(x)
    assert every.shape == (3, 4, 7) and loss.shape == () and none is None
    assert last.shape == (3, 1, 7)
    np.testing.assert_allclose(last.numpy()[:, 0], every.numpy()[:, -1], atol=1e-6)


def gradients(make: type[GPT], recompute: bool) -> list[np.ndarray]:
    """The losses, gradients and next random number after two batches whose gradients accumulate."""
    tg.manual_seed(7)
    model = make({**FOUR_LAYERS, "n_embd": 32, "dropout": 0.2})
    model.recompute = recompute
    losses = [model.loss(*batch(model.config, 3, seed)) for seed in (0, 1)]
    for loss in losses:
        loss.backward()
    return [*(loss.numpy() for loss in losses), *(p.grad for p in model.parameters()), tg.uniform(1).numpy()]


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_recomputation_gives_the_same_bits(make: type[GPT], backend: str) -> None:
    with tg.use_backend(backend):
        for kept, recomputed in zip(gradients(make, False), gradients(make, True), strict=True):
            np.testing.assert_array_equal(kept, recomputed)


def test_recomputation_needs_less_memory(make: type[GPT]) -> None:
    """Of twelve layers, only the inputs and the activations of one layer at a time are kept."""

    def peak(recompute: bool) -> int:
        model = make({**FOUR_LAYERS, "n_layer": 12, "n_embd": 32})
        model.recompute = recompute
        x, y = batch(model.config, 8)
        model.loss(x, y).backward()  # allocates the gradients and caches
        model.loss(x, y).backward()
        tracemalloc.start()
        try:
            model.loss(x, y).backward()  # the gradients exist, so only activations are new
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    with tg.use_backend("numpy"):
        assert peak(recompute=True) < peak(recompute=False) / 3


def test_recomputation_does_not_change_the_predictions(make: type[GPT]) -> None:
    model, x = make(TINY), batch(TINY, 2)[0]
    expected = model(x)[0].numpy()
    model.recompute = True
    np.testing.assert_array_equal(model(x)[0].numpy(), expected)


def test_no_token_sees_a_later_one(make: type[GPT]) -> None:
    model = make(TINY)
    randomise(model, 0.5)
    x, y = batch(TINY, 1)
    before = model(x, y)[0].numpy()
    for t in range(1, 4):
        changed = x.copy()
        changed[0, t] = (x[0, t] + 1) % 7
        after = model(changed, y)[0].numpy()
        np.testing.assert_array_equal(after[0, :t], before[0, :t])
        assert np.abs(after[0, t:] - before[0, t:]).max(axis=-1).min() > 1e-4


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_the_loss_method_equals_the_loss_returned_with_the_logits(make: type[GPT], backend: str) -> None:
    with tg.use_backend(backend):
        model, (x, y) = make(TINY), batch(TINY, 3)
        randomise(model, 0.5)
        model.astype(np.float64)
        found = []
        for loss in (model(x, y)[1], model.loss(x, y), model.loss(tg.asarray(x), tg.asarray(y))):
            loss.backward()
            found.append([loss.numpy(), *(p.grad for p in model.parameters())])
            for p in model.parameters():
                p.grad = None
        for beside, *alone in zip(*found, strict=True):
            np.testing.assert_allclose(alone, [beside] * 2, rtol=1e-11, atol=1e-14)
        with tg.no_grad():
            assert model.loss(x, y).item() == pytest.approx(float(found[0][0]), rel=1e-12)


def test_training_and_evaluation_never_hold_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vocabulary is so large that the logits would take most of the memory."""
    with tg.use_backend("numpy") as use:
        monkeypatch.setattr(use.backend, "logits_block", 2**14)
        model = FusedGPT({**FOUR_LAYERS, "n_layer": 1, "n_head": 1, "n_embd": 2, "vocab_size": 2**12})
        x, y = batch(model.config, 8)
        logits_bytes = 4 * x.size * 2**12
        loader = DataLoader(np.arange(2000), batch_size=8, block_size=x.shape[1])
        steps = [lambda: accumulate_gradients(model, (x, y), 8), lambda: estimate_loss(model, loader, 1)]
        for step in steps:
            step()
            tracemalloc.start()
            try:
                step()
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert peak < logits_bytes / 2, f"{peak} bytes, and all logits are {logits_bytes}"


@pytest.mark.parametrize("kind", [tg.asarray, np.ndarray.tolist])
def test_tensors_and_lists_are_accepted(make: type[GPT], kind: Callable[..., Any]) -> None:
    model = make(TINY)
    x, y = batch(TINY, 2)
    _, loss = model(kind(x), kind(y))
    assert loss.item() == model(x, y)[1].item()
    assert model.loss(kind(x), kind(y)).item() == model.loss(x, y).item()


def test_dropout_is_applied_only_in_training(make: type[GPT]) -> None:
    model = make({**TINY.to_dict(), "dropout": 0.5})
    randomise(model, 0.5)
    x, y = batch(TINY, 2)
    model.train()
    assert model(x, y)[1].item() != model(x, y)[1].item()
    model.eval()
    loss = model(x, y)[1].item()
    assert loss == model(x, y)[1].item()
    without = make(TINY)
    randomise(without, 0.5)
    assert loss == without(x, y)[1].item()


def test_dropout_is_applied_where_nanogpt_applies_it(make: type[GPT], monkeypatch: pytest.MonkeyPatch) -> None:
    """On the embedding, the attention weights, and both branches of every block, in this order."""
    modules = [import_module(f"tensorgrad.ops.{name}") for name in ("dropout", "attention")]
    draw, drawn = modules[0].draw, []

    def spy(name: str, p: float) -> Any:
        drawn.append(p)
        return draw(name, p)

    for module in modules:
        monkeypatch.setattr(module, "draw", spy)
    model = make({**TINY.to_dict(), "dropout": 0.25})
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == [0.25] * 7
    for block in model.h:
        block.attn.attn_dropout.p, block.attn.resid_dropout.p, block.mlp.dropout.p = 0.5, 0.625, 0.75
    model.train()
    model(*batch(TINY, 1))
    assert drawn == [0.25, *[0.5, 0.625, 0.75] * 2]
    model.eval()
    model(*batch(TINY, 1))
    assert len(drawn) == 7


def test_dropping_the_embedding_gives_zero_logits(make: type[GPT]) -> None:
    model = make({**TINY.to_dict(), "bias": False})
    x, y = batch(TINY, 2)
    assert model(x, y)[0].numpy().all()
    model.drop.p = 1 - 1e-9
    assert not model(x, y)[0].numpy().any()


def test_dropping_every_branch_leaves_the_normalised_embedding(make: type[GPT]) -> None:
    """With every branch of the blocks dropped, the logits are those of the normalised embedding."""
    model = make({**TINY.to_dict(), "bias": False})
    model.train()
    for block in model.h:
        block.attn.resid_dropout.p = block.mlp.dropout.p = 1 - 1e-9
    x, y = batch(TINY, 2)
    logits = model(x, y)[0].numpy()
    embedded = model.wte.weight.numpy()[x] + model.wpe.weight.numpy()
    centred = embedded - embedded.mean(-1, keepdims=True)
    normed = centred / np.sqrt(embedded.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(logits, normed @ model.wte.weight.numpy().T, atol=1e-6)


@pytest.mark.parametrize(
    ("idx", "message"),
    [
        (np.zeros((1, 5), int), "5 tokens is longer than the window, block_size 4"),
        (np.zeros(4, int), r"idx must be \(batch, time\)"),
        (np.zeros((1, 0), int), r"idx must be \(batch, time\)"),
    ],
)
def test_sequences_of_the_wrong_shape_are_refused(idx: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPT(TINY)(idx)


@pytest.mark.parametrize("token", [7, 1000, -8])
def test_tokens_out_of_range_are_refused(token: int) -> None:
    with pytest.raises((IndexError, ValueError), match=rf"embedding.*{token}.*7"):
        GPT(TINY)(np.array([[0, token]]))


def test_targets_of_another_shape_are_refused(make: type[GPT]) -> None:
    x, y = batch(TINY, 2)
    for call in (make(TINY), make(TINY).loss):
        with pytest.raises(ValueError, match=r"targets \(2, 3\) do not fit logits \(2, 4, 7\)"):
            call(x, y[:, :3])


def test_an_unknown_configuration_key_is_refused() -> None:
    with pytest.raises(ValueError, match="n_embed"):
        GPT({"n_embed": 4})


def test_the_training_loop_of_the_readme_works(make: type[GPT]) -> None:
    """The loop of the README: a model and an optimizer memorise one batch."""
    tg.manual_seed(0)
    model = make(TINY)
    optimizer = tg.optim.AdamW(model.parameters(), lr=1e-2)
    x, y = batch(TINY, 2)
    losses = []
    for _ in range(100):
        loss = model.loss(x, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3


# --------------------------------------------------------------------------------------------------
# Gradients, compared with finite differences in float64


@pytest.mark.parametrize("bias", [True, False])
def test_the_gradient_of_every_parameter_equals_finite_differences(make: type[GPT], bias: bool) -> None:
    """Every element of every parameter of the tiny model is changed by 1e-5 in both directions."""
    model = make({**TINY.to_dict(), "bias": bias})
    model.astype(np.float64)
    randomise(model, 0.4)
    x, y = batch(TINY, 2)
    loss = model.loss(x, y)
    assert loss.dtype == np.float64
    loss.backward()

    def loss_with(p: tg.Tensor, index: tuple[int, ...], value: float) -> float:
        p.data[index] = value
        with tg.no_grad():
            return model.loss(x, y).item()

    checked = 0
    for name, p in model.named_parameters():
        numeric = np.zeros(p.shape)
        for index in np.ndindex(p.shape):
            value = p.data[index]
            up, down = (loss_with(p, index, value + h) for h in (1e-5, -1e-5))
            numeric[index] = (up - down) / 2e-5
            p.data[index] = value
            checked += 1
        np.testing.assert_allclose(p.grad, numeric, atol=1e-9, rtol=1e-6, err_msg=name)
    assert checked == model.num_params()
