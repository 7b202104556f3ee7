"""A fused op names the composition of plain ops that computes the same."""

from collections.abc import Callable
from typing import Any, TypeVar

Op = TypeVar("Op", bound=Callable[..., Any])


def fused(composition: Callable[..., Any]) -> Callable[[Op], Op]:
    """Mark an op as the fused form of `composition`, of the same parameters, which gradcheck compares it with."""

    def mark(op: Op) -> Op:
        op.composition = composition  # type: ignore[attr-defined]
        return op

    return mark
