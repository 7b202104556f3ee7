"""A case registers an op with everything that checks it: examples, what each saves, NumPy's and PyTorch's names."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from tensorgrad import ops
from tensorgrad.backend import Array, Backend
from tensorgrad.backend.arrays import is_floating
from tensorgrad.random import Generator
from tensorgrad.tensor import Tensor

Function = Callable[..., Any]
Numbers = Callable[..., Array]  # from a shape


class Frozen:
    """A float input that does not require a gradient."""

    def __init__(self, array: Array) -> None:
        self.array = array


class Example:
    """One call of an op: `Example("broadcast", randn(3, 1), randn(4))`.

    inputs: float64 arrays become tensors that require a gradient (unless `Frozen`), integer and boolean arrays become
    tensors that do not, anything else is passed on as it is; so are the options.
    call: how the op is called, where it is not `op(*inputs, **options)`: `call=lambda op, x: op(x, x)`.
    saves: the arrays that backward keeps, one word each; None where this is not checked. A word is the letter of an
    input ("a" the first, "b" the second), "y" for a result, or the shape of any other array. The shape follows the
    dtype unless that is the input's, or the array is less than half as large as the first: "a y (2,3,1) bool(2,3,4)".
    """

    def __init__(
        self, name: str, *inputs: Any, call: Function | None = None, saves: str | None = None, **options: Any
    ) -> None:
        self.name, self.inputs, self.call, self.saves, self.options = name, inputs, call, saves, options

    def __repr__(self) -> str:
        return f"Example({self.name!r})"

    def renamed(self, name: str) -> "Example":
        """The same call under another name."""
        return Example(name, *self.inputs, call=self.call, saves=self.saves, **self.options)

    def run(self, fn: Function, *inputs: Any) -> Any:
        """Call `fn`, the op or another function that takes the same, with these inputs and the example's options."""
        return fn(*inputs, **self.options) if self.call is None else self.call(fn, *inputs, **self.options)

    def tensors(self, k: Backend, dtype: Any) -> list[Any]:
        """The inputs as tensors of a backend, floats rounded to `dtype`, with the strides that they have here."""
        return [self._tensor(k, x, np.dtype(dtype)) for x in self.inputs]

    def _tensor(self, k: Backend, x: Any, dtype: Any) -> Any:
        if isinstance(x, Frozen):
            return Tensor(_lay_out(k, x.array, dtype))
        if not isinstance(x, np.ndarray):
            return x
        floating = is_floating(x.dtype)
        return Tensor(_lay_out(k, x, dtype if floating else x.dtype), requires_grad=floating)

    def arrays(self, dtype: Any) -> list[Any]:
        """The inputs as NumPy arrays, floats rounded to `dtype` and widened to float64."""
        arrays = (x.array if isinstance(x, Frozen) else x for x in self.inputs)
        return [
            x.astype(dtype).astype(np.float64) if isinstance(x, np.ndarray) and is_floating(x.dtype) else x
            for x in arrays
        ]


def _lay_out(k: Backend, x: Array, dtype: Any) -> Array:
    """x in another dtype on a backend, with the same strides: sliced, reversed and stride-0 views stay such."""
    memory = x
    while isinstance(memory.base, np.ndarray):
        memory = memory.base
    start = (x.__array_interface__["data"][0] - memory.__array_interface__["data"][0]) // x.itemsize
    moved = k.asarray(memory.ravel(order="K").astype(dtype))
    strides = [stride // x.itemsize * moved.itemsize for stride in x.strides]
    return k.xp.lib.stride_tricks.as_strided(moved[start:], x.shape, strides)


class Draw:
    """How tests draw random calls: the name of one of their strategies, of its operands' numbers, and its options."""

    def __init__(self, strategy: str, *numbers: str, **options: Any) -> None:
        self.strategy, self.numbers, self.options = strategy, numbers, options


class Case:
    """The one registration of an op: `Case(ops.exp, unary(saves="y"), draw=Draw("unary"))`.

    examples: the calls that gradcheck checks.
    call: how examples are called that do not say it themselves.
    gradient: False for an op without one, whose results have to be NumPy's.
    loss: whether the last result is a loss, which is float32 in half precision.
    numpy, torch: the same function in NumPy; and in PyTorch, by its dotted name or as a function whose first argument
    is the module torch. Unless given, the function of the op's name; tests/tensorgrad/op_references.py has longer ones.
    draw: how tests draw calls to compare with both; unless given, they take the examples.
    incomparable: why there is nothing in NumPy or PyTorch to compare with.
    """

    def __init__(
        self, op: Function, examples: Iterable[Example], *, call: Function | None = None, gradient: bool = True,
        loss: bool = False, numpy: Function | None = None, torch: str | Function | None = None,
        draw: Draw | None = None, incomparable: str = "",
    ) -> None:
        self.op, self.name, self.examples, self.call = op, op.__name__, list(examples), call
        self.gradient, self.loss, self.draw, self.incomparable = gradient, loss, draw, incomparable
        self.numpy, self.torch = numpy or getattr(np, self.name, None), torch or self.name
        for example in self.examples:
            example.call = example.call or call

    def __repr__(self) -> str:
        return f"Case({self.name})"


# --- inputs, float64 ------------------------------------------------------------------------------

_generator = Generator(2026)


def randn(*shape: int) -> Array:
    """Normally distributed."""
    return np.asarray(_generator.normal(shape, dtype=np.float64))


def uniform(low: float, high: float, *shape: int) -> Array:
    """Uniform between low and high."""
    return np.asarray(_generator.uniform(shape, low, high, dtype=np.float64))


def positive(*shape: int) -> Array:
    """From 1/2 to 2: far from 0, where a logarithm or a root is not smooth."""
    return uniform(0.5, 2, *shape)


def nonzero(*shape: int) -> Array:
    """From 1/2 to 2, of either sign: far from the kink at 0."""
    return np.asarray(positive(*shape) * (1 - 2 * integers(0, 2, *shape)))


def distinct(*shape: int) -> Array:
    """Multiples of 1/4 around 0, all different, in random order: no small step changes which is the largest."""
    n = int(np.prod(shape))
    return np.asarray((_generator.permutation(n) - n // 2) / 4).reshape(shape)


def integers(low: int, high: int, *shape: int) -> Array:
    """int64 from low to high - 1."""
    return np.asarray(_generator.integers(low, high, shape))


def booleans(*shape: int) -> Array:
    """True or False."""
    return np.asarray(integers(0, 2, *shape) == 1)


def stretched(*shape: int, numbers: Numbers = randn) -> Array:
    """Equal rows: stride 0 along every axis but the last."""
    return np.broadcast_to(numbers(shape[-1]), shape)


# --- the same examples for every op of a kind ----------------------------------------------------


def unary(numbers: Numbers = randn, *, saves: str | None = None, **options: Any) -> list[Example]:
    """Examples of an elementwise op on one array."""
    return [
        Example("0-d", numbers(), **options),
        Example("one element", numbers(1), **options),
        Example("3-d", numbers(2, 3, 4), saves=saves, **options),
        Example("empty", numbers(0, 3), **options),
        Example("transposed", numbers(4, 3).T, **options),
        Example("sliced", numbers(6, 5)[::2, 1:4], **options),
        Example("reversed", numbers(5)[::-1], **options),
        Example("stride 0", stretched(3, 4, numbers=numbers), **options),
        Example("used twice", numbers(3, 4), **options, call=lambda op, x, **given: ops.add(op(x, **given), x)),
    ]


def binary(a: Numbers = randn, b: Numbers = randn, *, saves: tuple[str, str]) -> list[Example]:
    """Examples of an elementwise op on two arrays that broadcast together; saves: for da, and for db."""
    for_da, for_db = saves
    return [
        Example("0-d", a(), b()),
        Example("one element", a(1), b(1)),
        Example("same shape", a(3, 4), b(3, 4)),
        Example("broadcast", a(3, 1), b(4)),
        Example("broadcast 3-d", a(2, 1, 3), b(4, 1), saves=" ".join(sorted({*for_da.split(), *for_db.split()}))),
        Example("array and 0-d", a(2, 3), b()),
        Example("0-d and array", a(), b(2, 3)),
        Example("scalar right", a(2, 3), 1.375),
        Example("scalar left", 1.375, b(2, 3)),
        Example("empty", a(0, 3), b(3)),
        Example("transposed", a(4, 3).T, b(3, 4)),
        Example("sliced", a(6, 4)[::2], b(3, 8)[:, ::-2]),
        Example("stride 0", stretched(3, 4, numbers=a), np.broadcast_to(b(3, 1), (3, 4))),
        Example("frozen left", Frozen(a(2, 1, 3)), b(4, 1), saves=for_db),
        Example("frozen right", a(2, 1, 3), Frozen(b(4, 1)), saves=for_da),
    ]
