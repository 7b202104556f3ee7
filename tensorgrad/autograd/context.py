"""What an op can ask of the tape: which gradients are needed, and operands that are cheaper to recompute than to keep.

A layer norm's result is as large as its operand, and computing it takes a tenth of the time of the product after it. So
`layer_norm` offers to recompute it, and `linear`, which needs it in backward, saves the offer in place of the array.
"""

from collections.abc import Callable, Sequence
from typing import Any

from tensorgrad.backend import Array, Backend


class Recomputable:
    """A backward function, with `recompute`, which computes output number `slot` of the op again."""

    def __init__(self, backward: Callable[[Any], Any], slot: int, recompute: Callable[[], Array]) -> None:
        self.backward, self.slot, self.recompute = backward, slot, recompute

    def __call__(self, dy: Any) -> Any:
        return self.backward(dy)


class Context:
    """The argument `ctx` of an op that names one.

    needs_grad: for each operand that the op can take, whether its gradient will be asked for.
    """

    def __init__(self, arrays: list[Any], edges: Sequence[Any], n_operands: int, recording: bool) -> None:
        self._arrays, self._edges = arrays, edges
        self.needs_grad = (*[edge is not None and recording for edge in edges], *[False] * (n_operands - len(edges)))

    def saved(self, i: int) -> Callable[[], Array]:
        """Return a function that gives operand i in backward: saved, or recomputed where its own op offers that."""
        edge, array = self._edges[i], self._arrays[i]
        offer = None if edge is None else edge[0].backward
        return offer.recompute if type(offer) is Recomputable and offer.slot == edge[1] else lambda: array

    def recomputable(
        self, k: Backend, backward: Callable[[Any], Any], output: Array, recompute: Callable[[], Array], slot: int = 0
    ) -> Callable[[Any], Any]:
        """Return `backward` with the offer to recompute `output`, output number `slot`, if that is large on k."""
        return Recomputable(backward, slot, recompute) if output.nbytes >= k.min_recompute_bytes else backward
