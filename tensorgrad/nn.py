"""Modules: the parameters of a layer or a model, and the computation that uses them."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from tensorgrad import ops
from tensorgrad.autograd import note_write
from tensorgrad.autograd.mode import mode
from tensorgrad.backend import Array, backend_of
from tensorgrad.backend.arrays import is_floating
from tensorgrad.creation import normal, ones, uniform, zeros
from tensorgrad.tensor import Tensor


class StateDictError(ValueError):
    """A state_dict does not fit its module; the message lists every entry that is missing, unexpected or misshapen."""


class Module:
    """Base class of layers and models. Its parameters are all tensors in its attributes.

    Tensors are also found in attributes that are modules, lists or dicts, however deeply nested. A subclass sets
    attributes and defines `forward`. The name of a parameter is the path to it: "h.0.attn.c_attn.weight".
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

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) for every parameter; a shared tensor comes once, under its first name."""
        seen: set[int] = set()
        for name, value in walk("", self):
            if isinstance(value, Tensor) and id(value) not in seen:
                seen.add(id(value))
                yield name, value

    def parameters(self) -> Iterator[Tensor]:
        """Every parameter, shared ones once."""
        return (tensor for _, tensor in self.named_parameters())

    def modules(self) -> Iterator["Module"]:
        """This module and every module inside it."""
        return (value for _, value in walk("", self) if isinstance(value, Module))

    def num_params(self) -> int:
        """The number of elements of all parameters."""
        return sum(p.size for p in self.parameters())

    def train(self, mode: bool = True) -> "Module":
        """Switch to training mode, in which dropout is applied."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> "Module":
        """Switch to evaluation mode, in which dropout is not applied."""
        return self.train(False)

    def astype(self, dtype: Any) -> "Module":
        """Convert every floating parameter in place and drop its gradient. Create optimisers afterwards."""
        for p in self.parameters():
            if is_floating(p.dtype):
                requires_grad, p.requires_grad = p.requires_grad, False
                p.data = p.data.astype(dtype)
                p.requires_grad = requires_grad
        return self

    def state_dict(self) -> dict[str, Array]:
        """name -> array for every parameter; the arrays are not copied."""
        return {name: p.data for name, p in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy arrays into the parameters. Raises StateDictError, before any change, if names or shapes do not fit."""
        parameters = dict(self.named_parameters())
        problems = [f"missing {name}" for name in parameters if name not in state]
        problems += [f"unexpected {name}" for name in state if name not in parameters]
        problems += [
            f"{name} has shape {tuple(state[name].shape)}, {p.shape} is needed"
            for name, p in parameters.items()
            if name in state and tuple(state[name].shape) != p.shape
        ]
        if problems:
            raise StateDictError(f"{type(self).__name__}: " + "; ".join(problems))
        for name, p in parameters.items():
            value = state[name].data if isinstance(state[name], Tensor) else state[name]
            p.data[...] = backend_of("load_state_dict", [p.data]).asarray(value)
            note_write(p.data)


def walk(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield (path, object) for every Tensor and Module reachable through attributes, lists and dicts."""
    if isinstance(value, Tensor):
        yield name, value
        return
    inside: Any = ()
    if isinstance(value, Module):
        yield name, value
        inside = vars(value).items()
    elif isinstance(value, dict):
        inside = value.items()
    elif isinstance(value, list | tuple):
        inside = enumerate(value)
    for key, part in inside:
        yield from walk(f"{name}.{key}" if name else str(key), part)


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
        return ops.dropout(x, p=self.p, training=self.training)
