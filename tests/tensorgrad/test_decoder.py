"""One token through a block in one op, compared with the composition of plain ops in PyTorch."""

from __future__ import annotations

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
    operands = [Tensor(a) for a in arrays]
    return tg.decode_block(*operands, **caches, position=position, rope_base=BASE, eps=EPS).numpy()


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
    for name in (*inlined, "project", "attend_heads", "multiply", "gated_product"):
        monkeypatch.setattr(decoder, name, getattr(decoder, name).py_func)
    monkeypatch.setattr(decoder, "DECODE_BLOCK", decoder.DECODE_BLOCK.py_func)
    with tg.use_backend("numba"):
        arrays, caches = inputs(SHAPES[1], "float64")
        expected, *_ = in_torch(arrays, caches, 3, 6)
        np.testing.assert_allclose(decode(arrays, caches, 3)[0, 0], expected, rtol=1e-12)


def test_what_does_not_fit_is_refused() -> None:
    arrays, caches = inputs(SHAPES[1], "float64")
    with pytest.raises(ValueError, match=r"^decode_block: position 9 is not below 9, the number of slots"):
        decode(arrays, caches, 9)
    with pytest.raises(ValueError, match=r"^decode_block: x \(1, 2, 48\) is not \(1, 1, C\), one token"):
        decode([np.zeros((1, 2, 48)), *arrays[1:]], caches, 0)
