"""A case registers an op with everything that checks it: examples, what each saves, NumPy's and PyTorch's names."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from tensorgrad.backend import Array, Backend
from tensorgrad.backend.arrays import is_floating
from tensorgrad.gradcheck.audit import stepped, transposed
from tensorgrad.tensor import Tensor

Function = Callable[..., Any]


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
    saves_in_half: the same in half precision, where it differs.
    """

    def __init__(
        self, name: str, *inputs: Any, call: Function | None = None, saves: str | None = None,
        saves_in_half: str | None = None, **options: Any,
    ) -> None:  # fmt: skip
        self.name, self.inputs, self.call, self.options = name, inputs, call, options
        self.saves, self.saves_in_half = saves, saves if saves_in_half is None else saves_in_half

    def __repr__(self) -> str:
        return f"Example({self.name!r})"

    def renamed(self, name: str) -> "Example":
        """The same call under another name."""
        return Example(name, *self.inputs, call=self.call, saves=self.saves, **self.options)

    def run(self, fn: Function, *inputs: Any) -> Any:
        """Call `fn`, the op or another function that takes the same, with these inputs and the example's options."""
        return fn(*inputs, **self.options) if self.call is None else self.call(fn, *inputs, **self.options)

    def layouts(self) -> "list[Example]":
        """This example, and the same with all arrays in Fortran's order, sliced backwards, and of stride 0."""
        examples = [self]
        for name, lay in LAYOUTS.items():
            inputs = [lay(np, x) if isinstance(x, np.ndarray) else x for x in self.inputs]
            examples.append(Example(f"{self.name}, {name}", *inputs, call=self.call, **self.options))
        return examples

    def tensors(self, k: Backend, dtype: Any) -> list[Any]:
        """The inputs as tensors of a backend, floats rounded to `dtype`, with the strides that they have here."""
        return [self._tensor(k, x, np.dtype(dtype)) for x in self.inputs]

    def _tensor(self, k: Backend, x: Any, dtype: Any) -> Any:
        if isinstance(x, Frozen):
            return Tensor(_with_strides(k, x.array, dtype))
        if not isinstance(x, np.ndarray):
            return x
        floating = is_floating(x.dtype)
        return Tensor(_with_strides(k, x, dtype if floating else x.dtype), requires_grad=floating)

    def arrays(self, dtype: Any) -> list[Any]:
        """The inputs as NumPy arrays, floats rounded to `dtype` and widened to float64."""
        arrays = (x.array if isinstance(x, Frozen) else x for x in self.inputs)
        return [
            x.astype(dtype).astype(np.float64) if isinstance(x, np.ndarray) and is_floating(x.dtype) else x
            for x in arrays
        ]


def _with_strides(k: Backend, x: Array, dtype: Any) -> Array:
    """x in another dtype on a backend, with the same strides: sliced, reversed and stride-0 views stay such."""
    memory = x
    while isinstance(memory.base, np.ndarray):
        memory = memory.base
    start = (x.__array_interface__["data"][0] - memory.__array_interface__["data"][0]) // x.itemsize
    moved = k.asarray(memory.ravel(order="K").astype(dtype))
    strides = [stride // x.itemsize * moved.itemsize for stride in x.strides]
    return k.xp.lib.stride_tricks.as_strided(moved[start:], x.shape, strides)


def _stretched(xp: Any, x: Array) -> Array:
    """The first along one axis in place of all."""
    axis = next((i for i, n in enumerate(x.shape) if n > 1), None)
    return x if axis is None else xp.broadcast_to(x.take([0], axis), x.shape)


LAYOUTS: dict[str, Function] = {
    "transposed": transposed, "sliced": functools.partial(stepped, step=-2), "stride 0": _stretched,
}  # fmt: skip


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
