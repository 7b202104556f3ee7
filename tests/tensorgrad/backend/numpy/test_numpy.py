"""The NumPy backend, in blocks, in place and on several threads, checked against the kernels of `math.py`."""

import os
import sys
import threading
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorgrad as tg
from tensorgrad import backend
from tensorgrad.backend import blas
from tensorgrad.backend.numpy import attention, blocks, linear, normalization
from tensorgrad.backend.threads import Team, cpu_count, team


class Plain(backend.Backend):
    """The kernels of `math.py` and nothing else."""

    xp = np
    array_type = np.ndarray


k, reference = backend.load("numpy"), Plain()
LARGE = 2 * blocks.BLOCK_ELEMENTS + 5  # two blocks and a bit


@pytest.fixture(autouse=True)
def three_threads() -> Any:
    """Three threads on every machine, so that parts are unequal."""
    before = type(k).threads
    type(k).threads = 3
    yield
    type(k).threads = before


def draw(*shape: int, dtype: Any = np.float64, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def assert_near(got: Any, expected: Any, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol)


# --- threads --------------------------------------------------------------------------------------


@given(st.integers(1, 4), st.integers(0, 30))
def test_every_part_is_done_once(n_threads: int, n_parts: int) -> None:
    done: list[int] = []
    team(n_threads).run(done.append, [(i,) for i in range(n_parts)])
    assert sorted(done) == list(range(n_parts))


def test_other_threads_take_parts() -> None:
    meeting = threading.Barrier(3)  # passes only if three threads are there at once
    team(3).run(lambda: meeting.wait(30) and None, [()] * 3)


def test_threads_that_have_not_begun_are_not_waited_for() -> None:
    """Such as threads that a fork has not inherited, or that are busy."""
    alone = Team(1)
    alone.n = 5
    done: list[int] = []
    alone.run(done.append, [(i,) for i in range(7)])
    assert done == list(range(7))


@pytest.mark.parametrize("failing", [0, 1])
def test_an_exception_of_a_part_is_raised_when_all_parts_are_done(failing: int) -> None:
    meeting, done = threading.Barrier(2), []

    def work(i: int) -> None:
        if i < 2:
            meeting.wait(30)  # each thread has one of these
        if i == failing:
            raise ZeroDivisionError(f"part {i}")
        done.append(i)

    with pytest.raises(ZeroDivisionError, match=f"^part {failing}$"):
        team(2).run(work, [(i,) for i in range(5)])
    assert sorted(done) == [i for i in range(5) if i != failing]


def test_threads_inherit_errstate_and_warning_filters() -> None:
    x = np.full(LARGE, 1e38, np.float32)
    with np.errstate(over="raise"), pytest.raises(FloatingPointError, match="overflow"):
        k.add_to(3 * x, 3 * x)
    with np.errstate(over="ignore"), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isinf(k.add(3 * x, 3 * x)).all()


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="os.fork is not reliable here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12's, of threads and fork
def test_a_forked_process_has_threads_of_its_own() -> None:
    team(2).run(lambda: None, [()] * 2)
    child = os.fork()
    if child == 0:
        meeting = threading.Barrier(2)
        team(2).run(lambda: meeting.wait(30) and None, [()] * 2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@given(st.integers(0, 100), st.integers(1, 9), st.integers(0, 20))
def test_parts_cover_the_range_in_order(n: int, n_parts: int, ahead: int) -> None:
    parts = blocks.split(n, n_parts, ahead)
    assert [i for part in parts for i in range(n)[part]] == list(range(n))
    sizes = [part.stop - part.start for part in parts]
    assert n == 0 or min(sizes) > 0
    assert max(sizes[1:], default=0) <= sizes[0] + 1
    assert max(sizes[1:], default=0) - min(sizes[1:], default=0) <= 1


# --- products and sums ----------------------------------------------------------------------------

LAYOUTS = {
    "as it is": lambda x: x,
    "transposed": lambda x: x.swapaxes(-1, -2).copy().swapaxes(-1, -2),
    "every other": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "backwards": lambda x: x[..., ::-1].copy()[..., ::-1],
}


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.sampled_from([(), (1,), (2,), (5,), (2, 3)]),
    st.booleans(), st.sampled_from(sorted(LAYOUTS)), st.sampled_from(sorted(LAYOUTS)),
)  # fmt: skip
def test_products_in_parts(m: int, n: int, p: int, stack: Any, both: bool, left: str, right: str) -> None:
    a, b = draw(*stack, m, n), draw(*(stack if both else ()), n, p, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "MIN_PART_MULTIPLICATIONS", 64)
        patch.setattr(linear, "HEAD_START_MULTIPLICATIONS", 32)
        assert_near(k.matmul(LAYOUTS[left](a), LAYOUTS[right](b)), a @ b)


@pytest.mark.parametrize(("a", "b"), [((3, 4), (2, 4, 5)), ((2, 1, 3, 4), (3, 4, 5)), ((0, 4), (4, 5)), ((4,), (4, 5))])
def test_products_of_other_shapes(a: Any, b: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "MIN_PART_MULTIPLICATIONS", 1)
    assert_near(k.matmul(draw(*a), draw(*b, seed=1)), draw(*a) @ draw(*b, seed=1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_products(dtype: Any) -> None:
    x, weight, dy = draw(4, 130, 300, dtype=dtype), draw(520, 300, dtype=dtype, seed=1), draw(4, 130, 520, dtype=dtype)
    eps = 300 * np.finfo(dtype).eps
    assert_near(k.linear(x, weight, weight[:, 0]), x @ weight.T + weight[:, 0], eps, eps)
    assert_near(k.linear_backward_x(dy, weight), dy @ weight, eps, eps)
    expected = np.tensordot(dy, x, ((0, 1), (0, 1)))
    dweight = k.linear_backward_weight(dy, x)
    assert_near(dweight, expected, eps, eps)
    k.add_matmul(dweight, dy[0].T, x[0])
    assert_near(dweight, expected + dy[0].T @ x[0], eps, eps)
    large = draw(700, 400, dtype=dtype)
    assert_near(k.linear_backward_bias(large), large.sum(axis=0), eps, eps)


def test_a_product_uses_one_thread_of_openblas() -> None:
    """OpenBLAS's threads and those of a team would compete for the cores."""
    library = blas.find()
    if library is None:
        pytest.skip("NumPy was built with another BLAS, which manages its threads itself")
    library.set_num_threads(cpu_count())
    k.matmul(draw(300, 300), draw(300, 300))
    assert library.get_num_threads() == 1


def test_skinny_products_use_the_threads_of_openblas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a product is over before a thread of the team is awake."""
    requested: list[int] = []
    monkeypatch.setattr(blas, "use_threads", lambda n: requested.append(n) or True)
    x, weight = draw(1, 2, 700), draw(800, 700)
    assert_near(k.linear(x, weight, None), x @ weight.T, 1e-5, 1e-4)
    assert requested == [k.threads, 1]
    with pytest.raises(ValueError):
        k.matmul(x, weight)
    assert requested[-1] == 1


def test_products_with_another_blas_are_not_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "find", lambda: None)
    monkeypatch.setattr(type(k), "_on_all_threads", lambda *_: pytest.fail("split"))
    assert_near(k.matmul(draw(300, 300), draw(300, 300)), draw(300, 300) @ draw(300, 300))


@pytest.mark.parametrize("lay_out", [lambda x: x, lambda x: x.T, lambda x: x[::2]])
def test_large_sums(lay_out: Any) -> None:
    a, b = lay_out(draw(800, 700)), lay_out(draw(800, 700, seed=1))
    expected = a + b
    assert_near(k.add(a, b), expected, 0, 0)
    k.add_to(a, b)
    assert_near(a, expected, 0, 0)
    assert_near(k.add(a, b[:1]), expected + b[:1], 0, 0)


# --- activations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lay_out", [lambda x: x, lambda x: x.reshape(-1, 3).T, lambda x: x[::-2], lambda x: x[:5000]])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh"])
def test_activations_in_blocks(name: str, dtype: Any, lay_out: Any) -> None:
    x, dy = (lay_out(draw(3 * (LARGE // 3), dtype=dtype, seed=seed)) for seed in range(2))
    # gelu_tanh is computed by another formula, equal up to rounding; the others are equal bit by bit.
    off = 16 * np.finfo(dtype).eps if name == "gelu_tanh" else 0
    assert_near(getattr(k, name)(x), getattr(reference, name)(x), off, off)
    backwards = f"{name}_backward"
    expected = getattr(reference, backwards)(dy, x)
    assert_near(getattr(k, backwards)(dy, x), expected, off, off)
    if name == "gelu_tanh":
        y = reference.gelu_tanh(x)
        for array, right in zip(k.gelu_tanh_recompute(dy, x), (expected, y), strict=True):  # overwrites dy and x
            assert_near(array, right, off, off)


def test_gelu_of_large_numbers() -> None:
    x = np.repeat(np.float32([-1e12, -1e4, -90, -12, 0, 12, 90, 1e4, 1e12]), 1000)
    assert_near(k.gelu_tanh(x), np.where(x > 0, x, np.float32(0)), 1e-6, 0)
    assert_near(k.gelu_tanh_backward(np.ones_like(x), x), np.heaviside(x, np.float32(0.5)), 1e-6)


# --- layer norm -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(3, 700, 96), (4096, 64), (2, 33, 65), (1, 300_000), (70_000, 2)])
def test_layer_norm_in_blocks(shape: Any, dtype: Any) -> None:
    x, residual, dy, dsum = (draw(*shape, dtype=dtype, seed=seed) for seed in range(4))
    weight, bias = (draw(shape[-1], dtype=dtype, seed=seed) for seed in (4, 5))
    off = {np.float32: 3e-5, np.float64: 1e-12}[dtype]
    for scales in ((weight, bias), (weight, None), (None, bias), (None, None)):
        got, expected = (each.layer_norm(x, *scales, 1e-5) for each in (k, reference))
        for a, b in zip(got, expected, strict=True):
            assert_near(a, b, off, off)
        added = k.add_layer_norm(x, residual, *scales, 1e-5)
        for a, b in zip(added, reference.add_layer_norm(x, residual, *scales, 1e-5), strict=True):
            assert_near(a, b, off, off)
        _, mean, rstd = expected
        for more in ((), (dsum,)):
            dx = [each.layer_norm_backward_x(dy, x, scales[0], mean, rstd, *more) for each in (k, reference)]
            assert_near(*dx, off * 100, off * 100)
    dweight = [each.layer_norm_backward_weight(dy, x, mean, rstd) for each in (k, reference)]
    assert_near(*dweight, off * 100, off * shape[0])
    for needs in ((True, True, True), (True, True, False), (True, False, True), (False, True, True)):
        got, expected = (each.layer_norm_backward(dy, x, weight, mean, rstd, dsum, needs) for each in (k, reference))
        for a, b, need in zip(got, expected, needs, strict=True):
            assert (a is not None) == (b is not None) == need
            if need:
                assert_near(a, b, off * 100, off * max(shape[0], 100))


@pytest.mark.parametrize("lay_out", [lambda x: x.swapaxes(0, 1), lambda x: x[..., ::2], lambda x: x.astype(np.float16)])
def test_layer_norm_of_other_layouts(lay_out: Any) -> None:
    x, dy = (lay_out(draw(100, 40, 32, dtype=np.float32, seed=seed)) for seed in range(2))
    weight = draw(x.shape[-1], dtype=x.dtype)
    got, expected = (each.layer_norm(x, weight, None, 1e-5) for each in (k, reference))
    assert_near(got[0], expected[0], 1e-5, 1e-5)
    assert_near(*(each.layer_norm_backward_x(dy, x, weight, *expected[1:]) for each in (k, reference)), 1e-5, 1e-5)
    assert_near(*(each.layer_norm_backward_weight(dy, x, *expected[1:]) for each in (k, reference)), 1e-4, 1e-4)


def test_layer_norm_is_as_accurate_as_the_reference() -> None:
    """Against float64, far from 0, where the mean has to be exact to the last digit, and over a long row."""
    for x in (1000 + draw(64, 512, dtype=np.float32), draw(4, 100_000, dtype=np.float32)):
        exact = reference.layer_norm(x.astype(np.float64), None, None, 1e-5)[0]
        error, of_plain = (np.abs(each.layer_norm(x, None, None, 1e-5)[0] - exact).max() for each in (k, reference))
        assert error <= 2 * of_plain + 1e-6


# --- cross-entropy --------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(900, 400), (9, 60_000), (70, 65)])
def test_cross_entropy_in_blocks(shape: Any, smoothing: float) -> None:
    rng = np.random.default_rng(0)
    logits, dlosses = draw(*shape), draw(shape[0], seed=1)
    targets = rng.integers(0, shape[1], shape[0])
    targets[::5] = -100
    outcomes = [each.cross_entropy(logits, targets, -100, smoothing) for each in (k, reference)]
    for got, expected in zip(*outcomes, strict=True):
        assert_near(got, expected)
    given_ = (dlosses, logits, targets, outcomes[1][1], -100, smoothing)
    expected = reference.cross_entropy_backward(*given_)
    assert_near(k.cross_entropy_backward(*given_), expected)
    assert k.cross_entropy_backward(*given_, out=logits) is logits
    assert_near(logits, expected)


# --- attention ------------------------------------------------------------------------------------


def attended(each: Any, dy: Any, q: Any, key: Any, v: Any, scale: float = 0.3) -> list[Any]:
    y, lse = each.attention(q, key, v, True, None, None, scale)
    return [y, lse, *each.attention_backward(dy, q, key, v, y, lse, True, None, None, scale)]


@pytest.mark.parametrize("factor", [1, 100])  # safe and unsafe scores
@pytest.mark.parametrize("heads", [(4, 2), (3, 3), (4, 1)])
@pytest.mark.parametrize(
    ("n_query", "n_key"), [(150, 150), (150, 40), (70, 200), (1, 90), (64, 64), (65, 65), (128, 1)]
)
def test_causal_attention_in_blocks(n_query: int, n_key: int, heads: Any, factor: float) -> None:
    q, dy = (draw(2, heads[0], n_query, 8, seed=seed) for seed in range(2))
    key, v = (draw(2, heads[1], n_key, 8, seed=seed) for seed in range(2, 4))
    for got, expected in zip(*(attended(each, dy, factor * q, key, v) for each in (k, reference)), strict=True):
        assert_near(got, expected, 1e-9, 1e-11)


@pytest.mark.parametrize(("batch", "heads"), [(1, 12), (7, 6), (5, 1)])
def test_causal_attention_in_parts(batch: int, heads: int) -> None:
    """Parts of the batch and, where that is small, of the heads; the operands are parts of a joint projection."""
    projected = draw(batch, 200, 3 * heads * 16, dtype=np.float32)
    parts = np.split(projected, 3, axis=-1)
    q, key, v = (x.reshape(batch, 200, heads, 16).transpose(0, 2, 1, 3) for x in parts)
    dy = draw(batch, heads, 200, 16, dtype=np.float32, seed=1)
    for got, expected in zip(*(attended(each, dy, q, key, v) for each in (k, reference)), strict=True):
        assert_near(got, expected, 1e-4, 1e-4)


@pytest.mark.parametrize("size", [39.9, 41, 80, 1000])
def test_large_scores_of_both_signs(size: float) -> None:
    """All scores of a row far below 0, or far above: e^score would vanish, or overflow float32."""
    q, key, v = draw(1, 1, 70, 4), draw(1, 1, 70, 4, seed=1), draw(1, 1, 70, 4, seed=2)
    q[..., 0], key[..., 0] = np.where(np.arange(70) % 2, size, -size), 1
    narrow = [x.astype(np.float32) for x in (v, q, key, v)]
    got = attended(k, *narrow, scale=1.0)
    expected = attended(reference, *(x.astype(np.float64) for x in narrow), scale=1.0)
    for a, b in zip(got, expected, strict=True):
        off = 1e-5 + 2e-7 * size  # the rounding of a score
        np.testing.assert_allclose(a, b, rtol=off, atol=off * np.abs(b).max())


def test_a_nan_reaches_only_the_queries_that_see_it() -> None:
    q, key, v = (draw(1, 1, 130, 4, seed=seed) for seed in range(3))
    key[0, 0, 100] = np.nan
    y, _ = k.attention(q, key, v, True, None, None, 0.5)
    expected, _ = reference.attention(q, key, v, True, None, None, 0.5)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))


def test_gradients_of_a_joint_projection_share_one_array() -> None:
    q, key, v, dy = (draw(2, 3, 70, 4, seed=seed) for seed in range(4))
    *_, dq, dkey, dv = attended(k, dy, q, key, v)
    assert dq.base is dkey.base is dv.base
    assert dq.base.shape == (2, 70, 3, 3, 4)


def test_the_mask_of_a_block() -> None:
    assert attention.causal_bias(3, 2, np.dtype(np.float32)).tolist() == [[-np.inf, -np.inf], [0, -np.inf], [0, 0]]


# --- embedding ------------------------------------------------------------------------------------


def test_embedding_gradients_equal_those_added_row_by_row() -> None:
    rng = np.random.default_rng(0)
    dy, indices = rng.standard_normal((4, 50, 3)), rng.integers(0, 7, (4, 50))
    got, expected = (each.embedding_backward(dy, indices, (9, 3)) for each in (k, reference))
    assert_near(got, expected, 1e-12, 1e-14)
    assert not got[7:].any()


# --- optimizer ---------------------------------------------------------------------------------

OPTIONS = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "step": 3}


def states(*shape: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {name: rng.random(shape) for name in "pgmv"}


@pytest.mark.parametrize("shape", [(LARGE // 3, 3), (5,), ()])
def test_adamw_in_blocks(shape: Any) -> None:
    got, expected = states(*shape), states(*shape)
    k.adamw(*got.values(), **OPTIONS)
    reference.adamw(*expected.values(), **OPTIONS)
    for name, x in got.items():
        assert_near(x, expected[name], 1e-14, 1e-15)


@pytest.mark.parametrize("odd", ["p", "g", "m", "v"])
def test_blocks_of_adamw_write_into_arrays_of_any_layout(odd: str) -> None:
    """Larger than a block, and one array transposed: nothing is written into a copy."""
    got, expected = states(LARGE // 200, 200), states(LARGE // 200, 200)
    reference.adamw(*expected.values(), **OPTIONS)
    got[odd] = np.asfortranarray(got[odd])
    k.adamw(*got.values(), **OPTIONS)
    for name, x in got.items():
        np.testing.assert_allclose(x, expected[name], rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("skip", [False, True])
def test_a_group_is_updated_like_single_parameters(skip: bool) -> None:
    shapes = [(600, 500), (7,), (), (0, 3), (400, 300)]
    got, expected = ([states(*shape) for shape in shapes] for _ in range(2))
    got[0]["g"] = np.asfortranarray(got[0]["g"])
    for each, group in ((k, got), (reference, expected)):
        lists = ([state[name] for state in group] for name in "pgmv")
        each.adamw_group(*lists, [None] * len(shapes), skip=skip, **OPTIONS)
    for state, other in zip(got, expected, strict=True):
        for name, x in state.items():
            np.testing.assert_allclose(x, other[name], rtol=1e-14, atol=1e-15)


def test_norm_and_scale_of_many_arrays() -> None:
    arrays = [draw(700, 800), draw(3).astype(np.float16), draw(), draw(0, 2), draw(300, 200).T, draw(60)[::2]]
    arrays = [np.asarray(x) for x in arrays]
    expected = np.sqrt(sum((x.astype(np.float64) ** 2).sum() for x in arrays))
    assert k.global_norm(arrays) == pytest.approx(expected, rel=1e-12)
    assert len({k.global_norm(arrays) for _ in range(20)}) == 1
    expected = [x * 0.5 for x in arrays]
    k.scale(arrays, 0.5)
    for x, y in zip(arrays, expected, strict=True):
        np.testing.assert_array_equal(x, y)


# --- a training step ---------------------------------------------------------------------------------


def test_a_step_is_reproducible_bit_by_bit() -> None:
    """It does not depend on which thread computes which part."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 65, (4, 128))
    table = draw(65, 96, dtype=np.float32)
    weights = [draw(288, 96, dtype=np.float32, seed=1) / 10, draw(384, 96, dtype=np.float32, seed=2) / 10]

    def gradients() -> list[bytes]:
        leaves = [tg.Tensor(x.copy(), requires_grad=True) for x in (table, *weights, np.ones(96, np.float32))]
        x = tg.embedding(leaves[0], tg.Tensor(tokens))
        x, h = tg.add_layer_norm(x, x, leaves[3])
        parts = tg.split(tg.linear(h, leaves[1]), 3, axis=-1)
        q, key, v = (part.reshape((4, 128, 6, 16)).permute_dims((0, 2, 1, 3)) for part in parts)
        y = tg.attention(q, key, v, causal=True).permute_dims((0, 2, 1, 3)).reshape((4, 128, 96))
        h = tg.gelu(tg.linear(x + y, leaves[2]), approximate="tanh")
        tg.linear_cross_entropy(h[..., :96], leaves[0], tg.Tensor(tokens)).backward()
        optimizer = tg.optim.AdamW(leaves)
        tg.optim.clip_grad_norm(leaves, 1.0)
        optimizer.step()
        return [array.tobytes() for leaf in leaves for array in (leaf.grad, leaf.data)]

    with tg.use_backend("numpy"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "MIN_PARALLEL_ELEMENTS", 2**10)
        patch.setattr(linear, "MIN_PART_MULTIPLICATIONS", 2**10)
        patch.setattr(linear, "HEAD_START_MULTIPLICATIONS", 2**10)
        patch.setattr(normalization, "MIN_BLOCKED_ELEMENTS", 2**10)
        patch.setattr(blocks, "BLOCK_ELEMENTS", 2**14)
        first = gradients()
        assert all(gradients() == first for _ in range(10))
