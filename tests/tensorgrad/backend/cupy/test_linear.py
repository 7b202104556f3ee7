"""The cupy backend's matrix products without a GPU: a stand-in for cuBLASLt computes them on NumPy's memory."""

from typing import Any

import numpy as np
import pytest
from fake_cublaslt import FakeCublasLt
from fake_cupy import FakeArray, FakeCupy, FakeDevice, FakeStream, fake
from hypothesis import given
from hypothesis import strategies as st

from tensorgrad.backend.cupy import linear
from tensorgrad.backend.cupy.cublaslt import WORKSPACE_BYTES, CublasLtError, Matrix
from tensorgrad.backend.runtime import Backend

ml_dtypes = pytest.importorskip("ml_dtypes")
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype("float32"), np.dtype("float64"), np.dtype("float16"), BFLOAT16]
TOLERANCE = {"float32": 1e-5, "float64": 1e-13, "float16": 4e-3, "bfloat16": 3e-2}  # of the largest element


def memory(x: Any) -> Any:
    return x.view(FakeArray)


class Plain(Backend):
    """The kernels of `math.py` and nothing else."""

    xp = np
    array_type = np.ndarray


class OnMemory(linear.Linear):
    """The products under test."""

    name = "cupy"
    array_type = FakeArray

    def __init__(self) -> None:
        self.xp = FakeCupy()
        self.__dict__["cublaslt"] = FakeCublasLt()


@pytest.fixture
def k() -> Any:
    return OnMemory()


# --- operands in all memory layouts ---------------------------------------------------------


def draw_array(draw: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """An array of that shape: contiguous, transposed, a part of a larger one, reversed, or broadcast."""
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    kind = draw(st.sampled_from(["plain", "transposed", "wider", "every other", "backwards", "repeated", "odd start"]))
    if kind == "transposed" and len(shape) > 1:
        x = rng.standard_normal((*shape[:-2], shape[-1], shape[-2])).swapaxes(-1, -2)
        return memory(np.asarray(x, dtype, order="K"))
    if kind == "wider":
        return memory(rng.standard_normal((*shape[:-1], shape[-1] + 3)).astype(dtype))[..., 1:-2]
    if kind == "every other":
        return memory(rng.standard_normal((*shape[:-1], shape[-1] * 2)).astype(dtype))[..., ::2]
    if kind == "backwards":
        return memory(rng.standard_normal(shape).astype(dtype))[::-1]
    if kind == "repeated":
        return memory(np.broadcast_to(rng.standard_normal(shape[1:]).astype(dtype), shape))
    if kind == "odd start":
        size = int(np.prod(shape))
        return memory(rng.standard_normal(size + 1).astype(dtype))[1:].reshape(shape)
    return memory(rng.standard_normal(shape).astype(dtype))


SIZES = st.integers(1, 6)
LEADING = st.sampled_from(
    [((), ()), ((2,), ()), ((2, 3), ()), ((2,), (2,)), ((2, 3), (2, 3)), ((1, 3), (2, 1)), ((3,), (2, 3)), ((), (2,))]
)


def near(got: Any, wanted: Any, dtype: Any) -> None:
    assert got.shape == wanted.shape
    got, wanted = np.asarray(got), np.asarray(wanted).astype(np.float64)
    scale = max(1.0, np.abs(wanted).max(initial=0.0))
    np.testing.assert_allclose(got.astype(np.float64), wanted, rtol=0, atol=TOLERANCE[dtype.name] * scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(data=st.data())
def test_matmul(dtype: Any, data: Any) -> None:
    k = OnMemory()
    m, n, p = (data.draw(SIZES) for _ in range(3))
    leading_a, leading_b = data.draw(LEADING)
    a, b = draw_array(data.draw, (*leading_a, m, n), dtype), draw_array(data.draw, (*leading_b, n, p), dtype)
    y = k.matmul(a, b)
    assert y.dtype == dtype and len(k.cublaslt.requested) == 1
    near(y, Plain().matmul(np.asarray(a), np.asarray(b)), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(data=st.data())
def test_linear_and_its_gradients(dtype: Any, data: Any) -> None:
    k, plain = OnMemory(), Plain()
    leading = data.draw(st.sampled_from([(1,), (5,), (2, 3), (1, 4), (2, 2, 2)]))
    n_in, n_out = data.draw(SIZES), data.draw(SIZES)
    x, weight = draw_array(data.draw, (*leading, n_in), dtype), draw_array(data.draw, (n_out, n_in), dtype)
    bias = draw_array(data.draw, (n_out,), dtype) if data.draw(st.booleans()) else None
    dy = draw_array(data.draw, (*leading, n_out), dtype)
    arrays = [None if array is None else np.asarray(array) for array in (x, weight, bias, dy)]
    near(k.linear(x, weight, bias), plain.linear(*arrays[:3]), dtype)
    near(k.linear_backward_x(dy, weight), plain.linear_backward_x(arrays[3], arrays[1]), dtype)
    dweight = k.linear_backward_weight(dy, x)
    assert dweight.dtype == (np.float32 if dtype.itemsize == 2 else dtype)
    near(dweight, plain.linear_backward_weight(arrays[3], arrays[0]), np.dtype(dweight.dtype))
    assert [product.bias for product in k.cublaslt.requested] == [bias is not None, False, False]


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(data=st.data())
def test_add_matmul_adds_in_place(dtype: Any, wide: bool, data: Any) -> None:
    k = OnMemory()
    m, n, p = (data.draw(SIZES) for _ in range(3))
    a, b = draw_array(data.draw, (m, n), dtype), draw_array(data.draw, (n, p), dtype)
    c = memory(np.ones((m, p), np.float32 if wide and dtype.itemsize == 2 else dtype))
    wanted = np.asarray(c) + Plain().wide(np.asarray(a)) @ Plain().wide(np.asarray(b))
    k.add_matmul(c, a, b)
    near(c, wanted, c.dtype)
    assert len(k.cublaslt.requested) == 1


def test_layouts_that_cublaslt_can_read_are_not_copied(k: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """NN, NT and TN, a slice of a projection, and the heads of one sequence."""
    copied: list[Any] = []
    monkeypatch.setattr(k.xp, "ascontiguousarray", copied.append, raising=False)
    x, weight = memory(np.ones((4, 6), np.float32)), memory(np.ones((5, 6), np.float32))
    k.linear(x, weight, None)
    k.linear_backward_x(x @ weight.T, weight)
    k.linear_backward_weight(x @ weight.T, x)
    projection = memory(np.ones((1, 7, 3, 2, 4), np.float32))
    q, key = (projection[:, :, i].swapaxes(1, 2) for i in range(2))  # (1, H, T, D)
    y = k.matmul(q, key.swapaxes(-1, -2))
    assert copied == [] and y.shape == (1, 2, 7, 7)
    requested = k.cublaslt.requested
    assert [(p.transpose_a, p.transpose_b) for p in requested] == [
        (True, False), (False, False), (False, True), (True, False),
    ]  # fmt: skip
    # 24 elements from token to token
    assert requested[3].a == Matrix("float32", 4, 7, 24, 2, 4, requested[3].a.alignment)


def test_alignment_is_that_of_the_address() -> None:
    whole = np.zeros(1024, np.float32)
    start = -whole.ctypes.data % 256 // 4
    for offset, alignment in ((0, 256), (1, 4), (2, 8), (4, 16), (32, 128), (64, 256)):
        x = memory(whole)[start + offset : start + offset + 12].reshape(3, 4)
        assert linear.column_major(x) == (Matrix("float32", 4, 3, 4, 1, 0, alignment), False)


@pytest.mark.parametrize(
    ("left", "right"), [((3,), (3,)), ((3,), (3, 2)), ((4, 3), (3,)), ((2, 4, 3), (3,)), ((3,), (2, 3, 4))]
)
def test_vectors(k: Any, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    a, b = (memory(np.random.default_rng(i).standard_normal(s)) for i, s in enumerate((left, right)))
    near(np.asarray(k.matmul(a, b)), np.asarray(np.matmul(a, b)), a.dtype)


def test_unsupported_operands_are_computed_by_math_py(k: Any) -> None:
    """Integers, and empty products."""
    ints = memory(np.arange(6).reshape(2, 3))
    assert k.matmul(ints, ints.T).tolist() == [[5, 14], [14, 50]]
    empty = memory(np.ones((2, 0), np.float32))
    assert k.matmul(empty, empty.T).tolist() == [[0, 0], [0, 0]]
    assert k.linear(empty, empty, None).tolist() == [[0, 0], [0, 0]]
    assert k.linear_backward_weight(empty.T, empty.T).shape == (2, 2)
    c = memory(np.ones((2, 4), np.float32))[:, ::2]
    k.add_matmul(c, memory(np.ones((2, 3), np.float32)), memory(np.ones((3, 2), np.float32)))
    assert c.tolist() == [[4, 4], [4, 4]]
    k.add_matmul(c, empty, empty.T)
    assert c.tolist() == [[4, 4], [4, 4]]


def test_operands_of_two_dtypes_are_promoted(k: Any) -> None:
    half, single = memory(np.ones((2, 3), np.float16)), memory(np.ones((3, 2), np.float32))
    assert k.matmul(half, single).dtype == np.float32
    assert k.linear(half, single.T, memory(np.ones(2, np.float16))).tolist() == [[4, 4], [4, 4]]
    assert k.linear_backward_weight(single, single.astype(np.float16)).dtype == np.float32
    assert {product.compute for product in k.cublaslt.requested} == {"float32"}


def test_tf32_is_used_only_for_float32_and_on_request(k: Any) -> None:
    def computes() -> list[str]:
        for dtype in DTYPES:
            k.matmul(memory(np.ones((2, 2), dtype)), memory(np.ones((2, 2), dtype)))
        return [product.compute for product in k.cublaslt.requested[-4:]]

    assert computes() == ["float32", "float64", "float32", "float32"]
    k.set_float32_precision(tf32=True)
    assert computes() == ["tf32", "float64", "float32", "float32"]


def test_a_bias_that_cannot_be_fused_is_added_separately(k: Any) -> None:
    k.cublaslt.refused.add("bias")
    x, weight = memory(np.ones((1, 3), np.float32)), memory(np.ones((2, 3), np.float32))
    bias = memory(np.array([1, 2], np.float32))
    for fused in ([True, False], [False]):
        before = len(k.cublaslt.requested)
        assert k.linear(x, weight, bias).tolist() == [[4, 5]]
        assert [product.bias for product in k.cublaslt.requested[before:]] == fused


@pytest.mark.parametrize("refused", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("m", [64, 24, 20])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gelu_in_the_products_of_an_mlp(
    k: Any, dtype: Any, m: int, bias: bool, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In half precision where 8 divides the length of a row; otherwise, and where it is refused, by other kernels."""
    monkeypatch.setattr(k, "column_sums", lambda x, dtype: x.astype(dtype).sum(axis=0))  # a kernel of another file
    rng = np.random.default_rng(0)
    x, w1, b1, w2, dy = (
        rng.standard_normal(shape).astype(dtype) for shape in ((3, 7, 16), (m, 16), (m,), (16, m), (3, 7, 16))
    )
    epilogues = ["bias_gelu" if bias else "gelu", "dgelu"]
    if refused:
        k.cublaslt.refused.update(epilogues)
    plain, wide = Plain(), [a.astype(np.float64) for a in (x, w1, b1, w2, dy)]
    wanted, wanted_h = plain.linear_gelu_tanh(wide[0], wide[1], wide[2] if bias else None)
    for _ in range(2):
        k.cublaslt.requested.clear()
        y, h = k.linear_gelu_tanh(memory(x), memory(w1), memory(b1) if bias else None)
        near(y, wanted, dtype)
        near(h, wanted_h, dtype)
        there = memory(np.array(h))
        dh, activation, dbias = k.linear_gelu_tanh_backward(memory(dy), memory(w2), there, None, bias)
        exact = plain.linear_gelu_tanh_backward(wide[4], wide[3], np.array(h).astype(np.float64), None, bias)
        near(dh, exact[0], dtype)
        near(activation, exact[1], dtype)
        assert (dbias is None) == (not bias)
        if bias:
            assert dbias.dtype == (np.float32 if dtype.itemsize == 2 else dtype)
            near(dbias, exact[2], dtype)
    fused = dtype.itemsize == 2 and m % 8 == 0 and not refused
    used = [product.epilogue for product in k.cublaslt.requested if product.aux]
    assert used == (epilogues if fused else []), "what was refused once is not tried again"
    if fused:
        kept = memory(np.array(y))
        again = k.linear_gelu_tanh_backward(memory(dy), memory(w2), memory(np.array(h)), kept, bias)
        assert again[1] is kept and again[0].tobytes() == dh.tobytes()


def test_other_errors_are_raised(k: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise CublasLtError("cublasLtMatmul: CUBLAS_STATUS_EXECUTION_FAILED (13)", 13)

    monkeypatch.setattr(k.cublaslt, "multiply", fail)
    x = memory(np.ones((2, 2), np.float32))
    with pytest.raises(CublasLtError, match="EXECUTION_FAILED"):
        k.linear(x, x, x[0])


def test_each_stream_has_one_workspace(k: Any) -> None:
    x = memory(np.ones((2, 2), np.float32))
    streams = [FakeStream(), FakeStream()]
    for stream in (*streams, streams[0]):
        with stream:
            k.matmul(x, x)
    assert [len(space) for space in k.workspaces.values()] == [WORKSPACE_BYTES] * 2
    assert k.cublaslt.streams == k.workspaces.keys() == {stream.ptr for stream in streams}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("n", [8, 11, 65])
def test_logits_of_any_vocabulary_are_aligned(k: Any, dtype: str, n: int) -> None:
    """Their rows, and those of their gradient, are multiples of 16 bytes apart, as fast products need them."""
    x, weight = (fake(np.ones(shape).astype(dtype)) for shape in ((6, 16), (n, 16)))
    k.autotune = True
    logits = k.linear(x, weight, None)
    assert logits.shape == (6, n) and logits.strides[0] % 16 == 0
    assert logits.astype(np.float32).tolist() == [[16] * n] * 6
    dweight = k.linear_backward_weight(logits, x)
    k.add_matmul(dweight, logits.T, x)
    assert dweight.astype(np.float32).tolist() == [[2 * 16 * 6] * 16] * n
    assert k.linear_backward_x(logits, weight).astype(np.float32).tolist() == [[16 * n] * 16] * 6
    assert k.cublaslt.requested and not k.cublaslt.unaligned


def test_autotuning_times_a_new_shape_once_and_does_not_overwrite_the_result(k: Any) -> None:
    k.autotune = True
    c, x = memory(np.ones((2, 2), np.float32)), memory(np.ones((2, 2), np.float32))
    for total in (3, 5):
        k.add_matmul(c, x, x)
        assert c.tolist() == [[total] * 2] * 2  # the candidates did not add to it
    assert len(k.cublaslt.requested) == (1 + linear.TIMED_RUNS) + 2 and len(k.cublaslt.plans) == 1


def test_the_library_is_loaded_at_the_first_product(monkeypatch: pytest.MonkeyPatch) -> None:
    products = linear.Linear()
    products.xp = FakeCupy()
    monkeypatch.setattr(linear.cublaslt, "load", lambda card: f"loaded for {card}")
    assert products.cublaslt == "loaded for Stand-in, 132 multiprocessors"


def test_dtypes_that_an_old_gpu_does_not_support(k: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [k.lacks(dtype) for dtype in ("float32", "tf32", "float16", "bfloat16")] == [None] * 4
    monkeypatch.setattr(FakeDevice, "compute_capability", "75")
    wanted = "needs a GPU of compute capability 8.0, and this one has 7.5: choose float16"
    assert [k.lacks(dtype) for dtype in ("float32", "tf32", "float16", "bfloat16")] == [None, wanted, None, wanted]
