"""Tensors and modules as people see them: text for a terminal, HTML for a notebook."""

import itertools

from tensorgrad.nn import Module, inside
from tensorgrad.tensor import Tensor


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
