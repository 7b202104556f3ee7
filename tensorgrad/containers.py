"""Modules of modules, and activations as modules: `nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))`."""

from collections.abc import Callable
from typing import Any, Literal

from tensorgrad import ops
from tensorgrad.nn import Module
from tensorgrad.tensor import Tensor


class ModuleList(Module, list[Any]):
    """A list of modules that is a module. A list in an attribute of a module does as well."""

    __hash__ = object.__hash__  # type: ignore[assignment]


class Sequential(ModuleList):
    """Modules, or other functions of one tensor, each applied to the result of the one before."""

    def __init__(self, *layers: Callable[[Any], Any]) -> None:
        super().__init__(layers)

    def forward(self, x: Any) -> Any:
        for layer in self:
            x = layer(x)
        return x


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Tensor) -> Any:
        return ops.relu(x)


class Tanh(Module):
    """The hyperbolic tangent."""

    def forward(self, x: Tensor) -> Any:
        return ops.tanh(x)


class GELU(Module):
    """x Phi(x). See `tensorgrad.gelu`."""

    def __init__(self, approximate: Literal["none", "tanh"] = "none") -> None:
        self.approximate = approximate

    def forward(self, x: Tensor) -> Any:
        return ops.gelu(x, approximate=self.approximate)
