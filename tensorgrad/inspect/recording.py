"""`record`: what every op of a computation got and gave, forward and backward, as a page that steps through it."""

import linecache
import os
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tensorgrad import ops
from tensorgrad.autograd import Edge, Leaf, Node, Observer, SparseGradient, saved_arrays
from tensorgrad.autograd.inplace import owner
from tensorgrad.autograd.mode import mode
from tensorgrad.backend import Array, Backend
from tensorgrad.backend.quantization import QuantizedArray
from tensorgrad.inspect.arrays import heat_map
from tensorgrad.inspect.explainer import Explainer
from tensorgrad.inspect.explanation import Explanation
from tensorgrad.inspect.formulas import formula_of, operand_names
from tensorgrad.inspect.page import STATIC, build_page, inline
from tensorgrad.inspect.replay import Program, on_host
from tensorgrad.nn import Module, walk
from tensorgrad.random import default_generator
from tensorgrad.second_order import gradients
from tensorgrad.tensor import Tensor

PACKAGE = str(Path(__file__).parents[1])  # the folder of tensorgrad: who calls an op is the first frame outside of it
Data = dict[str, Any]  # what the page is given: JSON


class record(Observer):
    """A context that records every op, and makes a page that shows them one step at a time, backward included.

        with tg.record(model) as steps:
            model.loss(x, y).backward()
        steps.save("step.html")  # in a notebook, `steps` as the last line of a cell shows the page

    model: names its modules and parameters; without it, those are named that are called. texts: of the tokens, (B, T),
    which name the positions. What is computed from is copied, of other large arrays a sample, and a step takes a few
    times as long inside the context. Results and gradients are the same.
    """

    def __init__(self, model: Module | None = None, *, texts: Sequence[Sequence[str]] | None = None) -> None:
        self.steps: list[Data] = []  # in the order in which they ran
        self.rows: list[Data] = []  # the nodes of the graph: one for each op that ran forward
        self.ops: dict[str, Data] = {}  # name -> formula and source
        self.arrays: list[Data] = []  # each heat map once
        self._array_number: dict[Any, int] = {}
        self._made: dict[tuple[int, int], int] = {}  # sequence number and slot of an edge -> the row that made it
        self._made_untracked: dict[int, Any] = {}  # id of an array without an edge -> (a weak reference to it, its row)
        self._names: dict[int, str] = {}  # of modules, by id, and of the leaves of parameters, by sequence number
        self._models: list[Module] = []  # while they exist, these ids belong to no other object
        self._modules: list[str] = []  # the modules that are running, the innermost last
        self._memory = _Memory()
        self._backward: Data | None = None  # the step whose backward is running
        self._waiting: list[int] = []  # the operands whose gradients it has not sent yet
        self.texts = None if texts is None else checked_texts(texts)
        self.program = Program()  # which can run again
        self.gradients: dict[int, Any] = {}  # of leaves, by sequence number: what this recording has sent to them
        self.sent_to: dict[int, dict[int, bool]] = {}  # the steps that have sent them, and whether what was sent is 0
        self._state: Any = None  # of the generator before an op
        self._root: Edge | None = None  # where backward begins
        self._explainer: Explainer | None = None
        if model is not None:
            if not isinstance(model, Module):
                raise TypeError(f"record: the model is a {type(model).__name__}, not a tg.nn.Module")
            self._name_parts(model)

    def _name_parts(self, model: Module) -> None:
        self._models.append(model)
        for name, part in walk("", model):
            is_tensor = isinstance(part, Tensor)
            key = part.node.sequence if is_tensor and part.node is not None else id(part)
            self._names.setdefault(key, name or type(part).__name__)

    def enter_module(self, module: Any) -> None:
        if id(module) not in self._names and not self._modules:
            self._name_parts(module)
        self._modules.append(self._names.get(id(module), type(module).__name__))

    def leave_module(self, module: Any) -> None:
        self._modules.pop()

    def before_op(self, name: str, k: Backend, arrays: list[Any]) -> tuple[Backend, list[Any]]:
        """Remember the state of the generator."""
        self._state = default_generator.state_dict()
        return k, arrays

    def after_op(self, name: str, operands: tuple[Any, ...], output: Any, op: Any, options: Data) -> None:
        """Record what the op got and gave."""
        if name not in self.ops:
            self.ops[name] = formula_of(op)
        outputs = output if isinstance(output, list) else [output]
        names = operand_names(op, len(operands))
        described = [self._operand(n, x) for n, x in zip(names, operands, strict=True)]
        row = len(self.rows)
        if self._backward is None:
            self.program.add(op, operands, outputs, options, self._state, row)
        for slot, y in enumerate(outputs):
            if y.edge is not None:
                self._made[y.edge[0].sequence, slot] = row
            else:
                self._made_untracked[id(y.data)] = weakref.ref(y.data), row
            self._memory.hold(y.data, "values")
            for array in saved_arrays(y.edge[0].saved()) if y.edge is not None else ():
                self._memory.hold(array, "values")
        module = self._modules[-1] if self._modules else ""
        self.rows.append({"op": name, "module": module, "caller": _caller(), "tracked": outputs[0].edge is not None})
        self.steps.append({
            "phase": "forward", "row": row, "again": self._backward is not None, "operands": described,
            "options": {key: _text(value) for key, value in options.items() if key != "ctx"},
            "results": [self._array(y.data) for y in outputs], "memory": self._memory.sizes(),
        })  # fmt: skip

    def arrived(self, node: Node, dys: list[Array | None]) -> None:
        """Begin the backward of a node."""
        if self._root is not None:
            self.program.begin(self._root, dys[self._root[1]])
            self._root = None
        row = self._made.get((node.sequence, 0))
        if row is None:  # of a computation before the context, or of `checkpoint`, which is no op
            row = self._made[node.sequence, 0] = len(self.rows)
            self.rows.append({"op": node.name, "module": "", "caller": None, "tracked": True})
            self.ops.setdefault(node.name, formula_of(getattr(ops, node.name, None)))
        for dy in dys:
            self._memory.hold(dy, "gradients")
        self._waiting = [i for i, edge in enumerate(node.parents) if edge is not None]
        self._backward = {
            "phase": "backward", "row": row, "incoming": [None if dy is None else self._array(dy) for dy in dys],
            "outgoing": [], "memory": self._memory.sizes(),
        }  # fmt: skip
        self.steps.append(self._backward)

    def sent(self, node: Node, edge: Edge, gradient: Any, dys: list[Array | None]) -> None:
        """Record the gradient of one operand."""
        gradient = gradient.dense() if isinstance(gradient, SparseGradient) else gradient
        self._memory.hold(gradient, "gradients")
        step: Any = self._backward
        operand = self._waiting.pop(0) if self._waiting else None  # recomputed nodes send to where others did
        sent = {"operand": operand, "array": self._array(gradient), "slot": edge[1], **self._place(edge)}
        step["outgoing"].append(sent)
        if isinstance(leaf := edge[0], Leaf):
            part = on_host(gradient).astype(leaf.dtype)
            total = self.gradients.get(leaf.sequence)
            self.gradients[leaf.sequence] = part if total is None else total + part
            self.sent_to.setdefault(leaf.sequence, {})[len(self.steps) - 1] = not part.any()
        step["memory"] = self._memory.sizes()

    def added(self, node: Node | None, edge: Edge) -> None:
        """Record where backward begins, and the sum of all gradients so far, where it is a leaf's."""
        if node is None:
            self._root = edge
        leaf = edge[0]
        if node is not None and self._backward is not None and isinstance(leaf, Leaf) and leaf.grad is not None:
            self._memory.hold(leaf.grad, "gradients")
            self._backward["outgoing"][-1]["sum"] = self._array(leaf.grad)

    def finished(self) -> None:
        self._backward = self._explainer = None

    def explain(self, parameter: Tensor, entries: int = 3) -> Explanation:
        """Explain the gradient that this recording gave to a parameter; see `tg.explain`."""
        if not isinstance(parameter, Tensor):
            parts = ", ".join(dict(parameter.named_parameters())) if isinstance(parameter, Module) else ""
            hint = f": give one of its parameters: {parts}" if parts else ", not a Tensor"
            raise TypeError(f"explain: the parameter is a {type(parameter).__name__}{hint}")
        if mode.observers.count(self):
            raise RuntimeError("explain: call it after the `with` that records")
        node = parameter.node
        key = id(parameter) if node is None else node.sequence
        name = self._names.get(key) or f"the tensor {parameter.shape}"
        if node is None:
            raise ValueError(f"explain: {name} requires no gradient")
        if not isinstance(node, Leaf):
            raise ValueError(f"explain: {name} is the result of {node.name}: give a parameter, whose gradient is kept")
        if node.sequence not in self.program.leaves:
            raise ValueError(f"explain: {name} was not used in this recording")
        if node.sequence not in self.gradients or not self.program.roots:
            raise ValueError(f"explain: {name} got no gradient in this recording: call backward inside the context")
        return self._explain(node.sequence, self._names.get(key) or "the tensor", entries)

    def _explain(self, leaf: int, name: str, entries: int) -> Explanation:
        self._explainer = self._explainer or Explainer(self)
        return self._explainer.explain(leaf, name, entries)

    def _explanations(self, confirm: int) -> Data:
        """What the page shows of all parameters, the largest gradient first, or why it shows nothing."""
        by_size = sorted(self.gradients, key=lambda leaf: -float(np.linalg.norm(self.gradients[leaf])))
        found: list[Data] = []
        for i, leaf in enumerate(by_size):
            name = self._names.get(leaf) or f"a given tensor, {i + 1}"
            try:
                found.append(self._explain(leaf, name, 3 if i < confirm else 0).data())
            except Exception as error:  # of any kind: the ops may be anyone's, and the rest of the page stands
                found.append({"name": name, "error": str(error)})
                if self._explainer is None:  # the recording cannot run again at all
                    break
        return {"found": found, "texts": self.texts}

    def page(self, title: str = "A computation, step by step", *, confirm: int = 10) -> str:
        """Return the page as HTML. confirm: of how many parameters finite differences confirm the gradient.

        Those with the largest gradients come first. Three elements of each take six forward passes in float64.
        """
        data = {
            "title": title, "steps": self.steps, "rows": self.rows, "ops": self.ops, "arrays": self.arrays,
            "gradients": self._explanations(confirm),
        }  # fmt: skip
        static = {kind: STATIC / f"stepper.{kind}" for kind in ("html", "css", "js")}
        scripts = [STATIC / "graph.js", STATIC / "explain.js", STATIC / "parameters.js", static["js"]]
        return build_page(title, data, body=static["html"], styles=[static["css"]], scripts=scripts)

    def save(
        self, path: str | os.PathLike[str], title: str = "A computation, step by step", *, confirm: int = 10
    ) -> None:  # fmt: skip
        """Write the page to a file; see `page`."""
        Path(path).write_text(self.page(title, confirm=confirm), encoding="utf-8")

    def _repr_html_(self) -> str:
        return inline(self.page())

    def _place(self, edge: Edge) -> Data:
        """Where a gradient flows to: the row that made the operand, or a leaf and its name."""
        if (row := self._made.get((edge[0].sequence, edge[1]))) is not None:
            return {"to": row}
        name = "" if not edge[0].is_leaf else self._names.get(edge[0].sequence, "")
        return {"to": None, "leaf": name, "key": f"{edge[0].sequence}.{edge[1]}"}

    def _operand(self, name: str, x: Any) -> Data:
        array = x.data if isinstance(x, Tensor) else x
        described: Data = {"name": name, "row": None, "array": None}
        if isinstance(array, QuantizedArray):
            self._memory.hold(array.blocks, "given")
        if not hasattr(array, "dtype") or isinstance(array, QuantizedArray):
            return described | {"text": _text(array)}
        edge = x.edge if isinstance(x, Tensor) else None
        if edge is not None:
            place = self._place(edge)
            described |= {"row": place["to"], "slot": edge[1], "leaf": place.get("leaf")}
        elif (made := self._made_untracked.get(id(array))) is not None and made[0]() is array:
            described["row"] = made[1]
        if described["row"] is None:
            self._memory.hold(array, "given")
        return described | {"array": self._array(array)}

    def _array(self, array: Any) -> int:
        """The number of its heat map."""
        shown = heat_map(array)
        key = shown["values"]["base64"], shown["dtype"], *map(str, (shown["shape"], shown["norm"]))
        number = self._array_number.setdefault(key, len(self.arrays))
        if number == len(self.arrays):
            self.arrays.append(shown)
        return number


class _Memory:
    """The bytes of the arrays that a computation has made and that are still there, without those it was given."""

    def __init__(self) -> None:
        self._held: dict[int, Any] = {}  # id of the owner of the memory -> a weak reference to it, which cleans up
        self._sizes = {"values": 0, "gradients": 0, "given": 0}

    def hold(self, array: Any, kind: str) -> None:
        """Count an array until it is freed; the first kind that it is counted as stays."""
        if array is None or isinstance(array, np.generic):
            return
        array = owner(array)
        key, n = id(array), int(array.nbytes)

        def freed(_: Any) -> None:
            del self._held[key]
            self._sizes[kind] -= n

        if key not in self._held:
            self._held[key] = weakref.ref(array, freed)
            self._sizes[kind] += n

    def sizes(self) -> Data:
        """The bytes of values and of gradients."""
        return {"values": self._sizes["values"], "gradients": self._sizes["gradients"]}


def explain(
    parameter: Tensor, compute: Callable[[], Tensor], *, model: Module | None = None, entries: int = 3,
    texts: Sequence[Sequence[str]] | None = None,
) -> Explanation:  # fmt: skip
    """Explain the gradient of a parameter: which ops, examples and positions made it, and whether it is right.

        print(tg.explain(model.wte.weight, lambda: model.loss(x, y), model=model))

    compute: returns the loss, a tensor with one element, of which backward is called; every `.grad` stays what it was.
    After a recording, `steps.explain(parameter)` explains what that computed. The computation runs again in float64, as
    plain ops with the same random draws; of the `entries` largest elements, central differences are taken.
    model: names its parts. texts: of the tokens, (B, T). Raises ValueError for a parameter that the loss does not use.
    """
    if not callable(compute):
        hint = "give a function that computes the loss, such as lambda: model.loss(x, y), so that it can be recorded"
        raise TypeError(f"explain: compute is a {type(compute).__name__}: {hint}")
    with record(model, texts=texts) as steps:
        loss = compute()
        if not isinstance(loss, Tensor) or loss.edge is None or loss.size != 1:
            got = f"{loss.dtype} {loss.shape}" if isinstance(loss, Tensor) else type(loss).__name__
            if isinstance(loss, Tensor) and loss.edge is None:
                got += " without a gradient, as in no_grad or where nothing requires one"
            raise ValueError(f"explain: compute returned {got}: a loss of one element with a gradient is needed")
        gradients(loss, [])  # which leaves every `.grad` alone
    return steps.explain(parameter, entries)


def _caller() -> Data | None:
    """The line outside of the library that has called the op."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    if frame is None:
        return None
    file, line = frame.f_code.co_filename, frame.f_lineno
    return {"file": _short(file), "line": line, "text": linecache.getline(file, line, frame.f_globals).strip()}


def _short(file: str) -> str:
    """A path without the folders of this machine: below the current one or one of Python's path, or the name alone."""
    for folder in (os.getcwd(), *sorted(map(os.path.abspath, sys.path), key=len, reverse=True)):
        if file.startswith(folder.rstrip(os.sep) + os.sep):
            return os.path.relpath(file, folder).replace(os.sep, "/")
    return os.path.basename(file)


def checked_texts(texts: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the texts of tokens (B, T) as lists. Raises ValueError for rows of different lengths."""
    rows = [[str(text) for text in row] for row in texts]
    if isinstance(texts, str) or any(isinstance(row, str) for row in texts) or len({len(row) for row in rows}) != 1:
        raise ValueError("record: texts have to be (B, T): for every example a list with a text for every token")
    return rows


def _text(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:79]}…"
