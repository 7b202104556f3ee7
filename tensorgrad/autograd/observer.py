"""The one seam of the tape: an Observer is told of every op, gradient and module call of its thread.

Whatever watches the tape is an observer: to find nans, count, profile, exchange gradients, check the ops themselves.
"""

from typing import TYPE_CHECKING, Any, Self

from tensorgrad.autograd.mode import mode
from tensorgrad.backend import Array, Backend

if TYPE_CHECKING:
    from tensorgrad.autograd.tape import Edge, Node


class Observer:
    """In a `with`, it is told of all that this thread computes. A subclass overrides the events that it wants."""

    def __enter__(self) -> Self:
        mode.observers = (*mode.observers, self)
        return self

    def __exit__(self, *error: object) -> None:
        last = len(mode.observers) - 1 - mode.observers[::-1].index(self)
        mode.observers = mode.observers[:last] + mode.observers[last + 1 :]

    def before_op(self, name: str, k: Backend, arrays: list[Any]) -> tuple[Backend, list[Any]]:
        """An op is about to run. Returns the backend and the operands that it runs with."""
        return k, arrays

    def after_op(self, name: str, operands: tuple[Any, ...], output: Any, op: Any, options: dict[str, Any]) -> None:
        """op(*operands, **options) has returned `output`, a tensor or a list of tensors."""

    def enter_module(self, module: Any) -> None:
        """What follows is computed by this module."""

    def leave_module(self, module: Any) -> None:
        """The module has returned, or raised."""

    def arrived(self, node: "Node", dys: list[Array | None]) -> None:
        """All gradients of a node's outputs are here, None for an unused output; the node's backward runs next."""

    def sent(self, node: "Node", edge: "Edge", gradient: Any, dys: list[Array | None]) -> None:
        """The node's backward has computed the gradient of one operand, which is about to be added at `edge`."""

    def added(self, node: "Node | None", edge: "Edge") -> None:
        """It was added to what had arrived at `edge` before. node None: it is the gradient given to backward."""

    def finished(self) -> None:
        """Backward has visited every node."""
