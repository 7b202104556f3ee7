"""Gradients of results, which backward forgets: it keeps those of tensors on which `retain_grad` was called."""

from collections.abc import Iterable
from typing import Any

from tensorgrad.autograd import Node, Observer
from tensorgrad.backend import Array


class RetainGradients(Observer):
    """During backward, adds what arrives at each of the tensors to its gradient."""

    def __init__(self, tensors: Iterable[Any]) -> None:
        self.tensors = {x.edge: x for x in tensors}

    def arrived(self, node: Node, dys: list[Array | None]) -> None:
        for slot, dy in enumerate(dys):
            x = self.tensors.get((node, slot))
            if x is not None and dy is not None:
                x._retained = dy.copy() if x._retained is None else x._retained + dy
