"""Cases that random calls rarely reach: ties, kinks, the limits of the range, special values, empty arrays."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad import Tensor

pytestmark = pytest.mark.usefixtures("numpy_backend")


def leaf(*values: Any) -> Any:
    return Tensor(np.array(values, np.float64), requires_grad=True)


def gradient(fn: Callable[..., Any], *operands: Any, dy: Any = None) -> list[Any]:
    """The gradients of fn(*operands) for dy, which is 1 everywhere unless given."""
    tensors = [leaf(*x) if isinstance(x, list) else x for x in operands]
    y = fn(*tensors)
    y.backward(np.ones(y.shape) if dy is None else np.array(dy, np.float64))
    return [x.grad.tolist() for x in tensors if isinstance(x, Tensor) and x.grad is not None]


# --- conventions ----------------------------------------------------------------------------------


def test_ties_share_the_gradient_equally() -> None:
    assert gradient(tg.max, [3, 1, 3, 3], dy=6) == [[2, 0, 2, 2]]
    assert gradient(lambda x: tg.min(x, axis=1), [[1, 1], [2, 1]], dy=[4, 4]) == [[[2, 2], [0, 4]]]
    assert gradient(tg.maximum, [1, 2, 3], [2, 2, 2], dy=[8, 8, 8]) == [[0, 4, 8], [8, 4, 0]]
    assert gradient(tg.minimum, [1, 2, 3], [2, 2, 2], dy=[8, 8, 8]) == [[8, 4, 0], [0, 4, 8]]
    assert gradient(lambda x: tg.maximum(x, 0), [-1, 0, 1]) == [[0, 0.5, 1]]


def test_gradients_at_kinks() -> None:
    assert gradient(tg.relu, [-1, 0, 1]) == [[0, 0, 1]]
    assert gradient(tg.abs, [-2, 0, 2]) == [[-1, 0, 1]]
    assert gradient(tg.sign, [-2, 0, 2]) == [[0, 0, 0]]
    assert gradient(lambda x: tg.clip(x, min=-1, max=1), [-2, -1, 0, 1, 2]) == [[0, 1, 1, 1, 0]]
    assert gradient(tg.clip, [-2, 5]) == [[1, 1]]
    assert gradient(tg.std, [2, 2, 2]) == [[0, 0, 0]]


def test_a_remainder_has_the_gradient_of_a_minus_b_times_a_quotient() -> None:
    assert gradient(lambda x, y: x * y + x % y, [5.25, -7], [2, 2]) == [[3, 3], [3.25, -3]]  # y + 1, x - floor(x / y)
    assert gradient(lambda x: x % 2, [5.25]) == [[1]] and gradient(lambda y: 9 % y, [-2]) == [[5]]
    x = leaf(7)
    (x % Tensor(np.array([2], np.int8))).backward()
    assert x.grad.tolist() == [1]


@pytest.mark.parametrize("name", ["sign", "floor", "ceil", "round"])
def test_a_step_function_has_the_gradient_0(name: str) -> None:
    assert gradient(getattr(tg, name), [-1.25, 0.75]) == [[0, 0]]
    assert not getattr(tg, name)(Tensor(np.array([1, 2]))).requires_grad


def test_a_quotient_rounded_down_has_the_gradient_0() -> None:
    assert gradient(lambda x, y: x // y, [5.25, 1], [2]) == [[0, 0], [0]]
    assert gradient(lambda x: x // 2, [3]) == [[0]] and gradient(lambda y: 9 // y, [2]) == [[0]]


def test_powers_at_zero() -> None:
    assert gradient(lambda x: x**0, [0, 2]) == [[0, 0]]
    assert gradient(lambda x: x**0.0, [0, 2]) == [[0, 0]]
    assert gradient(lambda x: x**1, [0, -2]) == [[1, 1]]
    assert gradient(lambda x: x**3, [0, -2]) == [[0, 12]]
    assert gradient(tg.pow, [0, 0, 0], [0, 1, 2]) == [[0, 1, 0], [0, 0, 0]]  # 0^b is constant for b > 0
    assert gradient(lambda b: 0.0**b, [1, 2]) == [[0, 0]]
    assert gradient(lambda b: 2.0**b, [0, 1]) == [[math.log(2), 2 * math.log(2)]]
    assert gradient(lambda b: 2**b, [0]) == [[math.log(2)]]


def test_products_with_zeros() -> None:
    assert gradient(tg.prod, [2, 0, 3]) == [[0, 6, 0]]
    assert gradient(tg.prod, [0, 0, 3]) == [[0, 0, 0]]
    assert gradient(lambda x: tg.prod(x, axis=(2, 0)), [[[2.0, 3.0]], [[0.0, 5.0]]]) == [[[[0, 0]], [[30, 0]]]]


def test_a_loss_whose_targets_are_all_ignored_is_zero() -> None:
    logits = leaf([1.0, 2.0], [3.0, 1.0])
    for reduction, expected in (("mean", 0), ("sum", 0), ("none", [0, 0])):
        logits.grad = None
        loss = tg.cross_entropy(logits, np.array([-1, -1]), ignore_index=-1, reduction=reduction)
        assert loss.tolist() == expected
        loss.backward(np.ones(loss.shape))
        assert not logits.grad.any()
    assert tg.cross_entropy(tg.zeros((0, 3)), np.zeros(0, int)).item() == 0


def test_a_class_can_be_ignored() -> None:
    logits = leaf([1.0, 2.0], [3.0, 1.0])
    loss = tg.cross_entropy(logits, np.array([0, 1]), ignore_index=0)
    assert loss.item() == pytest.approx(math.log(1 + math.e**2))
    loss.backward()
    assert logits.grad[0].tolist() == [0, 0]


def test_the_result_of_a_query_without_keys_is_zero() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (Tensor(rng.standard_normal((1, 2, 3, 4)), requires_grad=True) for _ in range(3))
    mask = np.array([[True, False, True], [False, False, False], [True, True, True]])
    y = tg.attention(q, k, v, mask=mask)
    assert not y.data[:, :, 1].any()
    assert y.data[:, :, 0].any()
    y.backward(np.ones(y.shape))
    assert not q.grad[:, :, 1].any()
    for x in (q, k, v):
        assert np.isfinite(x.grad).all()
    more_queries = tg.attention(q, k[:, :, :2], v[:, :, :2], causal=True)  # the first query is before every key
    assert not more_queries.data[:, :, 0].any()
    np.testing.assert_allclose(more_queries.data[:, :, 1], v.data[:, :, 0], rtol=1e-12)


def test_the_last_query_attends_to_every_key() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 2, 5, 4)) for _ in range(3))
    whole = tg.attention(Tensor(q), k, v, causal=True).numpy()
    for n in range(1, 6):  # only the last n queries, as with a KV cache
        np.testing.assert_allclose(tg.attention(Tensor(q[:, :, -n:]), k, v, causal=True).numpy(), whole[:, :, -n:])


def test_masks_of_any_type_and_layout() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (Tensor(rng.standard_normal((2, 2, 3, 4))) for _ in range(3))
    mask = rng.random((3, 3)) < 0.6
    expected = tg.attention(q, k, v, mask=mask).numpy()
    for same in (Tensor(mask), mask.tolist(), np.asfortranarray(mask), mask[None], np.broadcast_to(mask, (2, 1, 3, 3))):
        np.testing.assert_array_equal(tg.attention(q, k, v, mask=same).numpy(), expected)


def test_reductions_over_no_axes() -> None:
    x = np.array([[1.5, -2.0]])
    for fn in (tg.sum, tg.max, tg.mean, tg.prod, tg.logsumexp):
        np.testing.assert_allclose(fn(Tensor(x), axis=()).numpy(), x, rtol=1e-12)


# --- the limits of the range ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_small_results_are_as_precise_as_large_ones(dtype: Any) -> None:
    x = np.array([-80, -40, -20, -5, 0, 5, 40], dtype)
    exact = 1 / (1 + np.exp(-x.astype(np.longdouble)))
    tolerance = 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(tg.sigmoid(Tensor(x)).numpy(), exact, rtol=tolerance)
    np.testing.assert_allclose(tg.silu(Tensor(x)).numpy(), x * exact, rtol=tolerance)
    np.testing.assert_allclose(tg.log(tg.sigmoid(Tensor(x[:4]))).numpy(), x[:4], rtol=0.02)


def test_nothing_overflows() -> None:
    """Not even in intermediate results: warnings are errors in these tests."""
    big = np.array([-1e4, -750.0, 0.0, 750.0, 1e4])
    x = Tensor(big, requires_grad=True)
    for fn in (tg.sigmoid, tg.silu, tg.tanh, tg.gelu, lambda x: tg.gelu(x, approximate="tanh"), tg.erf, tg.softmax,
               tg.log_softmax, tg.logsumexp, tg.relu):  # fmt: skip
        x.grad = None
        y = fn(x)
        y.backward(np.ones(y.shape))
        assert np.isfinite(y.data).all()
        assert np.isfinite(x.grad).all()
    assert tg.sigmoid(x).tolist() == [0, 0, 0.5, 1, 1]
    assert tg.logsumexp(x).item() == 1e4
    assert tg.cross_entropy(x, np.array(0)).item() == 2e4


def test_minus_infinity_is_the_logarithm_of_zero() -> None:
    x = Tensor(np.array([[-np.inf, 0.0, 0.0], [-np.inf] * 3]), requires_grad=True)
    y = tg.logsumexp(x, axis=1)
    assert y.tolist() == [math.log(2), -math.inf]
    y.backward(np.ones(2))
    assert x.grad.tolist() == [[0, 0.5, 0.5], [0, 0, 0]]
    assert tg.softmax(x[0]).tolist() == [0, 0.5, 0.5]
    assert tg.cross_entropy(x[0], np.array(1)).item() == pytest.approx(math.log(2))


def test_the_gradient_of_a_quotient_does_not_square_the_divisor() -> None:
    a, b = (Tensor(np.array([value], np.float32), requires_grad=True) for value in (1e-30, 1e-25))
    (a / b).backward(np.ones(1))
    np.testing.assert_allclose(b.grad, [-1e20], rtol=1e-5)
    a, b = (Tensor(np.array([value], np.float16), requires_grad=True) for value in (60000, 300))
    (a / b).backward(np.ones(1))
    np.testing.assert_allclose(b.grad.astype(float), [-2 / 3], rtol=1e-2)


@pytest.mark.parametrize(
    "name",
    ["exp", "sin", "tanh", "abs", "sign", "square", "negative", "isnan", "isinf", "isfinite", "floor", "ceil", "round"],
)
def test_special_values_equal_numpys(name: str) -> None:
    x = np.array([np.nan, -0.0, 0.0, 1e-320, -2.5, 0.5, 1.5])
    x = x if name == "sin" else np.append(x, [np.inf, -np.inf])
    got, expected = getattr(tg, name)(Tensor(x)).numpy(), getattr(np, name)(x)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(expected)) if got.dtype != bool else None


def test_nan_in_gives_nan_out() -> None:
    x = Tensor(np.array([np.nan, 1.0]))
    for fn in (tg.sigmoid, tg.silu, tg.relu, tg.gelu, tg.erf, lambda x: tg.maximum(x, 0.0), lambda x: x.clip(min=0)):
        assert np.isnan(fn(x).numpy()).tolist() == [True, False]
    for fn in (tg.sum, tg.max, tg.min, tg.mean, tg.logsumexp, tg.var):
        assert math.isnan(fn(x).item())
    weight = tg.zeros((1, 3))
    weight.data[0, 0] = np.nan
    assert math.isnan(tg.cross_entropy(weight, np.array([1])).item())


# --- the ends of the range ------------------------------------------------------------------------

on_cpus = pytest.mark.parametrize("backend", ["numpy", "numba"])
no_warnings = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")


def both(backend: str, torch: Any, ours: Any, theirs: Any, *arrays: Any) -> list[tuple[Any, Any]]:
    """The results of two functions, ours on a backend and PyTorch's, and their gradients."""
    with tg.use_backend(backend):
        x, t = [Tensor(a, True) for a in arrays], [torch.tensor(a, requires_grad=True) for a in arrays]
        y, z = ours(*x), theirs(*t)
        y.backward(np.ones_like(y.data))
        z.backward(torch.ones_like(z))
    return [(y.numpy(), z.detach().numpy()), *((a.grad, b.grad.numpy()) for a, b in zip(x, t, strict=True))]


@no_warnings
@on_cpus
@pytest.mark.parametrize("values", [[np.inf, 1.0], [np.nan, 1.0], [np.inf, np.nan], [-np.inf, 1.0], [np.inf, -np.inf]])
@pytest.mark.parametrize("name", ["logsumexp", "softmax", "log_softmax"])
def test_infinity_and_nan_reach_the_gradient(name: str, values: list[float], backend: str, torch: Any) -> None:
    x = np.array([values, [0.0, 1.0]], np.float32)
    of = {"logsumexp": {"axis": -1}}.get(name, {})
    for ours, theirs in both(
        backend, torch, lambda x: getattr(tg, name)(x, **of), lambda t: getattr(torch, name)(t, -1), x
    ):  # fmt: skip
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


@no_warnings
@on_cpus
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_logit_that_is_not_finite(bad: float, smoothing: float, backend: str, torch: Any) -> None:
    logits, targets = np.array([[bad, 1.0, 2.0]] * 2, np.float32), np.array([0, 1])
    for ours, theirs in both(
        backend, torch,
        lambda x: tg.cross_entropy(x, targets, label_smoothing=smoothing, reduction="none"),
        lambda t: torch.nn.functional.cross_entropy(
            t, torch.from_numpy(targets), label_smoothing=smoothing, reduction="none"
        ),
        logits,
    ):  # fmt: skip
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


@no_warnings
@on_cpus
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_an_infinite_score_makes_its_row_of_attention_nan(bad: float, causal: bool, backend: str) -> None:
    q, key, v = (np.random.default_rng(i).standard_normal((1, 2, 6, 8)).astype(np.float32) for i in range(3))
    q[0, 0, 2, 1], key[0, 0, :, 1] = bad, 1
    with tg.use_backend(backend):
        operands = [Tensor(x, True) for x in (q, key, v)]
        y = tg.attention(*operands, causal=causal, mask=None if causal else np.ones((6, 6), bool))
        y.backward(np.ones_like(y.data))
    assert np.isnan(y.numpy()).any(axis=-1).nonzero()[2].tolist() == [2]
    assert np.isnan(operands[0].grad).all(axis=-1).nonzero()[2].tolist() == [2]
    assert all(np.isfinite(x.grad[0, 1]).all() and np.isnan(x.grad[0, 0]).any() for x in operands)
    assert np.isnan(operands[2].grad[0, 0, : 3 if causal else 6]).all()  # of every key that the row sees


@no_warnings
@on_cpus
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_powers_of_bases_that_are_not_positive_have_pytorchs_gradients(backend: str, torch: Any) -> None:
    base = np.array([-1.5, -2.0, 0.0, 0.0, -0.0, 0.0, 2.0, np.nan, np.inf], np.float32)
    exponent = np.array([0.5, 3.0, 2.0, 0.0, 1.0, -1.0, -2.0, 1.0, 0.5], np.float32)
    for ours, theirs in both(backend, torch, tg.pow, torch.pow, base, exponent):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@on_cpus
def test_the_gradient_of_a_square_does_not_overflow_before_its_end(backend: str) -> None:
    x = Tensor(np.array([1e-30], np.float32), True)
    with tg.use_backend(backend):
        tg.square(x).backward(np.array([3e38], np.float32))
    np.testing.assert_allclose(x.grad, [6e8], rtol=1e-6)


@no_warnings
@on_cpus
@pytest.mark.parametrize("target", [0.0, 1.0, 0.25])
def test_binary_cross_entropy_of_a_logit_that_is_not_finite(target: float, backend: str, torch: Any) -> None:
    logits, targets = np.array([np.inf, -np.inf, np.nan, 3e38, 2.0], np.float32), np.full(5, target, np.float32)
    theirs = torch.nn.functional.binary_cross_entropy_with_logits
    for got, expected in both(
        backend, torch, lambda x: tg.binary_cross_entropy_with_logits(x, targets, reduction="none"),
        lambda t: theirs(t, torch.from_numpy(targets), reduction="none"), logits,
    ):  # fmt: skip
        np.testing.assert_allclose(got, expected, rtol=1e-6)


@on_cpus
def test_an_ignored_target_counts_nothing_whatever_its_probability(backend: str) -> None:
    log_p = np.array([[-np.inf, 0.0], [-0.5, -1.0]], np.float32)
    with tg.use_backend(backend):
        x = Tensor(log_p, True)
        tg.nll_loss(x, np.array([-100, 1])).backward()
    assert x.grad.tolist() == [[0, 0], [0, -1]]
    assert tg.nll_loss(Tensor(log_p), np.array([-100, 1]), reduction="none").tolist() == [0, 1]


@on_cpus
@pytest.mark.parametrize("n_query", [1, 4, 5])
def test_attention_without_a_finite_score_gives_zeros(n_query: int, backend: str) -> None:
    """Where the score of every key overflows to -inf, as where every key is masked."""
    q, key = (np.full((1, 1, n, 8), size, np.float32) for n, size in ((n_query, -1e30), (20, 1e30)))
    with tg.use_backend(backend), np.errstate(over="ignore"):
        operands = [Tensor(x, True) for x in (q, key, np.ones_like(key))]
        y = tg.attention(*operands)
        y.backward(np.ones_like(y.data))
    assert not y.numpy().any() and not any(x.grad.any() for x in operands)


@on_cpus
@pytest.mark.parametrize("shift", [1e5, -1e5, 3e37])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_large_logits_lose_no_digits(shift: float, smoothing: float, backend: str) -> None:
    spread = np.array([[0.0, 0.5, 2.0, -1.0], [1.0, 0.25, 0.0, 3.0]]) * np.spacing(np.float32(abs(shift))) * 8
    logits, targets = (spread + shift).astype(np.float32), np.array([1, 3])
    exact = logits.astype(np.float64)
    e = np.exp(exact - exact.max(1, keepdims=True))
    p, target = e / e.sum(1, keepdims=True), (1 - smoothing) * np.eye(4)[targets] + smoothing / 4
    lost = (np.log(e.sum(1)) + exact.max(1))[:, None] - exact
    with tg.use_backend(backend):
        for loss in (tg.cross_entropy, lambda x, *a, **b: tg.linear_cross_entropy(x, np.eye(4, dtype="f4"), *a, **b)):
            x = Tensor(logits, True)
            y = loss(x, targets, label_smoothing=smoothing, reduction="none")
            y.sum().backward()
            np.testing.assert_allclose(y.numpy(), (target * lost).sum(1), rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(x.grad, p - target, atol=3e-7)
        for fn in (tg.log_softmax, lambda x: x - tg.logsumexp(x, axis=1, keepdims=True)):
            x = Tensor(logits, True)
            fn(x)[np.arange(2), targets].sum().backward()
            np.testing.assert_allclose(x.grad, np.eye(4)[targets] - p, atol=3e-7)


@on_cpus
@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        *itertools.product([2e20, 1e-24, 1e-30, 1e-40, 0.0], [np.float32, np.float64]),
        (1e-160, np.float64), (1e200, np.float64),
    ],
)  # fmt: skip
def test_the_norm_of_gradients_whose_squares_are_out_of_range(size: float, dtype: Any, backend: str) -> None:
    grads = [np.array([3, 0], dtype) * dtype(size), np.full((2, 2), 2, dtype) * dtype(size)]
    params = [Tensor(np.ones(g.shape, dtype), True) for g in grads]
    for p, g in zip(params, grads, strict=True):
        p.grad = g.copy()
    exact = math.hypot(*(float(x) for g in grads for x in g.reshape(-1)))
    with tg.use_backend(backend):
        assert tg.optim.clip_grad_norm(params, 1.0) == pytest.approx(exact, rel=1e-5)
        assert tg.optim.clip_grad_norm(params, math.inf) == pytest.approx(min(exact, 1), rel=1e-5)


@on_cpus
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint32", "int64", "bool"])
@pytest.mark.parametrize(
    "name",
    ["softmax", "log_softmax", "logsumexp", "sigmoid", "silu", "softplus", "gelu", "erf", "exp", "log", "sqrt",
     "expm1", "log1p", "sin", "cos", "tanh", "mean", "var", "std", "layer_norm", "rms_norm", "cross_entropy"],
)  # fmt: skip
def test_integers_are_floating_before_they_are_computed_with(name: str, dtype: str, backend: str) -> None:
    limits = {"bool": [0, 1], "exp": [0, 80], "expm1": [0, 80]}.get(dtype if dtype == "bool" else name, [2, 100])
    limits = [1, 1] if (name, dtype) == ("log", "bool") else limits
    low = [-128] if dtype in ("int8", "int16") and name not in ("log", "log1p", "sqrt") else []
    x = np.array([[*limits, *low]]).astype(dtype)
    more = (np.array([0]),) if name == "cross_entropy" else ()
    with tg.use_backend(backend):
        y, expected = (getattr(tg, name)(Tensor(a), *more) for a in (x, x.astype(np.float64)))
    assert y.dtype in (np.float32, np.float64)
    np.testing.assert_allclose(y.numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_the_gradient_of_a_mean_over_more_elements_than_float16_counts() -> None:
    x = Tensor(np.ones(70_000, np.float16), True)
    x.mean().backward()
    np.testing.assert_allclose(x.grad, np.full(70_000, 1 / 70_000, np.float16))


@on_cpus
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_gradient_of_log_softmax_in_half_precision_is_rounded_once(dtype: str, backend: str) -> None:
    pytest.importorskip("ml_dtypes")
    x = (np.random.default_rng(0).standard_normal((4, 50)) * 3).astype(dtype)
    exact = np.exp(x.astype(float) - x.astype(float).max(1, keepdims=True))
    exact /= exact.sum(1, keepdims=True)
    with tg.use_backend(backend):
        leaf = Tensor(x, True)
        tg.log_softmax(leaf)[:, 0].sum().backward()
    error = np.abs(leaf.grad.astype(float) - (np.eye(50)[0] - exact))
    assert (error <= {"float16": 2**-10, "bfloat16": 2**-8}[dtype] * np.abs(np.eye(50)[0] - exact) + 1e-7).all()


# --- empty arrays ---------------------------------------------------------------------------------


def test_empty_operands() -> None:
    def zeros(*shape: int) -> Any:
        return Tensor(np.zeros(shape), requires_grad=True)

    for fn, operands, shape in (
        (tg.matmul, [zeros(2, 3, 4), zeros(4, 0)], (2, 3, 0)),
        (tg.matmul, [zeros(2, 0, 4), zeros(4, 3)], (2, 0, 3)),
        (tg.matmul, [zeros(2, 3, 0), zeros(0, 5)], (2, 3, 5)),
        (tg.matmul, [zeros(0), zeros(0)], ()),
        (tg.linear, [zeros(2, 0), zeros(3, 0), zeros(3)], (2, 3)),
        (tg.linear, [zeros(0, 4), zeros(3, 4)], (0, 3)),
        (tg.mlp, [zeros(2, 0), zeros(0, 0), zeros(0), zeros(3, 0), zeros(3)], (2, 3)),
        (tg.embedding, [zeros(3, 0), np.array([0, 2])], (2, 0)),
        (tg.embedding, [zeros(3, 2), np.zeros((2, 0), int)], (2, 0, 2)),
        (tg.layer_norm, [zeros(0, 3), zeros(3), zeros(3)], (0, 3)),
        (tg.attention, [zeros(0, 2, 3, 4), zeros(0, 2, 3, 4), zeros(0, 2, 3, 4)], (0, 2, 3, 4)),
        (tg.attention, [zeros(1, 2, 0, 4), zeros(1, 1, 3, 4), zeros(1, 1, 3, 4)], (1, 2, 0, 4)),
        (lambda x: tg.softmax(x), [zeros(0, 3)], (0, 3)),
        (tg.sum, [zeros(0, 3)], ()),
        (tg.prod, [zeros(0)], ()),
        (lambda *x: tg.concat(x), [zeros(0, 2), zeros(3, 2)], (3, 2)),
        (lambda x: tg.dropout(x), [zeros(0)], (0,)),
    ):
        y = fn(*operands)
        assert y.shape == shape
        y.backward(np.ones(shape))
        for x in operands:
            if isinstance(x, Tensor):
                assert x.grad is not None
                assert x.grad.shape == x.shape
    assert tg.prod(zeros(0)).item() == 1


def test_concat_flattens_without_an_axis() -> None:
    x = leaf([1, 2], [3, 4])
    y = tg.concat([x, np.array([[5.0]])], axis=None)
    assert y.tolist() == [1, 2, 3, 4, 5]
    y.backward(np.arange(5.0))
    assert x.grad.tolist() == [[0, 1], [2, 3]]


def test_padding_a_scalar() -> None:
    x = Tensor(3.0, requires_grad=True)
    tg.pad(x, pad_width=2).backward()
    assert x.grad == 1


def test_repeats_and_shifts_of_any_integer_type() -> None:
    x = leaf(1, 2, 3)
    np.testing.assert_array_equal(tg.repeat(x, np.int64(2)).numpy(), [1, 1, 2, 2, 3, 3])
    np.testing.assert_array_equal(tg.repeat(x, Tensor([0, 2, 1])).numpy(), [2, 2, 3])
    np.testing.assert_array_equal(tg.roll(x, np.int64(1)).numpy(), [3, 1, 2])


def test_bitwise_invert() -> None:
    assert tg.bitwise_invert(Tensor([0, 5])).tolist() == [-1, -6]
    assert tg.bitwise_invert(Tensor([True, False])).tolist() == [False, True]


@pytest.mark.parametrize("integer", [np.int64, np.int32])
def test_numpys_integers_are_integers(integer: Any) -> None:
    """As options of ops, one alone and in sequences."""
    x, w, one, two = Tensor(np.arange(24.0).reshape(4, 6)), tg.ones((6, 3)), integer(1), integer(2)
    pairs = [
        (tg.split(x, sections=two, axis=one), tg.split(x, sections=2, axis=1)),
        (tg.split(x, sections=[one, integer(3)]), tg.split(x, sections=[1, 3])),
        ([tg.tile(x, two), tg.tile(x, (two, one))], [tg.tile(x, 2), tg.tile(x, (2, 1))]),
        ([tg.pad(x, one), tg.pad(x, ((one, two), (two, one)))], [tg.pad(x, 1), tg.pad(x, ((1, 2), (2, 1)))]),
        ([tg.tensordot(x, w, axes=one)], [tg.tensordot(x, w, axes=1)]),
        ([tg.tensordot(x, w, axes=(one, integer(0)))], [tg.tensordot(x, w, axes=(1, 0))]),
        ([x.sum(axis=one), x.sum(axis=(integer(0), one))], [x.sum(axis=1), x.sum(axis=(0, 1))]),
        ([x.reshape(integer(6), integer(4)), tg.roll(x, two)], [x.reshape(6, 4), tg.roll(x, 2)]),
    ]
    for got, expected in pairs:
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy())
    tg.set_num_threads(one)
    assert tg.grad(lambda a, b: (a * b).sum(), argnums=one)(x, x).shape == (4, 6)
