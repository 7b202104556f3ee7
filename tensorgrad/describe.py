"""Tensors and modules as people see them: text for a terminal, HTML for a notebook."""

import html as markup
import itertools

import numpy as np

from tensorgrad.backend.arrays import Quantized
from tensorgrad.nn import Module, inside
from tensorgrad.tensor import Tensor, kernels_of

MAX_CELLS = 8  # rows or columns of a table in a notebook


def _properties(x: Tensor) -> str:
    grad = ", requires_grad=True" if x.node is not None and x.node.is_leaf else ""
    return f"dtype={x.dtype}{grad}" + (f", made by {x.node.name}" if x.node is not None and not grad else "")


def text(x: Tensor) -> str:
    """The elements, at most 100 of them, the dtype, and what made the tensor."""
    if isinstance(x.data, Quantized):
        return f"Tensor({x.data!r})"
    elements = np.array2string(kernels_of(x).to_numpy(x.data), separator=", ", prefix="Tensor(", threshold=100)
    return f"Tensor({elements}, {_properties(x)})"


def html(x: Tensor) -> str:
    """A vector or a matrix as a table, at most 8 rows and columns of it; any other tensor as text."""
    if x.ndim not in (1, 2) or x.size == 0 or isinstance(x.data, Quantized):
        return f"<pre>{markup.escape(text(x))}</pre>"
    rows = np.atleast_2d(kernels_of(x).to_numpy(x.data))
    shown = [[f"{number:.4g}" for number in row[:MAX_CELLS].tolist()] for row in rows[:MAX_CELLS]]
    shown = [[*row, "…"] if rows.shape[1] > MAX_CELLS else row for row in shown]
    shown += [["…"] * len(shown[0])] * (len(rows) > MAX_CELLS)
    cells = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in shown)
    return f"<table>{cells}</table><code>Tensor {x.shape}, {markup.escape(_properties(x))}</code>"


def describe(module: Module) -> str:
    """A line for the module and for each one inside it, indented: its tensors, options and number of parameters."""
    found = list(inside(module))
    shown = [f"{name} {x.shape}" for name, x in found if isinstance(x, Tensor) and x.role]
    shown += [f"{k}={v!r}" for k, v in vars(module).items() if type(v) in (int, float, str)]
    n = module.num_params()
    lines = [type(module).__name__ + f"({', '.join(shown)})" * bool(shown) + f", {n:,} parameters" * bool(n)]
    children = [(name, repr(x)) for name, x in found if isinstance(x, Module)]
    for text, alike in itertools.groupby(children, lambda child: child[1]):
        names = [name for name, _ in alike]
        head, *rest = text.split("\n")
        several = f" to {names[-1]}: {len(names)} x" if len(names) > 1 else ":"
        each = " each" if len(names) > 1 and head.endswith("parameters") else ""
        lines += [f"  {names[0]}{several} {head}{each}", *(f"  {line}" for line in rest)]
    return "\n".join(lines)


def tree(module: Module) -> str:
    """The same lines as HTML, in which modules can be unfolded."""
    head = markup.escape(describe(module).partition("\n")[0])
    children = [(name, tree(x)) for name, x in inside(module) if isinstance(x, Module)]
    if not children:
        return f"<code>{head}</code>"
    items = "".join(f"<li>{markup.escape(name)}: {child}</li>" for name, child in children)
    return f"<details open><summary><code>{head}</code></summary><ul>{items}</ul></details>"
