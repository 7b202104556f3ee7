"""LoRA: the layer, exact merging, and ten steps of training beside PEFT's."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from gpt.config import GPTConfig, LlamaConfig
from gpt.generate import generate_text
from gpt.lora import (
    TARGETS,
    LoRA,
    LoRALinear,
    adapter_parameters,
    add_lora,
    linear_layers,
    load_adapters,
    merge,
    unmerge,
)
from gpt.tokenizer import CharTokenizer
from gpt.weights import Model, build_model
from gpt.weights.adapter import to_peft
from gpt.weights.huggingface import config_from_entries
from gpt.weights.initial import load_initial
from gpt.weights.names import parameter_names
from tests.gpt.weights import make_peft_figures as peft

CONFIGS: dict[str, GPTConfig | LlamaConfig] = {
    name: config_from_entries({"model_type": name, **entries}) for name, entries in peft.TINY.items()
}
MODELS = pytest.mark.parametrize("name", CONFIGS)


@pytest.fixture(autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    """NumPy, or the backends that a test names."""
    name = getattr(request, "param", "numpy")
    if name == "numba":
        pytest.importorskip("numba")
    with tg.use_backend(name):
        yield


BOTH = pytest.mark.parametrize("backend", ["numpy", "numba"], indirect=True)


def base_weights(config: GPTConfig | LlamaConfig) -> dict[str, Any]:
    """The weights of a small model by our names, as the figures have them."""
    shapes = {name: p.shape for name, p in build_model(config).named_parameters()}
    weights = {}
    for ours, theirs in parameter_names(config, "hf").items():
        stored_transposed = config.type_name == "gpt2" and ".c_" in ours and len(shapes[ours]) == 2
        shape = shapes[ours][::-1] if stored_transposed else shapes[ours]
        weights[ours] = peft.base_weight(theirs, shape).T if stored_transposed else peft.base_weight(theirs, shape)
    return {name: np.ascontiguousarray(array) for name, array in weights.items()}


def small_model(name: str, *, plain: bool = False) -> Model:
    tg.manual_seed(0)
    return build_model(CONFIGS[name], plain=plain, weights=base_weights(CONFIGS[name]))


def adapted(name: str, dropout: float = 0.0, **options: Any) -> Model:
    """A small model with adapters that change what it computes."""
    model = small_model(name, **options)
    add_lora(model, LoRA(4, 6.0, dropout))
    for key, p in adapter_parameters(model).items():
        p.data[...] = peft.numbers(key, p.shape) * 0.3
    return model


def loss_of(model: Model, step: int = 0) -> tg.Tensor:
    return model.loss(*peft.batch(step, model.config.vocab_size))


# --------------------------------------------------------------------------------------------------
# The layer


def test_a_layer_computes_the_formula_of_the_paper() -> None:
    layer = tg.nn.Linear(5, 3)
    LoRALinear.adapt(layer, rank=2, alpha=3.0)
    layer.lora_B.weight.data[...] = np.arange(6).reshape(3, 2)
    W, b, A, B = (p.numpy().astype(np.float64) for p in layer.parameters())
    x = np.linspace(-1, 1, 20, dtype=np.float32).reshape(2, 2, 5)
    np.testing.assert_allclose(layer(tg.asarray(x)).numpy(), x @ W.T + b + 1.5 * x @ A.T @ B.T, rtol=1e-5, atol=1e-6)


def test_the_gradients_are_those_of_finite_differences() -> None:
    layer = tg.nn.Linear(4, 3)
    LoRALinear.adapt(layer, rank=2, alpha=3.0)
    layer.astype("float64")
    layer.lora_B.weight.data[...] = peft.numbers("B", (3, 2))
    x = tg.asarray(peft.numbers("x", (5, 4)))

    def computed(a: tg.Tensor, b: tg.Tensor) -> tg.Tensor:
        layer.lora_A.weight, layer.lora_B.weight = a, b
        return layer(x)

    assert tg.gradcheck(computed, layer.lora_A.weight, layer.lora_B.weight)


@MODELS
def test_new_adapters_change_nothing(name: str) -> None:
    model = small_model(name)
    before = loss_of(model).item()
    add_lora(model, LoRA(4, 6.0, dropout=0.5))
    assert loss_of(model.train()).item() == before


def test_a_begins_as_in_peft_and_b_with_zeros() -> None:
    """PEFT's kaiming_uniform_ with a = sqrt(5) is uniform in [-1, 1] / sqrt(n_in)."""
    layer = tg.nn.Linear(64, 8)
    LoRALinear.adapt(layer, rank=32, alpha=32.0)
    a = layer.lora_A.weight.numpy() * np.sqrt(64)
    assert not layer.lora_B.weight.numpy().any()
    assert -1 <= a.min() < -0.98 and 0.98 < a.max() <= 1
    assert abs(a.mean()) < 0.05 and abs(a.var() - 1 / 3) < 0.02


@MODELS
def test_only_adapters_have_gradients(name: str) -> None:
    model = adapted(name)
    loss_of(model).backward()
    with_gradient = {key for key, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == adapter_parameters(model).keys()
    assert all(np.abs(p.grad).max() > 0 for p in adapter_parameters(model).values())
    assert small_model(name).state_dict().keys() == {key for key in model.state_dict() if "lora_" not in key}


@MODELS
def test_targets_choose_layers(name: str) -> None:
    model = small_model(name)
    target = TARGETS[name][1]
    add_lora(model, LoRA(2, 2.0, targets=(target,)))
    assert {key.split(".")[3] for key in adapter_parameters(model)} == {target}
    n_layers = sum(path.endswith(target) for path, _ in linear_layers(model))
    assert len(adapter_parameters(model)) == 2 * n_layers


def test_dropout_is_in_front_of_a_alone() -> None:
    layer = tg.nn.Linear(64, 3, bias=False)
    LoRALinear.adapt(layer, rank=2, alpha=2.0, dropout=0.5)
    x = tg.asarray(peft.numbers("x", (4, 64)).astype(np.float32))
    without = tg.linear(x, layer.weight).numpy()
    assert (layer(x).numpy() == without).all()
    layer.lora_B.weight.data[...] = 1
    first, second = layer(x).numpy(), layer(x).numpy()
    assert (first != second).all()
    layer.eval()
    assert (layer(x).numpy() == layer(x).numpy()).all()


@BOTH
@MODELS
@pytest.mark.parametrize("recompute", [False, True])
def test_fused_and_plain_models_have_equal_gradients(name: str, recompute: bool) -> None:
    """Recomputed blocks, too, although the first block's input has no gradient.

    In float32 the gradients of both are up to 2e-6 of the largest number from those in float64.
    """
    fused, plain = adapted(name), adapted(name, plain=True)
    fused.recompute = recompute
    for model in (fused, plain):
        loss_of(model).backward()
    np.testing.assert_allclose(loss_of(fused).item(), loss_of(plain).item(), rtol=1e-6)
    for key, p in adapter_parameters(fused).items():
        expected = adapter_parameters(plain)[key].grad
        np.testing.assert_allclose(p.grad, expected, rtol=1e-4, atol=3e-6 * np.abs(expected).max(), err_msg=key)


# --------------------------------------------------------------------------------------------------
# Merging


@MODELS
def test_merging_keeps_the_model_and_unmerging_restores_its_weights_bit_for_bit(name: str) -> None:
    model = adapted(name).eval()
    before = {key: array.copy() for key, array in model.state_dict().items()}
    loss = loss_of(model).item()
    merge(model)
    merge(model)  # does nothing
    assert abs(loss_of(model).item() - loss) < 1e-5
    changed = {key for key, array in model.state_dict().items() if not np.array_equal(array, before[key])}
    assert changed == {f"{path}.weight" for path, _ in linear_layers(model)}
    unmerge(model)
    assert all(np.array_equal(array, before[key]) for key, array in model.state_dict().items())
    assert loss_of(model).item() == loss


@BOTH
@MODELS
def test_text_is_the_same_with_adapters_beside_the_weights_and_merged(name: str) -> None:
    """One token at a time, which has a kernel of its own where weights may be read directly."""
    tokenizer = CharTokenizer.train("".join(map(chr, range(97, 97 + 37))))
    model = adapted(name).eval()
    options: dict[str, Any] = {"max_new_tokens": 10, "temperature": 0.0}
    beside = generate_text(model, tokenizer, ["abc"], **options)
    without = generate_text(small_model(name).eval(), tokenizer, ["abc"], **options)
    merge(model)
    assert generate_text(model, tokenizer, ["abc"], **options) == beside != without


# --------------------------------------------------------------------------------------------------
# Quantised weights


@pytest.mark.parametrize(("backend", "n_rows"), [("numpy", 16), ("numba", 16), ("numba", 64)], indirect=["backend"])
@pytest.mark.parametrize("type", ["q8_0", "q4_0", "q4_1"])
def test_adapters_beside_quantised_weights_are_trained_as_beside_the_same_weights_in_float32(
    type: str, n_rows: int
) -> None:
    """Of a few rows, Numba rounds the activations to int16: by at most 1.5e-5 of the largest in a block of 32.

    The gradients of queries and keys are small differences of larger numbers, so that this can become 2e-4 of them:
    5e-4 of the largest is allowed. Many rows, and NumPy, round nothing: there it is 1e-5, as for float32.
    """
    error = 5e-4 if tg.get_backend().name == "numba" and n_rows <= 24 else 1e-5
    config = LlamaConfig(16, 37, 2, 4, 32, 2, 64)
    tg.manual_seed(0)
    weights = build_model(config).state_dict()
    quantized = {key: tg.quantize(array, type) if array.ndim == 2 else array for key, array in weights.items()}
    floating = {key: array.dequantize() if array.dtype.kind == "q" else array for key, array in quantized.items()}
    x = np.random.default_rng(0).integers(0, 37, (n_rows // 16, 17))
    models = []
    for each in (quantized, floating):
        model = build_model(config, weights=each)
        add_lora(model, LoRA(4, 6.0))
        for key, p in adapter_parameters(model).items():
            p.data[...] = peft.numbers(key, p.shape)
        models.append(model)
        model.loss(x[:, :-1], x[:, 1:]).backward()
    losses = [model.loss(x[:, :-1], x[:, 1:]).item() for model in models]
    assert abs(losses[0] - losses[1]) < 1e-5
    for key, p in adapter_parameters(models[0]).items():
        expected = adapter_parameters(models[1])[key].grad
        np.testing.assert_allclose(p.grad, expected, rtol=1e-3, atol=error * np.abs(expected).max(), err_msg=key)
    merge(models[0])
    assert abs(models[0].loss(x[:, :-1], x[:, 1:]).item() - losses[0]) < 1e-5
    unmerge(models[0])
    assert models[0].h[0].attn.q_proj.weight.data is quantized["h.0.attn.q_proj.weight"]


# --------------------------------------------------------------------------------------------------
# Ten steps beside PEFT


def ten_steps(model: Model, name: str, dtype: str) -> dict[str, Any]:
    """Train as the figures were made; gradients and weights by PEFT's names."""
    add_lora(model, LoRA(peft.SETTINGS["rank"], peft.SETTINGS["alpha"], targets=tuple(peft.TARGETS[name])))
    parameters = to_peft(adapter_parameters(model), model.config)
    load_adapters(model, {ours: peft.initial(theirs, p.shape) for (ours, p), theirs in zip(
        adapter_parameters(model).items(), parameters, strict=True
    )})  # fmt: skip
    model.astype(dtype)
    optimizer = tg.optim.AdamW(parameters.values(), **peft.ADAMW)
    losses, gradients = [], []
    for step in range(peft.N_STEPS):
        loss = loss_of(model, step)
        optimizer.zero_grad()
        loss.backward()
        gradients.append({key: p.grad.copy() for key, p in parameters.items()})
        optimizer.step()
        losses.append(loss.item())
    weights = {key: p.numpy() for key, p in parameters.items()}
    return {"losses": losses, "names": sorted(parameters), "first_gradients": gradients[0],
            "last_gradients": gradients[-1], "weights": weights}  # fmt: skip


def compare(make: Callable[[], Model], name: str) -> None:
    figures = np.load(peft.FOLDER / f"{name}.npz")
    ours = ten_steps(make(), name, "float64")
    assert ours["names"] == figures["names"].tolist()
    np.testing.assert_allclose(ours["losses"], figures["losses"], rtol=0, atol=1e-8)
    for key in ("first_gradients", "last_gradients", "weights"):
        expected = figures[key]
        np.testing.assert_allclose(peft.summarize(ours[key]), expected, rtol=0, atol=1e-8 * np.abs(expected).max())
    in_float32 = ten_steps(make(), name, "float32")["losses"]
    np.testing.assert_allclose(in_float32, figures["losses_float32"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(in_float32, figures["losses"], rtol=0, atol=1e-4)


@MODELS
def test_ten_steps_are_those_of_peft(name: str) -> None:
    compare(lambda: small_model(name), name)


@pytest.mark.usefixtures("smollm2_metadata")  # skips the test where SmolLM2 is not installed
def test_ten_steps_of_smollm2_are_those_of_peft() -> None:
    compare(load_initial("smollm2", quantize="none").build_model, "smollm2")
