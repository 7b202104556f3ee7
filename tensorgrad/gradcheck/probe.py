"""A function at a point: called as often as needed, with gradients pulled back through what it recorded."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tensorgrad.autograd import no_grad, op
from tensorgrad.backend import Array, Backend
from tensorgrad.gradcheck import GradcheckError
from tensorgrad.random import default_generator
from tensorgrad.tensor import Tensor, kernels_of


class Recorded:
    """One call on the tape: the tensors that gradients are wanted of, and the results."""

    def __init__(self, k: Backend, leaves: list[Tensor], outputs: list[Tensor]) -> None:
        self.k, self.leaves, self.outputs = k, leaves, outputs
        self.observer: AbstractContextManager[Any] = nullcontext()  # of every backward

    @property
    def arrays(self) -> list[Array]:
        """The results, on the host."""
        return [self.k.to_numpy(y.data) for y in self.outputs]

    def pull(self, dys: Sequence[Array]) -> list[Array]:
        """Gradients at the leaves, on the host, for one dy (an array of the backend) a result. Keeps the graph."""
        for leaf in self.leaves:
            leaf.grad = None
        # a view each, so that the tape knows that it must not add to them in place
        root = _hand_out(*self.outputs, gradients=tuple(dy[...] for dy in dys))
        try:
            with self.observer:
                root.backward(retain_graph=True)
        except RuntimeError as error:  # the tape refuses it before an observer sees it
            raise GradcheckError(str(error)) from error
        grads = [self.k.xp.zeros_like(leaf.data) if leaf.grad is None else leaf.grad for leaf in self.leaves]
        return [self.k.to_numpy(grad) for grad in grads]


@op
def _hand_out(k: Backend, *outputs: Array, gradients: tuple[Array, ...]) -> tuple[Array, Any]:
    """A root above all results, whose backward hands each of them the gradient made for it."""
    return k.xp.zeros(()), lambda dy: gradients


class Probe:
    """`fn` at `inputs`, a pure function: the default generator is set back before every call.

    Tensors that require a gradient are `places` in the inputs, their arrays `arrays`. Raises TypeError where there are
    none, or the result is not one tensor or a list of them, floating.
    """

    def __init__(self, fn: Callable[..., Any], inputs: Sequence[Any]) -> None:
        self.fn, self.inputs = fn, list(inputs)
        self.places = [i for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.requires_grad]
        if not self.places:
            raise TypeError("gradcheck: no input is a Tensor with requires_grad=True")
        self.arrays: list[Array] = [inputs[i].data for i in self.places]
        self.k = kernels_of(inputs[self.places[0]])
        self.random = default_generator.state_dict()

    def reset_random(self) -> None:
        """Set the default generator back to where it was when the probe was made."""
        default_generator.load_state_dict(self.random)

    def record(self, arrays: Sequence[Array] | None = None, wanted: Sequence[int] | None = None) -> Recorded:
        """Call with other arrays (of the backend) in the places, and gradients wanted in some of them only."""
        wanted = range(len(self.places)) if wanted is None else wanted
        leaves = [Tensor(x, requires_grad=i in wanted) for i, x in enumerate(arrays or self.arrays)]
        outputs = self._call(leaves)
        if all(y.node is None for y in outputs):
            raise GradcheckError("no result requires a gradient, though an input does: the tape was cut")
        return Recorded(self.k, [leaves[i] for i in wanted], outputs)

    def evaluate(self, arrays: Sequence[Array]) -> list[Array]:
        """The results (on the host) for other arrays (on the host) in the places; nothing is recorded."""
        with no_grad():
            outputs = self._call([Tensor(self.k.asarray(x)) for x in arrays])
        return [self.k.to_numpy(y.data) for y in outputs]

    def _call(self, tensors: list[Tensor]) -> list[Tensor]:
        self.reset_random()
        given = list(self.inputs)
        for place, tensor in zip(self.places, tensors, strict=True):
            given[place] = tensor
        return _as_list(self.fn(*given))


def _as_list(result: Any) -> list[Tensor]:
    outputs = list(result) if isinstance(result, list | tuple) else [result]
    for i, y in enumerate(outputs):
        if not isinstance(y, Tensor):
            raise TypeError(f"gradcheck: the result is {type(y).__name__}, not a Tensor or a list of Tensors")
        if y.dtype.kind in "biu":
            raise TypeError(f"gradcheck: result {i} is {y.dtype}, which has no gradient")
    if not outputs:
        raise TypeError("gradcheck: the result is an empty list")
    return outputs
