"""Traced arrays: tensors with the interface of NumPy's arrays, so that an op's own code, run on them, is recorded."""

from typing import Any

import numpy as np

from tensorgrad import ops
from tensorgrad.autograd import op
from tensorgrad.backend import Array, Backend
from tensorgrad.backend.arrays import is_floating
from tensorgrad.backend.quantization import QuantizedMath
from tensorgrad.ops.broadcasting import shape_of, unbroadcast
from tensorgrad.tensor import Tensor


class TracedArray(Tensor):
    """A tensor with the attributes and methods of NumPy's arrays that ops use."""

    __slots__ = ()
    base = None  # it is no view
    nbytes = property(lambda self: self.data.nbytes)
    T = property(lambda self: self.transpose(*reversed(range(self.ndim))))

    @classmethod
    def of(cls, x: Any) -> Any:
        """A tensor as a traced array, or its array where that can have no gradient; anything else as it is."""
        if not isinstance(x, Tensor):
            return x
        return cls.wrap(x.data, x.edge) if is_floating(x.dtype) else x.data

    def transpose(self, *axes: Any) -> Any:
        """The axes in that order."""
        return ops.permute_dims(self, tuple(axes[0]) if len(axes) == 1 and not isinstance(axes[0], int) else axes)

    def swapaxes(self, a: int, b: int) -> Any:
        """Two axes exchanged."""
        axes = list(range(self.ndim))
        axes[a], axes[b] = axes[b], axes[a]
        return self.transpose(*axes)

    def astype(self, dtype: Any, copy: bool = True) -> Any:
        """In another dtype."""
        return self if self.dtype == np.dtype(dtype) else ops.astype(self, dtype=dtype)

    def copy(self) -> Any:
        """Another traced array of the same elements: `x[key] = y` changes only one of them."""
        return TracedArray.wrap(self.data, self.edge)

    def max(self, axis: Any = None, keepdims: bool = False) -> Any:
        """The maximum, as a constant: kernels subtract it from all elements, which changes no result."""
        return ops.max(TracedArray.wrap(self.data), axis=axis, keepdims=keepdims)

    def min(self, axis: Any = None, keepdims: bool = False) -> Any:
        """The minimum, as a constant."""
        return ops.min(TracedArray.wrap(self.data), axis=axis, keepdims=keepdims)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.become(_set_at(self, value, key=key))

    def __iadd__(self, other: Any) -> Any:  # type: ignore[misc]
        self.become(self + other)
        return self

    def become(self, other: Tensor) -> None:
        """Writing in place: this object now stands for another result."""
        self.data, self.edge = other.data, other.edge


@op
def _set_at(k: Backend, x: Array, values: Array, *, key: Any) -> tuple[Array, Any]:
    """x with x[key] = values."""
    shape, y = shape_of(values), x.copy()
    y[key] = values

    def dx(dy: Array) -> Array:
        dx = dy.copy()
        dx[key] = 0
        return dx

    return y, (dx, lambda dy: unbroadcast(k, dy[key], shape))


@op
def _add_at(k: Backend, x: Array, values: Array, *, key: Any) -> tuple[Array, Any]:
    """x with the values added at x[key]; those of a repeated index add up."""
    shape, y = shape_of(values), x.copy()
    k.xp.add.at(y, key, values)
    return y, (lambda dy: dy, lambda dy: unbroadcast(k, dy[key], shape))


class _Add:
    """`xp.add`, of which ops use the method `at` alone."""

    def at(self, x: Any, key: Any, values: Any) -> None:
        x.become(_add_at(x, values, key=key))


def _cumprod(x: Tensor, axis: int) -> Any:
    """The product of all elements up to each one, along the last axis."""
    products = [x[..., :1]] if x.shape[axis] else [x]
    for i in range(1, x.shape[axis]):
        products.append(products[-1] * x[..., i : i + 1])
    return ops.concat(products, axis=axis)


# the functions of NumPy that have another name or other arguments here
_FUNCTIONS: dict[str, Any] = {
    "add": _Add(),
    "concatenate": ops.concat,
    "cumprod": _cumprod,
    "einsum": lambda *operands, optimize: ops.einsum(*operands),
    "cumsum": ops.cumulative_sum,
    "logaddexp": lambda a, b: ops.softplus(a - b) + b,
    "pad": lambda x, widths, constant_values: ops.pad(x, pad_width=widths, constant=constant_values),
    "repeat": lambda x, counts, axis=None: ops.repeat(x, repeats=counts, axis=axis),
    "split": lambda x, ends, axis: ops.split(x, np.diff([0, *ends, x.shape[axis]]).tolist(), axis),
    "result_type": lambda *arrays: np.result_type(*(x.data if isinstance(x, Tensor) else x for x in arrays)),
}
_CREATION = ("empty", "ones", "zeros")


class _Namespace:
    """NumPy or CuPy, whose functions record what they do with traced arrays."""

    def __init__(self, xp: Any) -> None:
        self.xp = xp

    def __getattr__(self, name: str) -> Any:
        plain = getattr(self.xp, name)
        if isinstance(plain, type) or not callable(plain):  # a dtype or a number
            return plain
        if name in _CREATION:
            return lambda *args: TracedArray.wrap(plain(*args))
        if name == "add":
            return _FUNCTIONS[name]

        def function(*args: Any, **options: Any) -> Any:
            flat = [x for arg in args for x in (arg if isinstance(arg, list | tuple) else [arg])]
            if not any(isinstance(x, Tensor) for x in flat):
                return plain(*args, **options)
            if name in ("zeros_like", "ones_like"):
                return TracedArray.wrap(plain(args[0].data))
            result = (_FUNCTIONS.get(name) or getattr(ops, name))(*args, **options)
            return TracedArray.of(result)

        return function


class Tracing(QuantizedMath, Backend):
    """The plain mathematics on traced arrays."""

    name = "tracing"
    array_type = TracedArray

    def __init__(self, k: Backend) -> None:
        self.k, self.xp = k, _Namespace(k.xp)

    def asarray(self, x: Any, dtype: Any = None) -> Any:
        """A traced array as it is, constants on the backend of the others."""
        if isinstance(x, Tensor):
            return x if dtype is None else TracedArray.of(x).astype(dtype)
        return self.k.asarray(x, dtype)

    def dropout_scale(self, *args: Any) -> Any:
        """A constant."""
        return self.k.dropout_scale(*args)

    def erf(self, x: Any) -> Any:
        """By the op, whose derivative is a formula."""
        return ops.erf(x)

    def gelu(self, x: Any) -> Any:
        """By the op."""
        return ops.gelu(x)

    def gelu_backward(self, dy: Any, x: Any) -> Any:
        """By erf, as in the plain mathematics."""
        density = ops.exp(-0.5 * x * x) * (1 / np.sqrt(2 * np.pi)).item()
        return dy * (0.5 * (1 + ops.erf(x * 0.5**0.5)) + x * density)
