"""Tensor: construction, attributes, conversion, operators and methods, reading and writing."""

import copy
import importlib
import operator
import pickle
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad import Tensor

pytestmark = pytest.mark.usefixtures("numpy_backend")

X = np.array([[1.5, -2.0, 0.5], [4.0, 0.25, -3.0]])


def leaf(x: Any = X) -> Any:
    return Tensor(np.array(x, np.float64), requires_grad=True)


# --- construction ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "dtype"),
    [(1.5, "float32"), (2, "int64"), (True, "bool"), ([1.5, 2], "float32"), ([[1], [2]], "int64"), ([], "float32"),
     ((1, 2.0), "float32"), (2**63, "uint64"), (np.float64(1), "float64"), (np.float16(1), "float16"),
     ([np.float32(1)], "float32"), (np.zeros(2), "float64"), (np.zeros(2, "uint8"), "uint8"), (np.bool_(True), "bool")],
)  # fmt: skip
def test_data_and_its_dtype(data: Any, dtype: str) -> None:
    x = Tensor(data)
    assert x.dtype == dtype
    assert isinstance(x.data, np.ndarray)
    np.testing.assert_array_equal(x.numpy(), np.asarray(data))
    assert Tensor(data, dtype="float64").dtype == np.float64


def test_arrays_and_tensors_are_not_copied() -> None:
    array = np.zeros(3)
    x = Tensor(array)
    assert x.data is array
    assert Tensor(x).data is array
    assert x.numpy() is array
    assert x.detach().data is array
    assert Tensor(x, requires_grad=True).requires_grad
    assert not x.requires_grad


@pytest.mark.parametrize(
    "data", ["abc", None, [None], {"a": 1}, ["1", "2"], object(), 1j, [1j], np.array(["a"]), np.array([1j]),
             np.complex64(1), np.array([None]), np.array(["2026-01-01"], "datetime64[D]"), 10**30,
             Fraction(1, 3), [Fraction(1, 3)], Decimal("0.1"), np.zeros(2, "i4,f4")],
)  # fmt: skip
def test_data_that_is_not_real_raises(data: Any) -> None:
    with pytest.raises(TypeError, match=r"^Tensor: .* is not supported: (give a real number|only bool, integers and)"):
        Tensor(data)
    for dtype in (complex, "S3", object):
        with pytest.raises(TypeError, match="^Tensor: dtype .* is not supported"):
            Tensor([1, 2], dtype=dtype)


# --- operands that are not arrays of ours ---------------------------------------------------------


OPERATIONS = [
    lambda x, y: x * y, lambda x, y: y - x, lambda x, y: x @ y, lambda x, y: tg.where(x > 0, x, y),
    lambda x, y: tg.concat([x, y]), lambda x, y: x * Tensor(y), lambda x, y: x == y,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("other", [np.matrix, np.ma.array, lambda y: y.view(np.recarray), lambda y: y.astype(">f8")])
def test_arrays_of_other_kinds_are_used_as_plain_ones(operation: Any, other: Any) -> None:
    x, plain = leaf(X[:, :2]), leaf(X[:, :2])
    y, expected = operation(x, other(X[:, 1:])), operation(plain, X[:, 1:])
    assert type(y.data) is np.ndarray and y.dtype.isnative and repr(y) == repr(expected)
    if y.requires_grad:
        y.sum().backward()
        expected.sum().backward()
        np.testing.assert_array_equal(x.grad, plain.grad)


@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_the_other_byte_order(name: str) -> None:
    with tg.use_backend(name):
        logits, targets = Tensor(X.astype(">f4"), requires_grad=True), np.array([2, 0], ">i8")
        loss, expected = tg.cross_entropy(logits, targets), tg.cross_entropy(Tensor(X.astype("f4")), np.array([2, 0]))
        loss.backward()
        assert loss.item() == expected.item() and logits.grad.dtype.isnative
        assert tg.embedding(logits, np.array([1], ">u2")).tolist() == [X[1].tolist()]
    assert Tensor([1.5], dtype=">f4").dtype.isnative and Tensor([1.5]).astype(">f8").dtype.isnative
    x = tg.zeros(2)
    x[...] = np.array([1, 2], ">f4")
    assert x.tolist() == [1, 2]


@pytest.mark.parametrize("operand", [1j, np.array([1j, 2]), np.complex64(1), Fraction(1, 3), Decimal("0.1"), "a", {}])
def test_operands_that_are_not_real_numbers_raise(operand: Any) -> None:
    named = {"multiply": operator.mul, "subtract": lambda x, y: y - x, "pow": operator.pow, "equal": operator.eq}
    for x in (leaf(), Tensor(X)):
        for name, operation in named.items():
            with pytest.raises(TypeError, match=f"^{name}: .* is not supported: "):
                operation(x, operand)
    with pytest.raises(TypeError, match="^setitem: .* is not supported: "):
        Tensor(X)[0] = operand
    with pytest.raises(TypeError, match="^astype: dtype complex128 is not supported"):
        leaf().astype(complex)


def test_masked_elements_raise() -> None:
    masked = np.ma.array(X, mask=X < 0)
    for use in (Tensor, lambda y: leaf() * y, lambda y: tg.concat([leaf(), y])):
        with pytest.raises(TypeError, match=r": a masked element has no value: give the array's filled\(value\)$"):
            use(masked)
    assert (leaf() * masked.filled(0)).tolist() == (X * (X > 0) * X).tolist()


def test_ragged_lists_raise() -> None:
    with pytest.raises(ValueError, match="inhomogeneous"):
        Tensor([[1, 2], [3]])


def test_arrays_of_other_libraries_raise(torch: Any) -> None:
    uses = {"Tensor": Tensor, "multiply": lambda y: leaf() * y, "concat": lambda y: tg.concat([leaf(), y])}
    for name, use in uses.items():
        with pytest.raises(TypeError, match=f"^{name}: .* of <class 'torch.Tensor'> is not supported: give a real"):
            use(torch.zeros(2, 3))


def test_a_list_of_tensors() -> None:
    assert Tensor([Tensor(1.0), Tensor(2.0)]).tolist() == [1, 2]


# --- attributes -----------------------------------------------------------------------------------


def test_properties() -> None:
    x = Tensor(np.zeros((2, 3), np.float32))
    assert (x.shape, x.ndim, x.size, x.dtype, len(x)) == ((2, 3), 2, 6, np.float32, 2)
    assert (x.requires_grad, x.grad) == (False, None)


def test_requires_grad() -> None:
    x = Tensor(X)
    x.requires_grad = True
    (x * 2).sum().backward()
    np.testing.assert_array_equal(x.grad, np.full(X.shape, 2))
    x.requires_grad = True  # a second time keeps the gradient
    assert x.grad is not None
    x.requires_grad = False
    assert x.grad is None
    y = leaf() * 2
    for value in (True, False):
        with pytest.raises(RuntimeError, match=r"requires_grad: cannot be set on the result of multiply; use detach"):
            y.requires_grad = value
    assert not y.detach().requires_grad


def test_setting_grad() -> None:
    x = leaf(X.astype(np.float32))
    x = Tensor(X.astype(np.float32), requires_grad=True)
    x.grad = X  # float64
    assert x.grad.dtype == np.float32
    x.sum().backward()
    np.testing.assert_array_equal(x.grad, X.astype(np.float32) + 1)
    x.grad = Tensor(X)
    assert isinstance(x.grad, np.ndarray)
    with pytest.raises(ValueError, match=r"grad: shape \(3,\) for a tensor of shape \(2, 3\)"):
        x.grad = np.zeros(3)
    with pytest.raises(RuntimeError, match="only tensors created with requires_grad=True have a gradient"):
        (x * 2).grad = X
    frozen = Tensor(X)
    frozen.grad = None  # as zero_grad does
    with pytest.raises(RuntimeError, match="only tensors created with requires_grad=True"):
        frozen.grad = X


def test_repr() -> None:
    assert repr(Tensor([1.0, 2.5])) == "Tensor([1. , 2.5], dtype=float32)"
    assert repr(Tensor([1.0], requires_grad=True)) == "Tensor([1.], dtype=float32, requires_grad=True)"
    assert repr(Tensor([1.0], requires_grad=True) + 1) == "Tensor([2.], dtype=float32, made by add)"
    assert repr(Tensor(np.arange(4).reshape(2, 2))) == "Tensor([[0, 1],\n        [2, 3]], dtype=int64)"
    assert len(repr(tg.zeros((100, 100)))) < 500


# --- conversion -----------------------------------------------------------------------------------


def test_one_element_as_a_number() -> None:
    assert type(Tensor(2.0).item()) is float
    assert type(Tensor([[3]]).item()) is int
    assert type(Tensor(True).item()) is bool
    assert (float(Tensor([2.5])), int(Tensor(3.7)), bool(Tensor([0.0])), [10, 20][Tensor(1)]) == (2.5, 3, False, 20)
    for read in (Tensor.item, float, int):
        with pytest.raises(ValueError, match=r"item: shape \(2,\) has 2 elements, not one"):
            read(Tensor([1, 2]))
    with pytest.raises(ValueError, match=r"truth value of a tensor of shape \(2,\) is ambiguous: use all\(\) or any"):
        bool(Tensor([1, 2]))
    with pytest.raises(TypeError, match="a tensor of dtype float32 cannot be an index"):
        [1, 2][Tensor(1.0)]


def test_lists_and_numpy() -> None:
    assert leaf().tolist() == X.tolist()
    x = Tensor(X)
    assert x.tolist() == X.tolist()
    np.testing.assert_array_equal(np.asarray(x), X)
    assert np.asarray(x, np.float32).dtype == np.float32
    assert np.asarray(x) is not None
    assert np.array(x) is not x.data
    np.testing.assert_allclose(np.sum(np.asarray(x), axis=0), X.sum(axis=0))


def test_iteration() -> None:
    x = leaf()
    rows = list(x)
    assert [row.tolist() for row in rows] == X.tolist()
    (rows[0] * rows[1]).sum().backward()
    np.testing.assert_array_equal(x.grad, X[::-1])
    for use in (len, iter, list):
        with pytest.raises(TypeError, match=r"len\(\) of a tensor with no dimensions"):
            use(Tensor(1.0))


def test_copies() -> None:
    x = leaf()
    x.sum().backward()
    y = copy.deepcopy(x)
    assert y.requires_grad
    y.data[...] = 0
    y.grad[...] = 0
    np.testing.assert_array_equal(x.data, X)
    np.testing.assert_array_equal(x.grad, np.ones_like(X))
    for clone in (copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        y = clone(x)
        assert y.requires_grad and y.tolist() == X.tolist() and y.grad.tolist() == np.ones_like(X).tolist()


def test_the_result_of_an_op_is_not_copied() -> None:
    x = leaf()
    y = 2 * x
    for clone in (copy.copy, copy.deepcopy, pickle.dumps, lambda x: copy.deepcopy([{"last": x}])):
        with pytest.raises(RuntimeError, match=r"^copy: the gradient of a copied result of multiply would be lost; "):
            clone(y)
        clone(y.detach())
    with tg.no_grad():
        assert copy.deepcopy(2 * x).tolist() == y.tolist()


# --- what would cut the tape ----------------------------------------------------------------------


def test_asarray_keeps_the_gradient_of_a_tensor() -> None:
    x = leaf()
    (x * 2 + tg.asarray(x) * 3 + tg.asarray(x, np.float32)).sum().backward()
    np.testing.assert_array_equal(x.grad, np.full_like(X, 6))
    assert not tg.asarray(Tensor(X)).requires_grad and tg.asarray(Tensor(X), requires_grad=True).requires_grad


def test_an_array_of_a_tensor_that_requires_a_gradient_raises() -> None:
    x = leaf()
    uses = (
        Tensor, np.asarray, np.array, lambda x: Tensor([x.sum(), x.sum()]), lambda x: tg.where(x > 0, x, [x.sum()] * 3),
        lambda x: x * [x[0], x[1]], lambda x: tg.full((2,), x.sum()), np.median, lambda x: np.split(x, 2),
        lambda x: tg.zeros(1).__setitem__(..., [x.sum()]),
    )  # fmt: skip
    for use in uses:
        with pytest.raises(RuntimeError, match="^Tensor: an array of a tensor that requires a gradient would"):
            use(x)
        use(x.detach())
    with tg.no_grad():
        assert np.asarray(x).tolist() == X.tolist()


@pytest.mark.parametrize("option", [lambda x, s: tg.pad(
    x, 1, constant=s), lambda x, s: tg.layer_norm(x, eps=s), lambda x, s: tg.dropout(x, p=s), lambda x, s: tg.attention(
    x.reshape(1, 1, 2, 3), x.reshape(1, 1, 2, 3), x.reshape(1, 1, 2, 3), scale=s)])  # fmt: skip
def test_an_option_that_requires_a_gradient_raises(option: Any) -> None:
    x, s = leaf(), Tensor(0.5, requires_grad=True)
    with pytest.raises(TypeError, match=r"^\w+: \w+ has no gradient, but requires one: give its detach\(\)$"):
        option(x, s)
    with tg.no_grad():
        option(x, s.item())


def test_numpys_functions_of_tensors_are_ours() -> None:
    x = leaf()
    parts = [
        np.concatenate([x, x]).sum(), np.stack([x, X]).sum(), np.sum(x, axis=0).sum(), np.mean(x, 1).sum(),
        np.where(X > 0, x, 0.0).sum(), np.transpose(x)[0].sum(), np.cumsum(x, 1)[0, -1], np.einsum("ij->", x),
        np.clip(x, -1, 1).sum(), np.var(x, axis=1, correction=1).sum(), np.max(x), np.take(x, np.array([0]), 1).sum(),
    ]  # fmt: skip
    sum(parts).backward()  # type: ignore[attr-defined]
    torch = pytest.importorskip("torch")
    t = torch.tensor(X, requires_grad=True)
    theirs = [
        torch.cat([t, t]).sum(), t.sum(), t.sum(), t.mean(1).sum(), torch.where(t > 0, t, 0.0).sum(), t.T[0].sum(),
        t.cumsum(1)[0, -1], t.sum(), t.clip(-1, 1).sum(), t.var(1).sum(), t.max(), t[:, 0].sum(),
    ]  # fmt: skip
    sum(theirs).backward()
    np.testing.assert_allclose(x.grad, t.grad.numpy())
    assert np.shape(x) == (2, 3) and np.ndim(x) == 2 and np.size(x) == 6
    assert type(np.zeros_like(x)) is Tensor and np.median(Tensor(X)) == np.median(X)
    with pytest.raises(TypeError, match=r"^numpy.sum: 3 arguments by position; give the options by name$"):
        np.sum(x, 0, np.float32)
    with pytest.raises(TypeError, match="^var: got an unexpected keyword argument 'ddof'; it takes x, axis, corr"):
        np.var(x, ddof=1)


def test_astype_and_to() -> None:
    x = leaf()
    y = x.astype("float32").to("numpy")
    assert y.dtype == np.float32
    y.sum().backward()
    assert x.grad.dtype == np.float64
    with pytest.raises(ValueError, match=r"unknown backend 'nunpy'.* did you mean 'numpy'\?"):
        x.to("nunpy")


# --- operators ------------------------------------------------------------------------------------

BINARY = [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.floordiv, operator.mod,
          operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]  # fmt: skip


@pytest.mark.parametrize("fn", BINARY)
@pytest.mark.parametrize("other", [2.0, 3, np.float64(2), np.array([2.0, 3.0, 1.0]), Tensor(np.array([2.0, 3.0, 1.0]))])
def test_binary_operators_equal_numpys_on_either_side(fn: Any, other: Any) -> None:
    x = np.abs(X)
    plain = other.data if isinstance(other, Tensor) else other
    assert isinstance(fn(Tensor(x), other), Tensor)
    np.testing.assert_array_equal(fn(Tensor(x), other).numpy(), fn(x, plain))
    assert isinstance(fn(other, Tensor(x)), Tensor)
    np.testing.assert_array_equal(fn(other, Tensor(x)).numpy(), fn(plain, x))


def test_matrix_product_on_either_side() -> None:
    w = np.arange(6.0).reshape(3, 2)
    for product in (Tensor(X) @ Tensor(w), Tensor(X) @ w, X @ Tensor(w)):
        np.testing.assert_array_equal(product.numpy(), X @ w)


def test_unary_operators() -> None:
    x = leaf()
    np.testing.assert_array_equal((-x).numpy(), -X)
    np.testing.assert_array_equal(abs(x).numpy(), abs(X))
    assert +x is x


@pytest.mark.parametrize("fn", [operator.and_, operator.or_, operator.xor])
@pytest.mark.parametrize(("a", "b"), [([True, True, False], [True, False, False]), ([6, 5, 0], [3, 4, 7])])
def test_bitwise_operators(fn: Any, a: Any, b: Any) -> None:
    a, b = np.array(a), np.array(b)
    for got in (fn(Tensor(a), Tensor(b)), fn(Tensor(a), b), fn(a, Tensor(b))):
        assert isinstance(got, Tensor)
        assert got.dtype == a.dtype
        np.testing.assert_array_equal(got.numpy(), fn(a, b))
    np.testing.assert_array_equal((~Tensor(a)).numpy(), ~a)


def test_comparisons_have_no_gradient_and_tensors_are_hashable() -> None:
    x = leaf()
    assert (x == x).numpy().all()
    assert not (x > 0).requires_grad
    assert len({x, x, Tensor(X)}) == 2


def test_gradients_through_operators_on_either_side() -> None:
    x = leaf([2.0, 4.0])
    (3 - x + 8 / x + 2**x + x**2 + x / 2 - x).sum().backward()
    expected = -1 - 8 / x.data**2 + 2**x.data * np.log(2) + 2 * x.data + 0.5 - 1
    np.testing.assert_allclose(x.grad, expected, rtol=1e-14)


# --- methods --------------------------------------------------------------------------------------

METHODS = [
    ("sum", (0,), {}), ("sum", (), {"axis": (0, 1), "keepdims": True}), ("mean", (1,), {}), ("max", (0,), {}),
    ("min", (1, True), {}), ("prod", (0,), {}), ("var", (0,), {"correction": 1}), ("std", (1,), {}),
    ("all", (0,), {}), ("any", (1,), {"keepdims": True}), ("argmax", (1,), {}), ("argmin", (0, True), {}),
    ("reshape", ((3, 2),), {}), ("permute_dims", ((1, 0),), {}), ("expand_dims", (1,), {}), ("squeeze", (), {}),
    ("broadcast_to", ((2, 2, 3),), {}), ("exp", (), {}), ("square", (), {}), ("tanh", (), {}), ("sigmoid", (), {}),
    ("relu", (), {}), ("gelu", (), {}), ("gelu", ("tanh",), {}), ("softmax", (0,), {}), ("clip", (-1.0, 2.0), {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "positional", "named"), METHODS)
def test_methods_are_the_ops_of_the_same_name(name: str, positional: Any, named: Any) -> None:
    x = leaf()
    options = {"min": positional[0], "max": positional[1]} if name == "clip" else named
    expected = getattr(tg, name)(x, *(() if name == "clip" else positional), **options)
    got = getattr(x, name)(*positional, **named)
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got.numpy(), expected.numpy())


def test_more_methods() -> None:
    x = leaf(np.abs(X))
    np.testing.assert_array_equal(x.log().numpy(), np.log(np.abs(X)))
    np.testing.assert_array_equal(x.sqrt().numpy(), np.sqrt(np.abs(X)))
    np.testing.assert_array_equal(x.T.numpy(), np.abs(X).T)
    np.testing.assert_array_equal(x.expand_dims(0).mT.numpy(), np.abs(X).T[None])
    assert [part.shape for part in x.split(3, axis=1)] == [(2, 1)] * 3
    assert x.reshape(6).reshape(3, -1).shape == (3, 2)
    assert x.reshape([6]).reshape(np.int64(6)).shape == (6,)
    assert x.permute_dims(1, 0).broadcast_to(4, 3, 2).shape == (4, 3, 2)
    assert x.sum().reshape().shape == ()
    with pytest.raises(ValueError, match=r"T: shape \(6,\) is not that of a matrix; use mT or permute_dims"):
        _ = x.reshape(6).T


# --- reading and writing --------------------------------------------------------------------------


def test_indices_that_are_tensors() -> None:
    x = leaf()
    np.testing.assert_array_equal(x[Tensor([1, 0, 1])].numpy(), X[[1, 0, 1]])
    np.testing.assert_array_equal(x[:, Tensor([2, 2])].numpy(), X[:, [2, 2]])
    np.testing.assert_array_equal(x[x > 0].numpy(), X[X > 0])
    np.testing.assert_array_equal(x[Tensor(1), np.int64(2)].numpy(), X[1, 2])
    x[Tensor([1, 0, 1])].sum().backward()
    np.testing.assert_array_equal(x.grad, [[1, 1, 1], [2, 2, 2]])


def test_reading_one_element_returns_a_tensor() -> None:
    x = leaf()
    y = x[1, 2]
    assert isinstance(y, Tensor)
    assert y.shape == ()
    (y * 5).backward()
    np.testing.assert_array_equal(x.grad, [[0, 0, 0], [0, 0, 5]])


def test_an_index_out_of_range() -> None:
    for key in (2, (0, 3), [0, 5], Tensor([7])):
        with pytest.raises(IndexError, match="out of bounds"):
            leaf()[key]


def test_writing() -> None:
    x = Tensor(X.copy())
    x[0] = 7
    x[1, Tensor([0, 2])] = Tensor([8.0, 9.0])
    x[x < 1] = 0.0
    np.testing.assert_array_equal(x.numpy(), [[7, 7, 7], [8, 0, 9]])
    x[0] += 1
    x *= 2
    np.testing.assert_array_equal(x.numpy(), [[16, 16, 16], [16, 0, 18]])
    with pytest.raises(ValueError, match="read-only"):
        x.broadcast_to(2, 2, 3)[0] = 1.0


def test_updating_a_leaf_under_no_grad_is_in_place() -> None:
    """As in an optimiser written for PyTorch: `p -= lr * p.grad` in a loop has to change the model's parameter."""
    p = leaf([1.0, 2.0])
    array, params = p.data, [p]
    (p * p).sum().backward()
    with tg.no_grad():
        for q in params:
            q -= 0.5 * q.grad
            q += 3
            q *= 2.0
            q /= 4.0
    assert params[0].data is array
    assert array.tolist() == [1.5, 1.5]
    assert params[0].requires_grad
    assert params[0].grad is not None


@pytest.mark.parametrize("name", ["iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul"])
def test_every_operator_updates_a_leaf_under_no_grad(name: str) -> None:
    x, other = np.array([[3.5, 2.0], [7.0, 1.5]]), np.array([[2.0, 1.0], [3.0, 2.0]])
    p = q = leaf(x)
    array, expected = p.data, getattr(operator, name.replace("i", "", 1))(x, other)
    with tg.no_grad():
        q = getattr(operator, name)(q, other)
    assert q is p and p.data is array and p.requires_grad
    np.testing.assert_array_equal(array, expected)


def test_updating_any_other_tensor_creates_a_new_one() -> None:
    x, plain = leaf([1.0, 2.0]), Tensor([1.0, 2.0])
    h, kept = x, plain
    h += x * 2
    h *= 2
    h.sum().backward()
    assert x.tolist() == [1, 2]
    assert x.grad.tolist() == [6, 6]
    with tg.no_grad():
        plain -= 1
    assert (plain.tolist(), kept.tolist()) == ([0, 1], [1, 2])


# --- reading results ------------------------------------------------------------------------------


def test_a_tensor_of_one_element_is_formatted_as_its_number() -> None:
    x = leaf([[1.23456]])
    assert f"{x:.3f} {x.sum():8.1e} {Tensor(7):03d}" == "1.235  1.2e+00 007"
    assert f"{x}" == str(x)
    with pytest.raises(TypeError, match=r"format '.3f': shape \(2, 3\) has 6 elements, not one"):
        f"{leaf():.3f}"


def test_the_gradient_of_a_result_says_how_to_keep_it() -> None:
    x = leaf()
    y = 2 * x
    with pytest.warns(UserWarning, match=r"the result of multiply keeps no gradient: call retain_grad\(\)"):
        assert y.grad is None
    assert Tensor(X).grad is None


def test_retain_grad() -> None:
    """Called before or after the result is used; gradients add up; other results keep none."""
    x = leaf()
    y = 2 * x
    first, second = y.split(1)[0], tg.split(y, 2)[1]
    loss = (first * first).sum() + second.sum()
    for tensor in (x, y, first, second):
        tensor.retain_grad()
        tensor.retain_grad()
    loss.backward(retain_graph=True)
    np.testing.assert_array_equal(first.grad, 2 * first.data)
    np.testing.assert_array_equal(y.grad, 2 * y.data + np.array([[0], [1]]))
    np.testing.assert_array_equal(second.grad, np.ones((1, 3)))
    once = y.grad.copy()
    loss.backward()
    np.testing.assert_array_equal(y.grad, 2 * once)
    np.testing.assert_array_equal(x.grad, 2 * y.grad)
    y.grad = None
    assert y.grad is None


def test_retain_grad_needs_a_gradient() -> None:
    with pytest.raises(RuntimeError, match="retain_grad: this tensor was computed from no tensor that requires"):
        Tensor(X).retain_grad()


def test_retain_grad_ends_with_the_tensor() -> None:
    y = 2 * leaf()
    y.retain_grad()
    del y
    assert not importlib.import_module("tensorgrad.tensor")._retaining


def test_copy_and_flatten() -> None:
    x = leaf(np.ones((2, 3, 4)))
    y = x.copy()
    y.data[0, 0, 0] = 7
    assert x.data[0, 0, 0] == 1
    assert [x.flatten().shape, x.flatten(1).shape, x.flatten(-1).shape, tg.zeros((0, 2, 3)).flatten(1).shape] == [
        (24,), (2, 12), (2, 3, 4), (0, 6),
    ]  # fmt: skip
    (y.flatten() * np.arange(24.0)).sum().backward()
    np.testing.assert_array_equal(x.grad, np.arange(24.0).reshape(2, 3, 4))
