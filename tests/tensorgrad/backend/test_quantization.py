"""Block-quantised weights: against the package gguf, float64 mathematics and finite differences."""

import pickle
import re
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorgrad as tg
from tensorgrad import Tensor, nn
from tensorgrad.backend import load, quantization
from tensorgrad.backend.quantization import BLOCK, FORMATS, MAX_ROWS_ELEMENTS, QuantizedArray, quantize
from tensorgrad.gradcheck.cases import Case, cases

TYPES = sorted(FORMATS)
BACKENDS = ["numpy", "numba"]
of_every_type = pytest.mark.parametrize("type", TYPES)
on_every_backend = pytest.mark.parametrize("backend", BACKENDS)


def normal(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def weight_of(m: int, n: int, type: str) -> QuantizedArray:
    return quantize(normal(m, n) * np.geomspace(1e-3, 1e3, m)[:, None], type)


# --- the formats ---------------------------------------------------------------------------------


def gguf_type(type: str) -> Any:
    return getattr(gguf.GGMLQuantizationType, type.upper())


def squared_errors(q: Any, weights: Any) -> Any:
    """Of each block, in float64."""
    errors = q.astype(np.float64) - weights.astype(np.float32)
    return np.square(errors).reshape(-1, BLOCK).sum(axis=1)


@of_every_type
@settings(max_examples=60)
@given(m=st.integers(1, 40), n_blocks=st.integers(1, 5), data=st.data())
def test_bytes_and_weights_are_those_of_gguf(type: str, m: int, n_blocks: int, data: st.DataObject) -> None:
    """For weights of any size that float16 can scale; small integers are halfway between others, and often equal.

    In q8_0 the bytes may differ, but no block is worse.
    """
    seed, exponent = data.draw(st.integers(0, 2**32)), data.draw(st.integers(-30, 12))
    rng = np.random.default_rng(seed)
    draw = data.draw(st.sampled_from([rng.standard_normal, lambda shape: rng.integers(-9, 10, shape), np.zeros]))
    weights = (draw((m, BLOCK * n_blocks)) * 2.0**exponent).astype(data.draw(st.sampled_from(["float32", "float64"])))
    q, theirs = quantize(weights, type), gguf.quants.quantize(weights.astype(np.float32), gguf_type(type))
    if type == "q8_0":
        limit = squared_errors(gguf.quants.dequantize(theirs, gguf_type(type)), weights)
        assert (squared_errors(q.dequantize(), weights) <= limit * (1 + 1e-5)).all()
    else:
        np.testing.assert_array_equal(q.blocks, theirs)
    np.testing.assert_array_equal(q.dequantize(), gguf.quants.dequantize(q.blocks, gguf_type(type)))
    assert q.dequantize().dtype == np.float32
    assert (q.shape, q.size, q.nbytes) == (weights.shape, weights.size, q.blocks.nbytes)


def test_q8_0_leaves_four_fifths_of_the_squared_error_of_random_numbers() -> None:
    """And none of numbers that are all multiples of a float16, of which the largest is not the 127th."""
    for weights, least, most in (
        (normal(300, 320), 0.7, 0.82),
        (np.random.default_rng(3).integers(-40, 41, (300, 320)) / 128, 0, 0),
    ):
        theirs = gguf.quants.quantize(weights.astype(np.float32), gguf_type("q8_0"))
        before = squared_errors(gguf.quants.dequantize(theirs, gguf_type("q8_0")), weights).sum()
        assert least <= squared_errors(quantize(weights, "q8_0").dequantize(), weights).sum() / before <= most


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), exponent=st.integers(-24, 12), largest=st.integers(1, 127))
def test_weights_that_were_in_q8_0_stay_as_they_are(seed: int, exponent: int, largest: int) -> None:
    """Whatever the largest integer of a block, unless its scale is too small to be halved in float16."""
    rng = np.random.default_rng(seed)
    integers = rng.integers(-largest, largest + 1, (50, BLOCK), np.int8)
    integers[:, 7] = rng.choice([-largest, largest], 50)
    scales = (rng.uniform(1, 2, (50, 1)) * 2.0**exponent).astype(np.float16)
    kept = (scales >= 2.0**-8) | (abs(integers).max() >= 64)
    weights = QuantizedArray(
        "q8_0", (50, BLOCK), np.hstack([scales.view(np.uint8), integers.view(np.uint8)])
    ).dequantize()
    again = quantize(weights, "q8_0").dequantize()
    np.testing.assert_array_equal(np.where(kept, again, 0), np.where(kept, weights, 0))


@pytest.mark.parametrize("size", [1.0, 1e-5, 1e-7, 1e-12, 1e5, 0.0])
def test_every_backend_quantises_to_the_same_bytes(size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = size * normal(900, 128)
    weights[5, 32:64] = 0
    weights[7] = size * np.random.default_rng(0).integers(-127, 128, 128) / 127
    q = quantize(weights, "q8_0")
    monkeypatch.setattr(quantization, "check", lambda name: "it is not installed")
    np.testing.assert_array_equal(quantize(weights, "q8_0").blocks, q.blocks)


@of_every_type
@settings(max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_any_bytes_are_dequantised_as_by_gguf(type: str, seed: int) -> None:
    blocks = np.random.default_rng(seed).integers(0, 256, (3, 2 * FORMATS[type].n_bytes), np.uint8)
    q = QuantizedArray(type, (3, 2 * BLOCK), blocks)
    with np.errstate(invalid="ignore"):  # scales that are infinite
        theirs = gguf.quants.dequantize(blocks, gguf_type(type))
        np.testing.assert_array_equal(q.dequantize(), theirs)


@of_every_type
def test_a_matrix_of_several_parts(type: str) -> None:
    weights = normal(2 * MAX_ROWS_ELEMENTS // 160 + 1, 160)
    q = quantize(weights, type)
    assert len(list(q.parts())) == 3
    rows = [quantize(weights[i : i + 1], type).blocks for i in range(len(weights))]
    np.testing.assert_array_equal(q.blocks, np.concatenate(rows))
    np.testing.assert_array_equal(q.dequantize()[-1], q.rows(np.array([len(weights) - 1]))[0])


@of_every_type
def test_it_is_read_only_and_shares_the_memory_of_a_mapped_file(type: str, tmp_path: Path) -> None:
    q = weight_of(3, 64, type)
    (tmp_path / "weights").write_bytes(q.blocks.tobytes())
    blocks = np.memmap(tmp_path / "weights", np.uint8, "r", shape=q.blocks.shape)
    mapped = QuantizedArray(type, (3, 64), blocks)
    assert np.shares_memory(mapped.blocks, blocks)
    np.testing.assert_array_equal(mapped.dequantize(), q.dequantize())
    with pytest.raises(ValueError, match="read-only"):
        q.blocks[0] = 0
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(mapped)).blocks, q.blocks)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantize(np.ones((2, 32)), "q5_0"), "quantize: type 'q5_0' is unknown: choose q8_0, q4_0, q4_1"),
        (lambda: quantize(np.ones((2, 33)), "q8_0"), "quantize: shape (2, 33) is not (m, n) with n a multiple of 32"),
        (lambda: quantize(np.ones(32), "q8_0"), "quantize: shape (32,) is not (m, n) with n a multiple of 32"),
        (lambda: quantize(np.ones((0, 32)), "q8_0"), "quantize: shape (0, 32) is not (m, n)"),
        (lambda: quantize(np.full((2, 32), np.nan), "q4_1"), "quantize: an element is nan, infinite, or too large"),
        (lambda: quantize(np.full((2, 32), -np.inf), "q4_0"), "quantize: an element is nan, infinite, or too large"),
        (lambda: quantize(np.full((2, 32), 1e9), "q8_0"), "quantize: an element is nan, infinite, or too large"),
        (lambda: QuantizedArray("q8", (2, 32), np.zeros((2, 34), np.uint8)), "QuantizedArray: type 'q8' is unknown"),
        (
            lambda: QuantizedArray("q8_0", (2, 32), np.zeros((2, 33), np.uint8)),
            "QuantizedArray: blocks uint8 (2, 33) for q8_0 (2, 32); uint8 (2, 34) in C order is needed",
        ),
        (lambda: QuantizedArray("q8_0", (2, 32), np.zeros((2, 34), np.int8)), "QuantizedArray: blocks int8 (2, 34)"),
        (lambda: QuantizedArray("q8_0", (2, 16), np.zeros((2, 17), np.uint8)), "QuantizedArray: shape (2, 16) is not"),
        (lambda: np.asarray(weight_of(2, 32, "q8_0")), "numpy: QuantizedArray(q8_0, (2, 32), 68 bytes) is no array"),
    ],
)
def test_errors(call: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


# --- ops -----------------------------------------------------------------------------------------


@on_every_backend
@of_every_type
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_and_its_gradients(type: str, with_bias: bool, backend: str) -> None:
    """In float64, where backends compute the plain mathematics, against the product of the dequantised weights."""
    q = weight_of(700, 128, type)
    weights = q.dequantize().astype(np.float64)
    with tg.use_backend(backend):
        x = Tensor(normal(2, 3, 128), requires_grad=True)
        bias = Tensor(normal(700), requires_grad=True) if with_bias else None
        y = tg.linear(x, Tensor(q), bias)
        dy = normal(*y.shape)
        y.backward(dy)
    scale = abs(x.data) @ abs(weights).T
    assert (abs(y.data - x.data @ weights.T - (bias.data if bias is not None else 0)) <= 1e-14 * scale + 1e-12).all()
    assert (abs(x.grad - dy @ weights) <= 1e-14 * (abs(dy) @ abs(weights)) + 1e-12).all()
    if bias is not None:
        np.testing.assert_allclose(bias.grad, dy.sum((0, 1)), rtol=1e-12)


@of_every_type
def test_gradients_against_finite_differences(type: str) -> None:
    weight = Tensor(weight_of(40, 64, type))
    x, bias = Tensor(normal(2, 3, 64), requires_grad=True), Tensor(normal(40), requires_grad=True)
    assert tg.gradcheck(lambda x, bias: tg.linear(x, weight, bias), x, bias)


@of_every_type
def test_a_gradient_of_a_gradient(type: str) -> None:
    q = weight_of(7, 32, type)
    x, v = normal(3, 32), normal(3, 32) + 1
    (product,) = tg.hvp(lambda x: tg.sum(tg.square(tg.linear(x, Tensor(q)))), [x], [v])
    weights = q.dequantize().astype(np.float64)
    np.testing.assert_allclose(product.data, 2 * v @ weights.T @ weights, rtol=1e-10)


@on_every_backend
@of_every_type
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_results_have_the_dtype_of_x(type: str, dtype: Any, backend: str) -> None:
    q = weight_of(5, 64, type)
    with tg.use_backend(backend):
        x = Tensor(normal(3, 64).astype(dtype), requires_grad=True)
        y = tg.linear(x, Tensor(q))
        y.backward(np.ones(y.shape, dtype))
    assert y.dtype == x.grad.dtype == dtype


@on_every_backend
@of_every_type
def test_embedding(type: str, backend: str) -> None:
    q, indices = weight_of(50, 64, type), np.array([[0, 49, 7], [7, 7, 1]])
    with tg.use_backend(backend):
        rows = tg.embedding(Tensor(q), indices)
        np.testing.assert_array_equal(rows.data, q.dequantize()[indices])
        assert (rows.dtype, rows.requires_grad) == (np.float32, False)
        assert tg.embedding(Tensor(q), indices[:0]).shape == (0, 3, 64)
        with pytest.raises(IndexError, match="embedding: index 50 is out of range for 50 entries"):
            tg.embedding(Tensor(q), np.array([50]))


@of_every_type
def test_mlp_reads_both_weights(type: str) -> None:
    """With gradients of x and the biases, by finite differences, and by its composition of plain ops."""
    weights = [Tensor(weight_of(64, 32, type)), Tensor(weight_of(40, 64, type))]
    x, *biases = (Tensor(normal(*shape), requires_grad=True) for shape in ((2, 3, 32), (64,), (40,)))

    def mlp(op: Any) -> Any:
        return lambda x, bias1, bias2: op(x, weights[0], bias1, weights[1], bias2, approximate="tanh")

    assert tg.gradcheck(mlp(tg.mlp), x, *biases)
    expected = mlp(tg.mlp.composition)(x, *biases)
    np.testing.assert_allclose(mlp(tg.mlp)(x, *biases).data, expected.data, rtol=1e-12)


@on_every_backend
@pytest.mark.parametrize("case", cases.values(), ids=repr)
def test_every_other_op_refuses_it_by_name(case: Case, backend: str) -> None:
    """In place of any operand but the weight of linear and the table of embedding."""
    weight, refused = Tensor(weight_of(32, 32, "q4_0")), 0
    with tg.use_backend(backend) as use:
        example = case.examples[0]
        inputs = example.tensors(use.backend, "float64")
        for i, x in enumerate(inputs):
            if isinstance(x, Tensor) and (case.name, i) not in (("linear", 1), ("embedding", 0)):
                with pytest.raises((TypeError, ValueError)) as error:
                    example.run(case.op, *inputs[:i], weight, *inputs[i + 1 :])
                if isinstance(error.value, TypeError):  # else it names the op and the shape, which does not fit, either
                    assert re.match(r"[\w ]+: an operand is quantised, q4_0 \(32, 32\)|numpy: Quant", str(error.value))
                else:
                    assert re.match(rf"{case.name}: .*\(32, 32\)", str(error.value))
                refused += 1
    assert refused or case.name in ("linear", "embedding")


def test_a_gpu_refuses_it_by_name() -> None:
    class Cupy(type(load("numpy"))):  # type: ignore[misc]
        name = "cupy"

    q = weight_of(2, 32, "q8_0")
    with pytest.raises(TypeError, match="linear: quantised weights are read on backends numpy and numba, not on cupy"):
        q.kernels("linear", Cupy(), [np.ones((1, 32)), q])


@on_every_backend
def test_products_of_quantised_weights_are_counted(backend: str) -> None:
    q = weight_of(700, 128, "q4_0")
    with tg.use_backend(backend), tg.count() as c:
        x = Tensor(normal(3, 128), requires_grad=True)
        tg.linear(x, Tensor(q)).backward(np.ones((3, 700)))
    flops = 2 * 3 * 700 * 128
    assert c.forward["linear"] == tg.Cost(1, flops, flops, q.nbytes + 8 * (x.size + 3 * 700))
    assert c.backward["linear"].matmul_flops == flops
    assert c.backward["linear"].bytes == q.nbytes + 8 * (x.size + 3 * 700)


@of_every_type
def test_the_whole_matrix_is_never_dequantised(type: str) -> None:
    """By the peak of NumPy's memory, which the matrix alone would exceed."""
    q = quantize(normal(1600, 256), type)
    with tg.use_backend("numpy"):
        x = Tensor(normal(40, 256).astype(np.float32), requires_grad=True)
        weight, indices = Tensor(q), np.arange(40)
        tracemalloc.start()
        try:
            y = tg.linear(x, weight)
            y.backward(np.ones(y.shape, np.float32))
            tg.embedding(weight, indices)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    results = 2 * y.data.nbytes + 2 * x.data.nbytes
    assert peak < results + 4 * q.size


# --- tensors and modules -------------------------------------------------------------------------


def test_a_tensor_of_quantised_weights() -> None:
    q = weight_of(4, 32, "q8_0")
    weight = Tensor(q)
    assert weight.data is q
    assert (weight.shape, weight.ndim, weight.size, str(weight.dtype)) == ((4, 32), 2, 128, "q8_0")
    assert repr(weight) == "Tensor(QuantizedArray(q8_0, (4, 32), 136 bytes))"
    assert "q8_0" in weight._repr_html_()
    for fn in (
        lambda: Tensor(q, requires_grad=True), lambda: setattr(weight, "requires_grad", True),
        lambda: nn.Parameter(q), lambda: tg.asarray(q, requires_grad=True),
    ):  # fmt: skip
        with pytest.raises(TypeError, match="requires_grad: q8_0 has no gradient, only floating dtypes have one"):
            fn()
    with pytest.raises(TypeError, match="Tensor: q8_0 .* is not converted to float32: give the array's dequantize"):
        Tensor(q, dtype=np.float32)
    with pytest.raises(ValueError, match="AdamW: a parameter does not require a gradient"):
        tg.optim.AdamW([weight])


def test_a_module_takes_quantised_weights_from_a_state_dict(tmp_path: Path) -> None:
    table, q = weight_of(5, 32, "q4_1"), weight_of(3, 32, "q8_0")
    model = nn.Module()
    model.table, model.layer = nn.Embedding(5, 32), nn.Linear(32, 3)
    bias = np.ones(3)
    model.load_state_dict({"table.weight": table, "layer.weight": Tensor(q), "layer.bias": bias})
    assert [name for name, _ in model.named_parameters()] == ["layer.bias"]
    assert [name for name, _ in model.named_buffers()] == ["table.weight", "layer.weight"]
    assert model.num_params() == 5 * 32 + 3 * 32 + 3  # quantised weights count, too
    state = model.state_dict()
    assert state["table.weight"] is table and state["layer.weight"] is q
    y = model.layer(model.table(np.array([2])))
    expected = table.dequantize()[2:3] @ q.dequantize().T + 1
    np.testing.assert_allclose(y.data, expected, rtol=0.02)
    assert model.astype(np.float64).layer.bias.dtype == np.float64
    model.load_state_dict({**state, "layer.weight": weight_of(3, 32, "q4_0")})
    assert model.layer.weight.data.type == "q4_0"
    with pytest.raises(nn.StateDictError, match=r"table.weight has shape \(4, 32\), \(5, 32\) is needed"):
        model.load_state_dict({**state, "table.weight": weight_of(4, 32, "q4_1")})
    with pytest.raises(nn.StateDictError, match="layer.weight cannot be written: its array is read-only"):
        model.load_state_dict({**state, "layer.weight": np.ones((3, 32))})
    with pytest.raises(TypeError, match=r"save: table.weight is q4_1, .* its dequantize\(\)"):
        tg.save(state, tmp_path / "weights")
