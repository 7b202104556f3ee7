"""The arguments of an op: which are operands and which options, by position or by name."""

import inspect
import sys
from collections.abc import Callable
from typing import Any

from tensorgrad.autograd.mode import mode
from tensorgrad.calls import bind


class Arguments:
    """What `fn(k, *operands, **options)` takes but `ctx`: positional parameters are operands, keyword-only options."""

    def __init__(self, name: str, fn: Callable[..., Any]) -> None:
        parameters = list(inspect.signature(fn).parameters.values())[1:]
        self.name = name
        self.takes_ctx = any(p.name == "ctx" for p in parameters)
        self.signature = inspect.Signature([p for p in parameters if p.name != "ctx"])
        parameters = list(self.signature.parameters.values())
        self.is_variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        self.operands = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}  # their defaults
        self.n_operands = sys.maxsize if self.is_variadic else len(self.operands)
        self.options = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        if not self.is_variadic:  # in a call, options may stand behind the operands
            self._by_position = inspect.Signature([p.replace(kind=p.POSITIONAL_OR_KEYWORD) for p in parameters])

    def sort(self, positional: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return operands and options. Raises TypeError if they do not fit, or an option requires a gradient."""
        if len(positional) > self.n_operands or not named.keys() <= self.options:
            named = bind(self.name, self._by_position, positional, named)
            positional = tuple([named.pop(name, default) for name, default in self.operands.items()])
        for name, value in named.items():
            if getattr(value, "edge", None) is not None and mode.recording:
                raise TypeError(f"{self.name}: {name} has no gradient, but requires one: give its detach()")
        return positional, named
