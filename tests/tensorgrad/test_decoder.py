"""One token through blocks in one op, compared with the composition of plain ops in PyTorch."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad import Tensor

torch = pytest.importorskip("torch")
numba = pytest.importorskip("numba")
from tensorgrad.backend.numba import decoder  # noqa: E402

TOLERANCE = {"float32": 2e-6, "float64": 1e-14}
# heads, heads of keys, D, hidden, slots
SHAPES = [(1, 1, 2, 3, 1), (6, 2, 8, 70, 9), (9, 3, 64, 129, 20), (4, 4, 16, 8, 5)]
BASE, EPS = 500.0, 1e-5


def inputs(shape: tuple[int, ...], dtype: str) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """x and the weights; the keys and values before the token, all slots filled."""
    n_head, n_kv_head, D, hidden, slots = shape
    C, kv = n_head * D, n_kv_head * D
    rng = np.random.default_rng(0)
    shapes = [(1, 1, C), (C,), (C, C), (kv, C), (kv, C), (C, C), (C,), (hidden, C), (hidden, C), (C, hidden)]
    arrays = [(rng.standard_normal(s) / np.sqrt(s[-1])).astype(dtype) for s in shapes]
    caches = {name: rng.standard_normal((1, n_kv_head, slots, D)).astype(dtype) for name in ("keys", "values")}
    return arrays, caches


def in_torch(arrays: list[np.ndarray], caches: dict[str, np.ndarray], position: int, n_head: int) -> Any:
    """The block in PyTorch, in float64: the result, and the new key and value (G, D)."""
    x, norm_1, q, k, v, o, norm_2, gate, up, down = (torch.from_numpy(a.astype(np.float64)) for a in arrays)
    keys, values = (torch.from_numpy(a.astype(np.float64))[0, :, : position + 1].clone() for a in caches.values())
    D = keys.shape[2]
    half = torch.arange(D // 2, dtype=torch.float64)
    angle = position * BASE ** (-2 * half / D)
    rotation = torch.polar(torch.ones_like(angle), angle)

    def rotated(y: Any) -> Any:
        y = torch.complex(y[:, : D // 2], y[:, D // 2 :]) * rotation
        return torch.cat([y.real, y.imag], dim=1)

    f = torch.nn.functional
    x = x.reshape(-1)
    normed = f.rms_norm(x, x.shape, norm_1, EPS)
    key, value = rotated((k @ normed).reshape(-1, D)), (v @ normed).reshape(-1, D)
    keys[:, position], values[:, position] = key, value
    query = rotated((q @ normed).reshape(n_head, D))[None, :, None]
    y = f.scaled_dot_product_attention(query, keys[None], values[None], enable_gqa=True)
    x = x + o @ y.reshape(-1)
    normed = f.rms_norm(x, x.shape, norm_2, EPS)
    y = x + down @ (f.silu(gate @ normed) * (up @ normed))
    return [result.numpy() for result in (y, key, value)]


def decode(arrays: list[Any], caches: dict[str, np.ndarray], position: int) -> np.ndarray:
    operands, in_lists = [Tensor(a) for a in arrays], {name: [cache] for name, cache in caches.items()}
    return tg.decode_blocks(*operands, **in_lists, position=position, rope_base=BASE, eps=EPS).numpy()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_block_in_pytorch(shape: tuple[int, ...], backend: str, dtype: str) -> None:
    with tg.use_backend(backend):
        for position in {0, shape[-1] // 2, shape[-1] - 1}:
            arrays, caches = inputs(shape, dtype)
            before = {name: cache.copy() for name, cache in caches.items()}
            expected, *new = in_torch(arrays, caches, position, shape[0])
            got = decode(arrays, caches, position)
            assert got.shape == arrays[0].shape
            assert got.dtype == arrays[0].dtype
            scale = abs(expected).max()
            np.testing.assert_allclose(got[0, 0] / scale, expected / scale, rtol=0, atol=TOLERANCE[dtype])
            for (name, cache), written in zip(caches.items(), new, strict=True):
                np.testing.assert_allclose(cache[0, :, position], written, rtol=0, atol=4 * TOLERANCE[dtype])
                cache[:, :, position] = before[name][:, :, position]
                np.testing.assert_array_equal(cache, before[name])  # no other slot


@pytest.mark.parametrize("type", ["q8_0", "q4_0", "q4_1", "mixed"])
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_reads_quantised_weights(backend: str, type: str) -> None:
    """Compared with PyTorch on the dequantised weights; mixed: matrices of two types, and some that are floating."""
    with tg.use_backend(backend):
        arrays, caches = inputs((6, 2, 16, 160, 9), "float32")
        weights: list[Any] = list(arrays)
        for i in (2, 3, 4, 5, 7, 8, 9) if type != "mixed" else (2, 4, 7, 9):
            weights[i] = tg.quantize(arrays[i], type if type != "mixed" else ("q8_0" if i < 5 else "q4_1"))
            arrays[i] = weights[i].dequantize()
        expected, key, value = in_torch(arrays, caches, 5, 6)
        got = decode(weights, caches, 5)[0, 0]
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-4 * abs(expected).max())  # x is rounded to int16
        np.testing.assert_allclose(caches["keys"][0, :, 5], key, rtol=0, atol=2e-4 * abs(key).max())
        np.testing.assert_allclose(caches["values"][0, :, 5], value, rtol=0, atol=2e-4 * abs(value).max())


def test_any_number_of_threads_gives_the_same_bits() -> None:
    results = []
    before = tg.get_backend().threads
    try:
        with tg.use_backend("numba"):
            for n in (1, before):
                tg.set_num_threads(n)
                arrays, caches = inputs(SHAPES[2], "float32")
                results.append((decode(arrays, caches, 7), caches["keys"], caches["values"]))
    finally:
        tg.set_num_threads(before)
    for result in results[1:]:
        for one, other in zip(results[0], result, strict=True):
            np.testing.assert_array_equal(one, other)


def test_weights_in_another_order_in_memory_are_left_to_the_plain_mathematics() -> None:
    with tg.use_backend("numba"):
        arrays, caches = inputs(SHAPES[1], "float64")
        expected = decode(arrays, caches, 3)
        arrays[2] = np.asfortranarray(arrays[2])
        arrays[7].flags.writeable = False
        np.testing.assert_allclose(decode(arrays, caches, 3), expected, rtol=1e-12)


def test_the_kernel_runs_as_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "contiguous_row", lambda row: row)
    monkeypatch.setattr(decoder, "exp", np.exp)
    inlined = "share", "normalized", "rotate_heads", "attend", "float_products"
    for name in (*inlined, "project", "attend_heads", "multiply", "gated_product", "decode_block"):
        monkeypatch.setattr(decoder, name, getattr(decoder, name).py_func)
    monkeypatch.setattr(decoder, "DECODE_BLOCKS", decoder.DECODE_BLOCKS.py_func)
    with tg.use_backend("numba"):
        arrays, caches = inputs(SHAPES[1], "float64")
        expected, *_ = in_torch(arrays, caches, 3, 6)
        np.testing.assert_allclose(decode(arrays, caches, 3)[0, 0], expected, rtol=1e-12)


def test_what_does_not_fit_is_refused() -> None:
    arrays, caches = inputs(SHAPES[1], "float64")
    with pytest.raises(ValueError, match=r"^decode_blocks: position 9 is not below 9, the number of slots"):
        decode(arrays, caches, 9)
    with pytest.raises(ValueError, match=r"^decode_blocks: x \(1, 2, 48\) is not \(1, 1, C\), one token"):
        decode([np.zeros((1, 2, 48)), *arrays[1:]], caches, 0)
    with pytest.raises(ValueError, match="^decode_blocks: 8 weights, 1 keys and 1 values: every block has 9, one and "):
        decode(arrays[:-1], caches, 0)


class Model:
    """Three blocks, each with weights, keys and values of its own."""

    def __init__(self, types: tuple[str, ...] = ("float32",) * 3) -> None:
        rng, (arrays, _) = np.random.default_rng(1), inputs((4, 2, 16, 96, 9), "float32")
        self.x, self.weights, self.keys, self.values = arrays[0], [], [], []
        for type in types:
            for a in arrays[1:]:
                w = a + 0.01 * rng.standard_normal(a.shape, np.float32)
                self.weights.append(w if w.ndim == 1 or type == "float32" else tg.quantize(w, type))
            for caches in (self.keys, self.values):
                caches.append(rng.standard_normal((1, 2, 9, 16), np.float32))

    def decode(self, first: int = 0, last: int = 3, x: Any = None) -> Any:
        """x through some of the blocks at position 4, and the keys and values after it; then as they were before."""
        operands = [Tensor(self.x if x is None else x), *(Tensor(w) for w in self.weights[9 * first : 9 * last])]
        keys, values = self.keys[first:last], self.values[first:last]
        before = np.array([keys, values])
        y = tg.decode_blocks(*operands, keys=keys, values=values, position=4, rope_base=BASE, eps=EPS).numpy()
        after = np.array([keys, values])
        for array, old in zip([*keys, *values], before.reshape(-1, *keys[0].shape), strict=True):
            array[...] = old
        return y, after


KINDS = [("float32",) * 3, ("q8_0",) * 3, ("q4_0", "q8_0", "q4_0"), ("q8_0", "float32", "q4_1")]


@pytest.mark.parametrize("types", KINDS)
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_several_blocks_are_one_after_another(backend: str, types: tuple[str, ...]) -> None:
    model = Model(types)
    with tg.use_backend(backend):
        together, caches = model.decode()
        x = model.x
        for i in range(3):
            x, after = model.decode(i, i + 1, x)
            np.testing.assert_array_equal(caches[:, i : i + 1], after)
    np.testing.assert_array_equal(together, x)
    assert not np.array_equal(together, model.x)


def test_blocks_that_differ_in_shape() -> None:
    model = Model()
    with tg.use_backend("numba"):
        expected, _ = model.decode()
        for i in (15, 16):  # the second block has eight more hidden units, which add nothing
            model.weights[i] = np.concatenate([model.weights[i], np.zeros((8, 64), np.float32)])
        model.weights[17] = np.concatenate([model.weights[17], np.ones((64, 8), np.float32)], axis=1)
        np.testing.assert_allclose(model.decode()[0], expected, rtol=1e-5, atol=1e-6)


def test_weights_that_are_replaced_or_written_are_read_anew() -> None:
    with tg.use_backend("numba"):
        model, other = Model(), Model()
        for i in (3, 10, 26):
            before, _ = model.decode()
            model.weights[i] = 2 * model.weights[i]
            changed, _ = model.decode()
            assert not np.array_equal(changed, before)
            model.weights[i][...] /= 2
            np.testing.assert_array_equal(model.decode()[0], before)
            np.testing.assert_array_equal(other.decode()[0], before)


def test_weights_are_not_kept_alive() -> None:
    with tg.use_backend("numba"):
        for type in ("float32", "q8_0"):
            model = Model((type,) * 3)
            model.decode()
            references = [weakref.ref(w) for w in model.weights]
            del model
            assert [r() for r in references] == [None] * 27
