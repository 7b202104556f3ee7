"""Arrays that were saved for backward and overwritten in between, and how saved arrays are found."""

import collections
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import tensorgrad as tg
from tensorgrad import Tensor, autograd, nn, optim
from tensorgrad.autograd import inplace

pytestmark = pytest.mark.usefixtures("numpy_backend")


def leaf(*values: float) -> Any:
    return Tensor(np.array(values, np.float64), requires_grad=True)


def random(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


OVERWRITTEN = r"multiply: an array of shape \(2,\) that it saved for backward was overwritten in place"


# --- buffers of indices, targets and masks --------------------------------------------------------

WEIGHT = random(4, 3)
VISIBLE = np.tri(4, dtype=bool)
INDEXED = {
    "embedding": (tg.embedding, [1, 2]),
    "take": (lambda x, i: tg.take(x, i, axis=0), [1, 2]),
    "take_along_axis": (lambda x, i: tg.take_along_axis(x, i, axis=0), [[1, 2, 0]]),
    "an array": (lambda x, i: x[i], [1, 2]),
    "an array in a tuple": (lambda x, i: x[:, i], [1, 2]),
    "booleans": (lambda x, i: x[i], [True, False, True, False]),
    "where": (lambda x, i: tg.where(i, x, 0.0), [[True], [False], [True], [False]]),
    "cross_entropy": (tg.cross_entropy, [1, 2, 0, 1]),
    "linear_cross_entropy": (lambda x, i: tg.linear_cross_entropy(x, x, i), [1, 2, 0, 1]),
    "linear_cross_entropy, each": (lambda x, i: tg.linear_cross_entropy(x, x, i, reduction="none"), [1, 2, 0, 1]),
    "attention": (lambda x, i: tg.attention(*[x.reshape(1, 1, 4, 3)] * 3, mask=i), VISIBLE),
    "rotary_embedding": (lambda x, i: tg.rotary_embedding(tg.pad(x, ((0, 0), (0, 1))), i), [1, 2, 3, 0]),
    "repeat": (lambda x, i: tg.repeat(x, i, axis=0), [1, 2, 0, 2]),
    "checkpoint": (lambda x, i: tg.checkpoint(tg.embedding, x, i), [1, 2]),
    "checkpoint of a list": (lambda x, i: tg.checkpoint(lambda x, given: x[given[0]], x, [i]), [1, 2]),
}


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("kind", [np.array, lambda i: Tensor(np.array(i))], ids=["array", "tensor"])
@pytest.mark.parametrize("name", INDEXED)
def test_a_buffer_filled_again_before_backward_moves_no_gradient(name: str, kind: Any, backend: str) -> None:
    fn, values = INDEXED[name]
    with tg.use_backend(backend):
        x, expected, indices = Tensor(WEIGHT, True), Tensor(WEIGHT, True), kind(values)
        y, before = fn(x, indices), fn(expected, np.array(values))
        dy = random(*y.shape)
        before.backward(dy)
        indices[...] = np.flip(np.array(values))
        y.backward(dy)
        np.testing.assert_array_equal(x.grad, expected.grad)


# --- writes into arrays that are saved as they are ------------------------------------------------


def test_a_write_into_a_saved_array_is_found() -> None:
    x, scale = leaf(1, 2), Tensor([3.0, 4.0])
    y = x * scale
    scale[0] = 5.0
    with pytest.raises(RuntimeError, match=OVERWRITTEN):
        y.sum().backward()
    assert x.grad is None


@pytest.mark.parametrize(
    "view", [lambda t: t[1:], lambda t: t.reshape(2, 1), lambda t: t.detach(), lambda t: t[::-1][:1]]
)
def test_a_write_through_a_view_is_found(view: Any) -> None:
    x, scale = leaf(1, 2), Tensor([3.0, 4.0])
    y = x * scale
    view(scale)[...] = 0.0
    with pytest.raises(RuntimeError, match=OVERWRITTEN):
        y.sum().backward()


@pytest.mark.parametrize("view", [lambda t: t[:2], lambda t: t.reshape(2, 2)[0], lambda t: t.broadcast_to(2, 4)[0, :2]])
def test_a_write_under_a_saved_view_is_found(view: Any) -> None:
    x, base = leaf(1, 2), Tensor([3.0, 4.0, 5.0, 6.0])
    y = x * view(base)
    base[0] = 0.0
    with pytest.raises(RuntimeError, match=OVERWRITTEN):
        y.sum().backward()


@pytest.mark.parametrize(
    "write",
    [
        lambda layer, opt, state: opt.step(),
        lambda layer, opt, state: layer.load_state_dict(state),
        lambda layer, opt, state: tg.no_grad()(layer.weight.__setitem__)(0, 0.0),
    ],
)
@pytest.mark.parametrize("kind", [optim.AdamW, optim.SGD])
def test_a_parameter_written_between_forward_and_backward_is_found(kind: Any, write: Any) -> None:
    layer = nn.Linear(2, 2)
    opt = kind(layer.parameters())
    x = Tensor(random(3, 2).astype(np.float32), requires_grad=True)
    layer(x).sum().backward()
    state = {name: array.copy() for name, array in layer.state_dict().items()}
    loss = layer(x).sum()
    write(layer, opt, state)
    with pytest.raises(RuntimeError, match="linear: an array of shape .* was overwritten in place"):
        loss.backward()


def test_writes_that_do_no_harm_are_allowed() -> None:
    x, scale, other = leaf(1, 2), Tensor([3.0, 4.0]), Tensor([0.0, 0.0])
    scale[0] = 7.0  # before it is read
    y = x * scale
    other[0] = 1.0  # nothing to do with y
    with tg.no_grad():
        y[0] = 100.0  # multiply does not need its result
    z = y + scale  # add needs neither operand
    z.sum().backward()
    scale[0] = 0.0  # after backward
    np.testing.assert_array_equal(x.grad, [7, 4])


def test_an_array_in_the_place_of_a_written_one_is_not_taken_for_it() -> None:
    x, before = leaf(1, 2), set(inplace._writes)
    for _ in range(50):
        scratch = Tensor(np.zeros(2))
        scratch[0] = 1.0
        del scratch
        y = x * Tensor(np.ones(2))  # often where scratch was
        other = Tensor(np.zeros(5))
        other[0] = 1.0  # so that y was recorded before the last write
        del other
        y.sum().backward()
    assert set(inplace._writes) <= before  # nothing is remembered of arrays that are gone


def test_in_place_writes_that_would_lose_a_gradient_are_refused() -> None:
    x, plain = leaf(1, 2), Tensor([0.0, 0.0])
    with pytest.raises(RuntimeError, match="a tensor that requires a gradient cannot be written in place"):
        x[0] = 1.0
    with pytest.raises(RuntimeError, match="a value that requires a gradient cannot be written in place"):
        plain[0] = x[0]
    with tg.no_grad():
        x[0], plain[1] = 5.0, x[1]
    np.testing.assert_array_equal(x.data, [5, 2])
    np.testing.assert_array_equal(plain.data, [0, 2])


def test_saved_arrays_are_found_in_a_closure() -> None:
    a, b, c = (np.zeros(n) for n in (1, 2, 3))

    def helper() -> Any:
        return a

    def backward(dy: Any) -> Any:
        return helper(), pair, never

    pair = [b, (c,)]
    if a.size == 0:
        never = None  # closed over, never bound
    assert sorted(array.size for array in autograd.saved_arrays((backward, None))) == [1, 2, 3]


class Holder:
    """An object with an array in an attribute, and a method that uses it."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def method(self, dy: Any) -> Any:
        return dy * self.array


@dataclass(slots=True)
class Slotted:
    array: Any


def generator(array: Any) -> Any:
    yield array


HIDING_PLACES: dict[str, Any] = {
    "deque": lambda a: collections.deque([a]),
    "dict value": lambda a: {"a": a},
    "dict of lists": lambda a: {"a": [(a,)]},
    "set of tuples": lambda a: {Holder(a)},
    "object": Holder,
    "object with slots": Slotted,
    "bound method": lambda a: Holder(a).method,
    "partial": lambda a: functools.partial(np.multiply, a),
    "partial by name": lambda a: functools.partial(np.multiply, x2=a),
    "default argument": lambda a: lambda dy, a=a: dy * a,
    "keyword-only default": lambda a: lambda dy, *, a=a: dy * a,
    "function in a function": lambda a: lambda dy: lambda: a,
    "decorated function": lambda a: functools.wraps(generator)(lambda dy: a),
    "generator": generator,
    "iterator": lambda a: iter([a]),
    "tensor": Tensor,
    "weak key": lambda a: {Holder(a): 1},
}


@pytest.mark.parametrize("place", HIDING_PLACES)
def test_saved_arrays_are_found_in_any_container(place: str) -> None:
    array = np.arange(3.0)
    holder = HIDING_PLACES[place](array)
    found = list(autograd.saved_arrays(lambda dy: holder))
    assert len(found) == 1
    assert found[0] is array


def test_an_array_that_only_the_program_refers_to_is_not_saved() -> None:
    """Nothing is followed into modules, classes, backends or a function's globals."""
    k = tg.get_backend()
    assert list(autograd.saved_arrays(lambda dy: (k, np, Tensor, HIDING_PLACES, tg.exp))) == []
