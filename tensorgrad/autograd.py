"""The tape: which op made which array, and how gradients flow back along it.

An op is a pure function over arrays that returns its result and the way back:

    @op
    def exp(k, x):
        y = k.xp.exp(x)
        return y, lambda dy: dy * y

Recording makes one `Node` a result. Edges go from node to node, never to a tensor, so an intermediate that
nobody keeps is freed at once. What backward needs is what the returned function closes over, and nothing else.
"""

import collections
import functools
import heapq
import inspect
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ContextDecorator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from tensorgrad.backend import Array, Backend, backend_of

Backward = Callable[[Any], Any]
Function = TypeVar("Function", bound=Callable[..., Any])
MADE_AGAIN = 2**20  # bytes: a smaller result is kept, where making it again would take longer than it is worth
next_birth = itertools.count(1).__next__  # a parent is always born before its children


class Variable:
    """What the tape knows of a tensor: its array, and the node its gradient flows to (None: no gradient)."""

    __slots__ = ("data", "node")

    data: Array
    node: "Node | None"


class Node:
    """One recorded op.

    parents: the node of every operand, None where no gradient is wanted.
    backward: one function from dy to the gradients of all operands, or a tuple of functions, one an operand;
    None once freed.
    again: a function that makes the result once more from what backward saved; None where there is none.
    """

    __slots__ = ("again", "backward", "birth", "dtype", "name", "parents", "shape")

    def __init__(
        self,
        name: str,
        array: Array,
        parents: tuple["Node | None", ...],
        backward: "Backward | tuple[Backward | None, ...] | None",
    ) -> None:
        self.birth = next_birth()
        self.name = name
        self.shape: tuple[int, ...] = array.shape
        self.dtype = array.dtype
        self.parents = parents
        self.backward = backward
        self.again: Callable[[], Array] | None = None


class Leaf(Node):
    """Where gradients end: holds the gradient of a tensor that the user made."""

    __slots__ = ("grad",)

    def __init__(self, array: Array) -> None:
        super().__init__("leaf", array, (), None)
        self.grad: Array | None = None


class Output(Node):
    """One result of an op that has several: puts its gradient in its place in the list the op's node receives."""

    __slots__ = ("place",)

    def __init__(self, origin: Node, array: Array, place: int) -> None:
        super().__init__(origin.name, array, (origin,), None)
        self.place = place


class Several(Node):
    """An op with several results: its dy is a list, with None for results that nothing used."""

    __slots__ = ("count",)

    def __init__(
        self,
        name: str,
        arrays: list[Array],
        parents: tuple[Node | None, ...],
        backward: "Backward | tuple[Backward | None, ...]",
    ) -> None:
        super().__init__(name, arrays[0], parents, backward)
        self.count = len(arrays)


class Rerun(Several):
    """Results that are made again in backward (see `tensorgrad.checkpoint`).

    backward: first a function that makes them once more, recorded, and returns their nodes, then the arrays that it
    starts from. The gradients that arrive here go on from those nodes. They are the youngest of all, so they are popped
    next, and what they were made of gets its gradients when and in the order in which it would have had them.
    parents: what was there before and gets a gradient in the end, once for every use.
    since: when it was first made, a birth number; inside of another that is made again, that one's.
    """

    __slots__ = ("since",)

    def __init__(
        self, name: str, arrays: list[Array], parents: tuple[Node | None, ...], backward: tuple[Any, ...]
    ) -> None:
        super().__init__(name, arrays, parents, backward)
        self.since: int = _mode.since or self.birth


# --- recording ----------------------------------------------------------------------------------

watcher: Any = None  # a `detect_anomaly` that looks at every result and gradient; None outside of its block


class _Mode(threading.local):
    recording = True
    since = 0  # when what is now made again in backward was made at first; 0 outside of that


_mode = _Mode()


class _SetRecording(ContextDecorator):
    recording: bool

    def __init__(self) -> None:
        self._before: list[bool] = []  # one for every block that has been entered and not left

    def __enter__(self) -> None:
        self._before.append(_mode.recording)
        _mode.recording = self.recording

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _mode.recording = self._before.pop()

    def __call__(self, fn: Function) -> Function:
        if inspect.isgeneratorfunction(fn):
            raise TypeError(f"{type(self).__name__}: {fn.__name__} is a generator: its body runs later, between yields")
        return super().__call__(fn)

    def _recreate_cm(self) -> "_SetRecording":
        return type(self)()  # a decorated function may run on several threads: every call remembers its own state


class no_grad(_SetRecording):
    """Record nothing and keep nothing for backward; a context manager and a decorator."""

    recording = False


class enable_grad(_SetRecording):
    """Record again inside `no_grad`; a context manager and a decorator."""

    recording = True


def is_grad_enabled() -> bool:
    """Whether ops are recorded on this thread."""
    return _mode.recording


def op(fn: Callable[..., tuple[Any, ...]]) -> Callable[..., Any]:
    """Turn `fn(k, *operand arrays, **options) -> (array, backward)` into a function over tensors.

    `k` is the backend of the operands' arrays. Operands are tensors, arrays or Python scalars, at least one of them a
    tensor; further positional arguments are taken as the options in the order in which `fn` names them.
    A list of arrays as the result makes a list of tensors. `backward` None says that the op has no gradient.
    What backward returns is dy itself, a view, or an array that it made and hands to nobody else: never a saved one.
    Two options are for the tape to give. `needs_grad`: whether each operand will be asked for a gradient.
    `saved`: for each a function that gives its array in backward, for an `fn` that saves those in place of the arrays:
    what another op can make again in little time is then not kept. Such an op returns a third, how: see `Node.again`.
    """
    name = fn.__name__.lstrip("_")  # `_concat` is the op under the function `concat`
    from_tape = {"needs_grad", "saved"} & inspect.signature(fn).parameters.keys()
    parameters = [p for p in inspect.signature(fn).parameters.values() if p.name not in from_tape][1:]
    is_told, saves = "needs_grad" in from_tape, "saved" in from_tape
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    n_operands = sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    option_names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    operand_defaults = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}

    @functools.wraps(fn)
    def apply(*operands: Any, **options: Any) -> Any:
        if not variadic and (len(operands) > n_operands or (options and not options.keys() <= set(option_names))):
            operands, options = _arrange(name, operand_defaults, option_names, operands, options)
        arrays = []
        parents = []
        again: list[Any]
        kind = None
        wanted = weak = False
        for x in operands:
            if isinstance(x, Variable):
                kind = type(x)
                arrays.append(x.data)
                parents.append(x.node)
                if x.node is not None:
                    wanted = True
            else:
                arrays.append(x)
                parents.append(None)
                weak |= type(x) is float
        if kind is None:
            raise TypeError(f"{name}: no operand is a Tensor, got {', '.join(type(x).__name__ for x in operands)}")
        k = backend_of(name, arrays)
        if weak:
            arrays = k.weak_scalars(arrays)
        if is_told:
            asked = [node is not None and _mode.recording for node in parents]
            options["needs_grad"] = (*asked, *[False] * (n_operands - len(asked)))
        if saves:
            options["saved"] = tuple(map(_saved, arrays, parents))
        try:
            result, backward, *again = fn(k, *arrays, **options)
        except ValueError as error:
            if str(error).startswith(f"{name}:"):
                raise
            raise ValueError(f"{name}: {', '.join(map(_described, arrays))}: {error}") from error
        record = wanted and backward is not None and _mode.recording
        if record and type(backward) is tuple:  # what only a frozen operand's gradient needs is freed here
            backward = tuple(f if p is not None else None for f, p in zip(backward, parents, strict=False))
        out: Any
        if type(result) is list:
            out = _several(kind, name, result, tuple(parents), backward if record else None)
        else:
            out = kind.__new__(kind)
            if isinstance(result, np.generic):  # NumPy makes scalars of 0-d results
                result = np.asarray(result)
            out.data = result
            out.node = Node(name, result, tuple(parents), backward) if record else None
        if record and again:
            _offer(out, again[0])
        if watcher is not None:
            watcher.after_op(name, operands, out)
        return out

    apply.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return apply


def _saved(array: Any, node: Node | None) -> Callable[[], Any]:
    """How an op gets at an operand in backward: as `Node.again` makes it, or from the array, which that keeps."""
    return node.again if node is not None and node.again is not None else lambda: array


def _offer(out: Any, again: Any) -> None:
    """Note how a result, or each of several, can be made again, where it is large."""
    for tensor, function in zip(out, again, strict=True) if type(out) is list else [(out, again)]:
        if tensor.data.nbytes >= MADE_AGAIN:
            tensor.node.again = function


def _described(x: Any) -> str:
    return str(x.shape) if hasattr(x, "shape") else repr(x)


def _arrange(
    name: str, defaults: dict[str, Any], option_names: list[str], operands: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Sort out options given by position and operands given by name. defaults: of the operands, in their order."""
    known = [*defaults, *option_names]
    if len(operands) > len(known):
        raise TypeError(f"{name}: takes at most {len(known)} arguments, got {len(operands)}")
    given = dict(zip(known, operands, strict=False))
    for key, value in options.items():
        if key in given:
            raise TypeError(f"{name}: {key} is given twice")
        if key not in known:
            raise TypeError(f"{name}: unknown argument {key!r}; it takes {', '.join(known)}")
        given[key] = value
    arranged = [given.pop(key, default) for key, default in defaults.items()]
    for key, value in zip(defaults, arranged, strict=True):
        if value is inspect.Parameter.empty:
            raise TypeError(f"{name}: {key} is missing")
    return tuple(arranged), given


def _several(
    kind: type[Variable], name: str, results: list[Array], parents: tuple[Node | None, ...], backward: Any
) -> list[Variable]:
    results = [np.asarray(y) if isinstance(y, np.generic) else y for y in results]
    origin = Several(name, results, parents, backward) if backward is not None and results else None
    tensors = []
    for place, array in enumerate(results):
        out = kind.__new__(kind)
        out.data = array
        out.node = Output(origin, array, place) if origin is not None else None
        tensors.append(out)
    return tensors


# --- backward -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scattered:
    """The gradient of a table whose rows were read by number: `dy`, to be added to the rows `indices`.

    A backward may return one. Where the table has a gradient already, as that of an output layer that shares it, only
    the rows that were read are touched; elsewhere it is written out.
    """

    k: Backend
    dy: Array
    indices: Array
    shape: tuple[int, ...]
    dtype: Any

    def dense(self) -> Array:
        """The gradient of the whole table."""
        dweight: Array = self.k.embedding_backward(self.dy, self.indices, self.shape).astype(self.dtype, copy=False)
        return dweight

    def add_to(self, dweight: Array) -> None:
        """Add it to a gradient of the whole table, in place."""
        self.k.add_embedding_backward(dweight, self.dy, self.indices)


class _Pending:
    """Gradients that have arrived at nodes not yet visited, youngest node first.

    Popping by birth is a topological order: a node's consumers are all younger than the node.
    """

    def __init__(self) -> None:
        self.heap: list[tuple[int, Node]] = []
        self.sums: dict[Node, Any] = {}
        self.owned: set[Node] = set()  # nodes whose sum nothing else refers to

    def pop(self) -> tuple[Node, Any]:
        node = heapq.heappop(self.heap)[1]
        self.owned.discard(node)
        return node, self.sums.pop(node)

    def add(self, node: Node, gradient: Array, dy: Any) -> None:
        """Add what an op's backward made of `dy` to what has arrived at `node`."""
        if type(gradient) is Scattered:
            if isinstance(node, Leaf) and node.grad is not None:
                gradient.add_to(node.grad)
                return
            gradient = gradient.dense()
        if isinstance(gradient, np.generic):
            gradient = np.asarray(gradient)
        if gradient.dtype != node.dtype:
            gradient = gradient.astype(node.dtype)
        if gradient.shape != node.shape:
            raise RuntimeError(f"{node.name}: gradient of shape {gradient.shape} for a result of shape {node.shape}")
        # A backward returns dy itself, a view, or an array it made: only the last may be written into.
        owned = gradient is not dy and gradient.base is None
        if type(dy) is list and any(gradient is part for part in dy):
            owned = False
        if isinstance(node, Leaf):
            _add_to_leaf(node, gradient, owned)
            return
        before = self.sums.get(node)
        if before is None:
            heapq.heappush(self.heap, (-node.birth, node))
            self.sums[node] = gradient
        elif node in self.owned:
            backend_of("backward", [before]).add_to(before, gradient)
            return
        elif owned:
            backend_of("backward", [before]).add_to(gradient, before)
            self.sums[node] = gradient
        else:
            self.sums[node] = backend_of("backward", [before]).add(before, gradient)
            owned = True
        if owned:
            self.owned.add(node)

    def put(self, output: Output, gradient: Array) -> None:
        """Hand the gradient of one of several results to the op that made them."""
        (origin,) = output.parents
        assert isinstance(origin, Several)
        if origin not in self.sums:
            heapq.heappush(self.heap, (-origin.birth, origin))
            self.sums[origin] = [None] * origin.count
        self.sums[origin][output.place] = gradient


def _add_to_leaf(leaf: Leaf, gradient: Array, owned: bool) -> None:
    if leaf.grad is None:
        leaf.grad = gradient if owned else gradient.copy()
    else:
        backend_of("backward", [leaf.grad]).add_to(leaf.grad, gradient)


class _Arrivals:
    """How many gradients have yet to come to every leaf, so that each can be reported once it has them all."""

    def __init__(self, root: Node, report: Callable[[Leaf], None]) -> None:
        self.report = report
        self.missing: collections.Counter[Node] = collections.Counter()
        found, seen = [root], {root}
        if isinstance(root, Leaf):
            self.missing[root] = 1
        while found:
            for parent in found.pop().parents:
                if isinstance(parent, Leaf):
                    self.missing[parent] += 1
                elif parent is not None and parent not in seen:
                    seen.add(parent)
                    found.append(parent)

    def one_at(self, node: Node) -> None:
        """A gradient has arrived."""
        if isinstance(node, Leaf):
            self.missing[node] -= 1
            if not self.missing[node]:
                self.report(node)

    def are_all(self) -> None:
        """No more will come: where a checkpoint has results that nothing used, fewer come than there are uses."""
        for leaf, missing in self.missing.items():
            if missing > 0 and isinstance(leaf, Leaf) and leaf.grad is not None:
                self.report(leaf)


def backward(
    root: Node, dy: Array, retain_graph: bool = False, on_gradient: Callable[[Leaf], None] | None = None
) -> None:
    """Send `dy` from `root` to every leaf it depends on, adding to their `grad`.

    Nodes are popped and, unless `retain_graph`, stripped as they are visited, so that saved arrays die as soon as
    they are used. No recursion: any depth works.
    on_gradient: called with every leaf as soon as all that this backward adds to its gradient is there.
    Raises RuntimeError where a graph was freed by an earlier backward, or a saved array was overwritten.
    """
    arrivals = None if on_gradient is None else _Arrivals(root, on_gradient)
    pending = _Pending()
    pending.add(root, dy, dy)
    if arrivals is not None:
        arrivals.one_at(root)
    while pending.heap:
        node, dy = pending.pop()
        if not retain_graph:
            node.again = None
        if type(node) is Output:
            pending.put(node, dy)
            continue
        if watcher is not None:
            watcher.arrived(node, dy)
        functions, parents = node.backward, node.parents
        if functions is None:
            raise RuntimeError(
                f"{node.name}: backward a second time through a graph that was freed; "
                "pass retain_graph=True to the first backward"
            )
        if node.birth < _last_write:
            _refuse_overwritten(node, node.birth)
        if not retain_graph:
            node.backward, node.parents = None, ()
        for parent, gradient in _gradients(node, functions, parents, dy):
            if gradient is None:
                raise RuntimeError(f"{node.name}: an operand that requires a gradient is one that can have none")
            if watcher is not None:
                gradient = gradient.dense() if type(gradient) is Scattered else gradient
                watcher.sent(node, parent, gradient, dy)
            pending.add(parent, gradient, dy)
            if watcher is not None and isinstance(parent, Leaf):
                watcher.added(node, parent)
            if arrivals is not None:
                arrivals.one_at(parent)
        functions = gradient = None  # nothing of this node outlives its turn
    if arrivals is not None:
        arrivals.are_all()


def _made_again(node: Rerun, functions: Any) -> list[Node]:
    """The nodes of results made once more, after a look at what their recording saved: is it as at the first time?"""
    again: Callable[[], list[Node]] = functions[0]
    last_write = _last_write  # what is written while it runs was written at the first time as well
    before, _mode.since = _mode.since, node.since
    try:
        outputs = again()
    finally:
        _mode.since = before
    if node.since < last_write:
        for inner in _younger(outputs, node.birth):
            _refuse_overwritten(inner, node.since)
    return outputs


def older_parents(outputs: list[Node], birth: int) -> tuple[Node, ...]:
    """The nodes that were there before that birth, and leaves, from which the outputs were made; once for every use."""
    inside = _younger(outputs, birth)
    uses = [output for output in outputs if output not in inside]
    uses += [p for node in inside for p in node.parents if p is not None and p not in inside]
    return tuple(uses)


def _younger(outputs: list[Node], birth: int) -> set[Node]:
    """The recorded ops since that birth that the outputs were made by."""
    found = {node for node in outputs if node.birth > birth and type(node) is not Leaf}
    waiting = list(found)
    while waiting:
        for p in waiting.pop().parents:
            if p is not None and p.birth > birth and type(p) is not Leaf and p not in found:
                found.add(p)
                waiting.append(p)
    return found


def _gradients(node: Node, functions: Any, parents: tuple[Node | None, ...], dy: Any) -> Iterator[tuple[Node, Array]]:
    if type(node) is Rerun:
        for output, gradient in zip(_made_again(node, functions), dy, strict=True):
            if gradient is not None:  # None: nothing used this result
                yield output, gradient
        return
    if type(functions) is tuple:
        for parent, function in itertools.zip_longest(parents, functions):
            if parent is not None:
                yield parent, None if function is None else function(dy)
        return
    gradients = functions(dy)
    if type(gradients) is not tuple:
        gradients = (gradients,)
    for parent, gradient in itertools.zip_longest(parents, gradients):
        if parent is not None:
            yield parent, gradient


# --- in-place writes ----------------------------------------------------------------------------

_writes: dict[int, tuple[Any, int]] = {}  # id of a memory owner -> (weak reference to it, when it was last written)
_last_write = 0


def _owner(array: Array) -> Array:
    while isinstance(array.base, type(array)):
        array = array.base
    return array


def note_write(array: Array) -> None:
    """Remember that `array` was overwritten: a backward that saved it before will refuse to run.

    Costs nothing where no op was recorded before the write: nodes are compared with the time of the last write only.
    """
    global _last_write
    owner = _owner(array)
    key = id(owner)
    _last_write = next_birth()
    _writes[key] = (weakref.ref(owner, lambda _: _writes.pop(key, None)), _last_write)


def saved_arrays(value: Any) -> Iterator[Array]:
    """Every array that a backward function (or tuple of them) closes over."""
    if callable(value) and hasattr(value, "__closure__"):
        for cell in value.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:  # a name that was never bound
                continue
            yield from saved_arrays(content)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from saved_arrays(item)
    elif hasattr(value, "dtype") and hasattr(value, "base"):
        yield value


def _refuse_overwritten(node: Node, since: int) -> None:
    """since: when what the node saved had to be there."""
    for array in saved_arrays(node.backward):
        reference, when = _writes.get(id(_owner(array)), (None, 0))
        if when > since and reference is not None and reference() is not None:
            raise RuntimeError(
                f"{node.name}: an array of shape {array.shape} that it saved for backward was overwritten in place; "
                "write into a copy, or call backward first"
            )
