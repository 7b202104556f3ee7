"""Activation checkpointing: less memory for more time, by computing a part of the graph again in backward."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tensorgrad.autograd import Node, Output, Rerun, Variable, enable_grad, is_grad_enabled, next_birth, older_parents
from tensorgrad.random import default_generator


def checkpoint(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """function(*args, **kwargs), of which nothing is kept for backward but the arguments: backward runs it once more.

    Results and gradients are those of an ordinary call, bit for bit, dropout included, and every tensor that the
    function uses gets its gradient, be it an argument or a parameter of its own. The function returns a Tensor, or a
    tuple, list or dict of them and of anything else; it may checkpoint parts of itself. Where nothing is recorded this
    is an ordinary call. Raises RuntimeError in backward where the second run is not the first: other shapes, other
    random draws, or an input that was overwritten in between. After Chen et al. 2016, arXiv:1604.06174.
    """
    if not is_grad_enabled():
        return function(*args, **kwargs)
    before, birth = default_generator.state_dict(), next_birth()
    results = function(*args, **kwargs)  # recorded, to learn which results have gradients, and at once forgotten
    after = default_generator.state_dict()
    wanted = [x for x in _variables(results) if x.node is not None]
    if not wanted:
        return results
    inputs = tuple(x.data for x in _variables((args, kwargs)))
    again = _Again(function, args, kwargs, before, after, _described(wanted))
    parents = older_parents([x.node for x in wanted if x.node is not None], birth)
    origin = Rerun("checkpoint", [x.data for x in wanted], parents, (again, *inputs))
    return _replaced(results, (Output(origin, x.data, place) for place, x in enumerate(wanted)))


@dataclass(frozen=True)
class _Again:
    """The second run: called, it returns the nodes of the results that have gradients."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    before: dict[str, Any]  # the random counters when the first run began, and when it was over
    after: dict[str, Any]
    expected: str

    def __call__(self) -> list[Node]:
        now = default_generator.state_dict()
        default_generator.load_state_dict(self.before)
        try:
            with enable_grad():
                results = self.function(*self.args, **self.kwargs)
            after = default_generator.state_dict()
        finally:
            default_generator.load_state_dict(now)
        wanted = [x for x in _variables(results) if x.node is not None]
        if _described(wanted) != self.expected:
            raise RuntimeError(
                f"checkpoint: the function gave {self.expected}, and run again in backward {_described(wanted)}"
            )
        if after != self.after:
            raise RuntimeError(
                "checkpoint: run again in backward, the function drew other random numbers than at first; "
                "is its module still in the same mode, training or evaluation?"
            )
        return [x.node for x in wanted if x.node is not None]


def _variables(value: Any) -> Iterator[Variable]:
    """Every tensor in tuples, lists and dicts, in their order."""
    if isinstance(value, Variable):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _variables(part)
    elif isinstance(value, dict):
        yield from _variables(list(value.values()))


def _replaced(value: Any, nodes: Iterator[Node]) -> Any:
    """The same structure with tensors of the same arrays; those that have gradients belong to `nodes`, in order."""
    if isinstance(value, Variable):
        if value.node is None:
            return value
        tensor = type(value).__new__(type(value))
        tensor.data, tensor.node = value.data, next(nodes)
        return tensor
    if isinstance(value, dict):
        return {key: _replaced(part, nodes) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named one takes its parts one by one
        return type(value)(*(_replaced(part, nodes) for part in value))
    if isinstance(value, tuple | list):
        return type(value)(_replaced(part, nodes) for part in value)
    return value


def _described(results: list[Any]) -> str:
    return ", ".join(f"{x.data.dtype} {x.data.shape}" for x in results) or "nothing that has a gradient"
