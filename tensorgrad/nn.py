"""Modules: the parameters of a layer or a model, and the computation that uses them."""

import importlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tensorgrad import ops
from tensorgrad.autograd import note_write
from tensorgrad.autograd.mode import mode
from tensorgrad.backend import Array, backend_of
from tensorgrad.backend.arrays import Quantized, is_floating, real_dtype
from tensorgrad.creation import normal, ones, uniform, zeros
from tensorgrad.tensor import Tensor

LATER = ("GELU", "ModuleList", "ReLU", "Sequential", "Tanh")  # imported when they are first used


def __getattr__(name: str) -> Any:
    if name in LATER:
        return getattr(importlib.import_module("tensorgrad.containers"), name)
    known = [*globals(), *LATER]
    raise AttributeError(importlib.import_module("tensorgrad.hints").missing("tensorgrad.nn", name, known, dir(ops)))


class StateDictError(ValueError):
    """A state_dict does not fit its module; the message lists every entry that is missing, unexpected or misshapen."""


class Module:
    """Base class of layers and models. A subclass sets attributes and defines `forward`.

    Its parameters are the tensors in its attributes that require a gradient, or did before they were frozen; its
    buffers are the other tensors that were made as such, not computed by an op, and what is later assigned to the same
    attribute. Both are also found in attributes that are modules, lists or dicts, however deeply nested. The name of
    one is the path to it: "h.0.attn.c_attn.weight".
    """

    training = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        observers = mode.observers
        for observer in observers:
            observer.enter_module(self)
        try:
            return self.forward(*args, **kwargs)
        finally:
            for observer in observers:
                observer.leave_module(self)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the module's result. Subclasses override it."""
        raise TypeError(f"{type(self).__name__} defines no forward")

    def __getattr__(self, name: str) -> Any:  # called for names that are not there
        if name.startswith("_"):
            raise AttributeError(name)
        hints = importlib.import_module("tensorgrad.hints")
        raise AttributeError(hints.missing(type(self).__name__, name, dir(self), methods=dir(Tensor)))

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor) and value.role is None and self.__dict__.get(name) is not None:
            before = self.__dict__[name]
            if isinstance(before, Tensor) and before.role == "buffer":  # a running mean, say
                value.role = "buffer"
        object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return importlib.import_module("tensorgrad.describe").describe(self)

    def _repr_html_(self) -> str:
        return importlib.import_module("tensorgrad.describe").tree(self)

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) for every parameter; a shared tensor comes once, under its first name.

        Raises ValueError for two that have the same name.
        """
        return ((name, x) for name, x in self._named_tensors() if x.role == "parameter")

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """The same for every buffer: a tensor that is saved with the parameters and not trained."""
        return ((name, x) for name, x in self._named_tensors() if x.role == "buffer")

    def _named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        seen: set[int] = set()
        names: set[str] = set()
        for name, value in walk("", self):
            if isinstance(value, Tensor) and value.role and id(value) not in seen:
                if name in names:
                    raise ValueError(
                        f"{type(self).__name__}: two tensors are named {name!r}: choose keys that differ as text"
                    )
                seen.add(id(value))
                names.add(name)
                yield name, value

    def parameters(self) -> Iterator[Tensor]:
        """Every parameter, shared ones once."""
        return (tensor for _, tensor in self.named_parameters())

    def modules(self) -> Iterator["Module"]:
        """This module and every module inside it."""
        return (value for _, value in walk("", self) if isinstance(value, Module))

    def num_params(self) -> int:
        """The number of elements of all parameters and quantised weights."""
        return sum(x.size for _, x in self._named_tensors() if x.role == "parameter" or isinstance(x.data, Quantized))

    def train(self, mode: bool = True) -> "Module":
        """Switch to training mode, in which dropout is applied."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> "Module":
        """Switch to evaluation mode, in which dropout is not applied."""
        return self.train(False)

    def astype(self, dtype: Any) -> "Module":
        """Convert all floating parameters and buffers in place, without gradients. Create optimisers afterwards."""
        for _, p in self._named_tensors():
            if is_floating(p.dtype):
                requires_grad, p.requires_grad = p.requires_grad, False
                p.data = p.data.astype(real_dtype("astype", dtype))
                p.requires_grad = requires_grad
        return self

    def state_dict(self) -> dict[str, Array]:
        """name -> array for every parameter and buffer; the arrays are not copied."""
        return {name: p.data for name, p in self._named_tensors()}

    def load_state_dict(self, state: Mapping[str, Any], *, assign: bool = False) -> None:
        """Copy arrays into the parameters and buffers; with assign, they become the tensors' own where the dtype fits.

        A quantised one always does, and its tensor is a buffer from then on: quantised weights have no gradient.
        Raises StateDictError, before any change, if names, shapes or dtypes do not fit.
        """
        own = dict(self._named_tensors())
        problems = [f"missing {name}" for name in own if name not in state]
        problems += [f"unexpected {name}" for name in state if name not in own]
        arrays = {name: _array(state[name]) for name in own if name in state}
        for name, array in arrays.items():
            if tuple(array.shape) != own[name].shape:
                problems.append(f"{name} has shape {tuple(array.shape)}, {own[name].shape} is needed")
            if isinstance(array, Quantized):
                continue
            if array.dtype.kind not in "biu" and not is_floating(array.dtype):
                problems.append(f"{name} has dtype {array.dtype}, real numbers are needed")
            if not assign and not getattr(own[name].data.flags, "writeable", True):
                problems.append(f"{name} cannot be written: its array is read-only")
        if problems:
            raise StateDictError(f"{type(self).__name__}: " + "; ".join(problems))
        for name, p in own.items():
            if isinstance(arrays[name], Quantized):
                p.requires_grad, p.data, p.role = False, arrays[name], "buffer"
                continue
            array = backend_of("load_state_dict", [p.data]).asarray(arrays[name])
            if assign:
                requires_grad, p.requires_grad = p.requires_grad, False
                p.data = array.astype(p.dtype, order="C", copy=not getattr(array.flags, "writeable", True))
                p.requires_grad = requires_grad
            else:
                p.data[...] = array
                note_write(p.data)


def _array(value: Any) -> Array:
    value = value.data if isinstance(value, Tensor) else value
    return value if hasattr(getattr(value, "dtype", None), "kind") else np.asarray(value)


def walk(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield (path, object) for every Tensor and Module reachable through attributes, lists and dicts."""
    for path, found in _found(name, value):
        yield path, found
        if isinstance(found, Module):
            for key, part in inside(found):
                yield from walk(f"{path}.{key}" if path else key, part)


def inside(module: Module) -> Iterator[tuple[str, Any]]:
    """(path, object) for every Tensor and Module of a module, without those inside another module."""
    for key, part in vars(module).items():
        yield from _found(key, part)
    if isinstance(module, list):
        for i, part in enumerate(module):
            yield from _found(str(i), part)


def _found(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Tensor | Module):
        yield name, value
        return
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, part in items:
        yield from _found(f"{name}.{key}" if name else str(key), part)


def Parameter(data: Any, requires_grad: bool = True) -> Tensor:
    """A tensor that a module takes for a parameter, even where it requires no gradient: then it is frozen."""
    x = Tensor(data, requires_grad)
    x.role = "parameter"
    return x


class Linear(Module):
    """x (..., n_in) @ weight (n_out, n_in)^T + bias (n_out) -> (..., n_out).

    Weight and bias are initialised uniformly in [-1, 1] / sqrt(n_in), as in PyTorch; with `std`, weight from
    normal(0, std) and bias with 0.
    """

    def __init__(self, n_in: int, n_out: int, bias: bool = True, std: float | None = None) -> None:
        bound = 1 / math.sqrt(n_in) if n_in else 0.0
        if std is None:
            self.weight = uniform((n_out, n_in), -bound, bound, requires_grad=True)
            self.bias = uniform((n_out,), -bound, bound, requires_grad=True) if bias else None
        else:
            self.weight = normal((n_out, n_in), std=std, requires_grad=True)
            self.bias = zeros(n_out, requires_grad=True) if bias else None

    def forward(self, x: Tensor) -> Any:
        return ops.linear(x, self.weight, self.bias)


class Embedding(Module):
    """Rows of weight (n_entries, n_embd) by index: indices (...) -> (..., n_embd). Initialised from normal(0, std)."""

    def __init__(self, n_entries: int, n_embd: int, std: float = 1.0) -> None:
        self.weight = normal((n_entries, n_embd), std=std, requires_grad=True)

    def forward(self, indices: Any) -> Any:
        return ops.embedding(self.weight, indices)


class LayerNorm(Module):
    """Rows (..., n) scaled to mean 0 and variance 1, times weight (n), initially 1, plus bias (n), initially 0."""

    def __init__(self, n: int, bias: bool = True, eps: float = 1e-5) -> None:
        self.weight = ones(n, requires_grad=True)
        self.bias = zeros(n, requires_grad=True) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Any:
        return ops.layer_norm(x, self.weight, self.bias, eps=self.eps)

    def add(self, x: Tensor, residual: Tensor) -> Any:
        """[x + residual, self(x + residual)]. See `tensorgrad.add_layer_norm`."""
        return ops.add_layer_norm(x, residual, self.weight, self.bias, eps=self.eps)


class RMSNorm(Module):
    """Rows (..., n) scaled to mean square 1, times weight (n), initially 1."""

    def __init__(self, n: int, eps: float = 1e-6) -> None:
        self.weight = ones(n, requires_grad=True)
        self.eps = eps

    def forward(self, x: Tensor) -> Any:
        return ops.rms_norm(x, self.weight, eps=self.eps)

    def add(self, x: Tensor, residual: Tensor) -> Any:
        """[x + residual, self(x + residual)]. See `tensorgrad.add_rms_norm`."""
        return ops.add_rms_norm(x, residual, self.weight, eps=self.eps)


class Dropout(Module):
    """In training mode, 0 with probability p and x / (1 - p) otherwise; in evaluation mode, x."""

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"Dropout: probability {p} is not between 0 and 1")
        self.p = p

    def forward(self, x: Tensor) -> Any:
        return ops.dropout(x, p=self.p) if self.training and self.p else x
