"""Tensor: an array, its gradient, and the ops as operators and methods."""

import contextlib
import functools
import importlib
import math
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tensorgrad import autograd, ops
from tensorgrad.autograd import Leaf, Variable, note_write, op
from tensorgrad.backend import Array, Backend, as_operand, backend_of, get_backend, load
from tensorgrad.backend.arrays import is_floating, real_dtype


def _reflected(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The operator for a tensor on the right-hand side: 1 - x."""
    return lambda self, other: fn(other, self)


def _in_place(fn: Callable[..., Any]) -> Callable[..., Any]:
    """x += y and the like. Under no_grad a leaf is updated in place, as an optimiser needs; else x = x + y."""

    def update(self: "Tensor", other: Any) -> Any:
        if not isinstance(self.node, Leaf) or autograd.is_grad_enabled():
            return fn(self, other)
        self[...] = fn(self, other)
        return self

    return update


def _with_tuple(fn: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A method that takes the option `name`, a tuple of ints, or the ints as separate arguments."""

    @functools.wraps(fn)
    def method(self: "Tensor", *values: Any, **options: Any) -> Any:
        if len(values) == 1 and isinstance(values[0], tuple | list):
            values = tuple(values[0])
        return fn(self, values, **options) if values and options else fn(self, **(options or {name: values}))

    return method


class Tensor(Variable):
    """An array on a backend, and the node of the tape that computed it.

    data: an array (not copied), a Tensor, a number or nested lists of numbers. Python floats become float32.
    requires_grad: `backward` on a result computed from this tensor adds the gradient to `.grad`.
    dtype: convert the data to it; None keeps an array's own.
    Raises TypeError for data that is not numeric, and for requires_grad with a dtype that is not floating.
    """

    __slots__ = ("__weakref__", "_retained", "_role")
    __array_ufunc__ = None  # numpy_array * tensor is ours, not an array of objects
    __hash__ = object.__hash__

    def __init__(self, data: Any, requires_grad: bool = False, *, dtype: Any = None) -> None:
        self.data = _as_array(data, dtype)
        self.edge, self._role = None, "buffer"
        if requires_grad:
            self.requires_grad = True

    def __getattr__(self, name: str) -> Any:  # called for names that are not there
        if name.startswith("_"):
            raise AttributeError(name)
        hints, functions = (importlib.import_module(module) for module in ("tensorgrad.hints", "tensorgrad"))
        raise AttributeError(hints.missing("Tensor", name, dir(Tensor), dir(functions)))

    # --- attributes -----------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of every dimension."""
        return self.data.shape

    @property
    def dtype(self) -> Any:
        """The type of the elements, a NumPy dtype."""
        return self.data.dtype

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return self.data.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.data.size

    @property
    def requires_grad(self) -> bool:
        """Whether backward computes a gradient for this tensor. It can be set, except on the result of an op."""
        return self.node is not None

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if self.node is not None and not isinstance(self.node, Leaf):
            raise RuntimeError(f"requires_grad: cannot be set on the result of {self.node.name}; use detach()")
        if not value:
            self.edge = None
        elif not is_floating(self.dtype):
            raise TypeError(f"requires_grad: {self.dtype} has no gradient, only floating dtypes have one")
        elif self.node is None:
            self.edge, self._role = (Leaf(self.data), 0), "parameter"

    @property
    def role(self) -> str | None:
        """What a module takes it for: "parameter" once it required a gradient, else "buffer"; None: an op's result."""
        return getattr(self, "_role", None)

    @role.setter
    def role(self, value: str) -> None:
        self._role = value

    @property
    def grad(self) -> Array | None:
        """The sum of the gradients so far, an array like `data`; None before backward.

        Results of ops keep none, and warn, unless `retain_grad` was called.
        """
        if self.node is None or isinstance(self.node, Leaf):
            return None if self.node is None else self.node.grad
        if id(self) not in _retaining:
            warnings.warn(
                f"grad: the result of {self.node.name} keeps no gradient: call retain_grad() on it before backward, "
                "or read the grad of a tensor created with requires_grad=True", stacklevel=2,
            )  # fmt: skip
            return None
        return self._retained

    @grad.setter
    def grad(self, gradient: Array | None) -> None:
        if not isinstance(self.node, Leaf):
            if gradient is None:  # an optimiser's zero_grad, after a parameter was frozen
                self._retained = None
                return
            raise RuntimeError("grad: only tensors created with requires_grad=True have a gradient")
        if gradient is not None:
            gradient = gradient.data if isinstance(gradient, Variable) else gradient
            gradient = kernels_of(self).asarray(gradient, self.node.dtype)
            if gradient.shape != self.shape:
                raise ValueError(f"grad: shape {gradient.shape} for a tensor of shape {self.shape}")
        self.node.grad = gradient

    @property
    def grad_dtype(self) -> Any:
        """The dtype of the gradient: this tensor's own, unless set; None for tensors without a gradient."""
        return self.node.dtype if isinstance(self.node, Leaf) else None

    @grad_dtype.setter
    def grad_dtype(self, dtype: Any) -> None:
        if not isinstance(self.node, Leaf):
            raise RuntimeError("grad_dtype: only tensors created with requires_grad=True have a gradient")
        self.node.dtype = real_dtype("grad_dtype", dtype)
        if self.node.grad is not None:
            self.node.grad = self.node.grad.astype(self.node.dtype)

    def __repr__(self) -> str:
        return importlib.import_module("tensorgrad.describe").text(self)

    def _repr_html_(self) -> str:
        return importlib.import_module("tensorgrad.describe").html(self)

    def __format__(self, spec: str) -> str:
        if spec and self.size != 1:
            raise TypeError(f"format {spec!r}: shape {self.shape} has {self.size} elements, not one; format an element")
        return format(self.item(), spec) if spec else str(self)

    # --- values and gradients -------------------------------------------------------------------

    def numpy(self) -> Any:
        """The elements as a NumPy array in host memory; on CPU backends it shares memory with the tensor."""
        return kernels_of(self).to_numpy(self.data)

    def item(self) -> Any:
        """The only element as a Python number. Raises ValueError if there is not exactly one."""
        if self.size != 1:
            raise ValueError(f"item: shape {self.shape} has {self.size} elements, not one")
        return self.data.item()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """Called by `numpy.asarray(tensor)`. Raises RuntimeError where a gradient would be lost; use detach()."""
        _refuse_to_cut(self)
        return np.array(self.numpy(), dtype, copy=copy)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """NumPy's functions called with a tensor: ours, where there is one."""
        return importlib.import_module("tensorgrad.numpy_functions").call(function, args, kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Called by copy, deepcopy and pickle. Raises RuntimeError for the result of an op that has a gradient."""
        if self.node is not None and not isinstance(self.node, Leaf):
            raise RuntimeError(f"copy: the gradient of a copied result of {self.node.name} would be lost; use detach()")
        return super().__reduce_ex__(protocol)

    def __dlpack__(self, **options: Any) -> Any:
        """Called by `torch.from_dlpack(tensor)`, which shares its memory."""
        _refuse_to_cut(self)
        return self.data.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.data.__dlpack_device__()

    def tolist(self) -> Any:
        """The elements as nested Python lists."""
        return self.numpy().tolist()

    def detach(self) -> "Tensor":
        """A tensor of the same array that requires no gradient."""
        return Tensor.wrap(self.data)

    def backward(self, gradient: Any = None, *, retain_graph: bool = False) -> None:
        """Add the gradient of this tensor to `.grad` of every leaf that it was computed from.

        gradient: dloss/dself, of this shape; 1 by default for a tensor with one element, required otherwise.
        retain_graph: keep the saved arrays, so that backward can run again.
        Raises RuntimeError if no leaf requires a gradient, or an earlier backward has freed the graph.
        """
        if self.edge is None:
            raise RuntimeError("backward: this tensor was computed from no tensor that requires a gradient")
        gradient = initial_gradient("backward", self, gradient)
        retain = importlib.import_module("tensorgrad.retain").RetainGradients if _retaining else contextlib.nullcontext
        with retain(_retaining.values()):
            autograd.backward(self.edge, gradient, retain_graph)

    def retain_grad(self) -> None:
        """Let `backward` add this result's gradient to `.grad` as well, where it arrives on its way to the leaves."""
        if self.node is None:
            raise RuntimeError("retain_grad: this tensor was computed from no tensor that requires a gradient")
        if not isinstance(self.node, Leaf) and id(self) not in _retaining:
            self._retained = None
            _retaining[id(self)] = self

    # --- conversion -----------------------------------------------------------------------------

    def astype(self, dtype: Any) -> "Tensor":
        """The same numbers in another dtype; the gradient is converted back to this one."""
        return ops.astype(self, dtype=dtype)

    def copy(self) -> "Tensor":
        """The same elements in memory of their own; the gradient goes on to this tensor."""
        return _copy(self)

    def flatten(self, start: int = 0) -> "Tensor":
        """The elements in one dimension, or the dimensions from `start` on as one: flatten(1) keeps the first."""
        before = self.shape[: start if start >= 0 else self.ndim + start]
        return ops.reshape(self, shape=(*before, math.prod(self.shape[len(before) :])))

    def to(self, backend: str) -> "Tensor":
        """The same numbers on another backend; the gradient is moved back to this one."""
        return _to(self, backend=backend)

    # --- indexing -------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        return ops.getitem(self, key=key)

    def __setitem__(self, key: Any, value: Any) -> None:
        if self.node is not None and autograd.is_grad_enabled():
            raise RuntimeError("a tensor that requires a gradient cannot be written in place: use where, or no_grad()")
        if isinstance(value, Variable):
            if value.node is not None and autograd.is_grad_enabled():
                raise RuntimeError("a value that requires a gradient cannot be written in place: use where or concat")
            value = value.data
        self.data[ops.indexing.index_key(key)] = as_operand("setitem", value)
        note_write(self.data)

    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("len() of a tensor with no dimensions")
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ValueError(f"the truth value of a tensor of shape {self.shape} is ambiguous: use all() or any()")
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.dtype.kind not in "iu":
            raise TypeError(f"a tensor of dtype {self.dtype} cannot be an index: an integer dtype is needed")
        return int(self.item())

    # --- operators ------------------------------------------------------------------------------

    __add__, __radd__ = ops.add, _reflected(ops.add)
    __sub__, __rsub__ = ops.subtract, _reflected(ops.subtract)
    __mul__, __rmul__ = ops.multiply, _reflected(ops.multiply)
    __truediv__, __rtruediv__ = ops.divide, _reflected(ops.divide)
    __floordiv__, __rfloordiv__ = ops.floor_divide, _reflected(ops.floor_divide)
    __mod__, __rmod__ = ops.remainder, _reflected(ops.remainder)
    __pow__, __rpow__ = ops.pow, _reflected(ops.pow)
    __matmul__, __rmatmul__ = ops.matmul, _reflected(ops.matmul)
    __iadd__, __isub__ = _in_place(ops.add), _in_place(ops.subtract)
    __imul__, __itruediv__ = _in_place(ops.multiply), _in_place(ops.divide)
    __ifloordiv__, __imod__ = _in_place(ops.floor_divide), _in_place(ops.remainder)
    __ipow__, __imatmul__ = _in_place(ops.pow), _in_place(ops.matmul)
    __neg__, __abs__, __invert__ = ops.negative, ops.abs, ops.bitwise_invert
    __eq__, __ne__ = ops.equal, ops.not_equal
    __lt__, __le__, __gt__, __ge__ = ops.less, ops.less_equal, ops.greater, ops.greater_equal
    __and__ = __rand__ = ops.bitwise_and
    __or__ = __ror__ = ops.bitwise_or
    __xor__ = __rxor__ = ops.bitwise_xor

    def __pos__(self) -> "Tensor":
        return self

    # --- methods: the op of the same name, whose first operand is the tensor --------------------

    sum, mean, prod, var, std = ops.sum, ops.mean, ops.prod, ops.var, ops.std
    max, min, argmax, argmin, all, any = ops.max, ops.min, ops.argmax, ops.argmin, ops.all, ops.any
    exp, log, sqrt, square, clip = ops.exp, ops.log, ops.sqrt, ops.square, ops.clip
    tanh, sigmoid, relu, gelu, softmax = ops.tanh, ops.sigmoid, ops.relu, ops.gelu, ops.softmax
    expand_dims, squeeze, split = ops.expand_dims, ops.squeeze, ops.split
    reshape, broadcast_to = _with_tuple(ops.reshape, "shape"), _with_tuple(ops.broadcast_to, "shape")
    permute_dims = _with_tuple(ops.permute_dims, "axes")

    @property
    def T(self) -> Any:
        """The transpose of a matrix: (m, n) -> (n, m)."""
        if self.ndim != 2:
            raise ValueError(f"T: shape {self.shape} is not that of a matrix; use mT or permute_dims")
        return ops.matrix_transpose(self)

    @property
    def mT(self) -> Any:
        """x with its last two axes exchanged: (..., m, n) -> (..., n, m)."""
        return ops.matrix_transpose(self)


_retaining: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()  # those with retain_grad, by id


@op
def _copy(k: Backend, x: Array) -> tuple[Array, Any]:
    return x.copy(), lambda dy: dy


@op
def _to(k: Backend, x: Array, *, backend: str) -> tuple[Array, Any]:
    target = load(backend)
    return target.asarray(k.to_numpy(x)), lambda dy: k.asarray(target.to_numpy(dy))


def initial_gradient(name: str, output: Tensor, gradient: Any) -> Array:
    """The gradient of an output with which a backward begins, as an array: 1 where None is given for one element.

    Raises RuntimeError where None is given for several elements, ValueError for a gradient of another shape.
    """
    if gradient is None and output.size != 1:
        raise RuntimeError(f"{name}: shape {output.shape} is not a scalar: pass a gradient of that shape")
    k = kernels_of(output)
    if gradient is None:
        return k.xp.ones(output.shape, output.dtype)
    array = k.asarray(gradient.data if isinstance(gradient, Variable) else gradient)
    if array.shape != output.shape:
        raise ValueError(f"{name}: gradient of shape {array.shape} for a tensor of shape {output.shape}")
    return array


def kernels_of(tensor: Tensor) -> Backend:
    """The backend whose kernels work on a tensor's array."""
    return backend_of("tensor", [tensor.data])


def _as_array(data: Any, dtype: Any) -> Array:
    if isinstance(data, Variable):
        _refuse_to_cut(data)
        data = data.data
    array = as_operand("Tensor", np.asarray(data) if isinstance(data, int | float) else data)
    if dtype is not None:
        dtype = real_dtype("Tensor", dtype)
    elif not hasattr(data, "dtype") and array.dtype == np.float64:
        dtype = np.float32  # Python floats become float32, as in PyTorch; arrays keep their dtype
    k = get_backend() if isinstance(array, np.ndarray | np.generic) else backend_of("Tensor", [array])
    return k.asarray(array, dtype)


def _refuse_to_cut(x: Variable) -> None:
    """Raise RuntimeError where an array without the tape is taken of a tensor that requires a gradient."""
    if x.edge is not None and autograd.is_grad_enabled():
        raise RuntimeError(
            "Tensor: an array of a tensor that requires a gradient would have none: use a function of tensorgrad, such "
            "as asarray, stack or concat, or detach() it"
        )
