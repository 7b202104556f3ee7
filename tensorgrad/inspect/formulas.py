"""What an op computes and how its gradient is computed, from its docstring and from the source that runs."""

import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

from tensorgrad import ops
from tensorgrad.backend.math import Math

ROOT = Path(__file__).parents[2]
_SENTENCE_END = re.compile(r"(?<=\.)\s+(?=[A-Z]|d[a-z]+\d? )")
_GRADIENT = re.compile(r"\bdy\b|\bd\w+ = ")  # a sentence that says what becomes of dy, or what dx is


def formula_of(op: Any) -> dict[str, Any]:
    """Return the formula of an op, or of a function that is an op inside, as the page shows it.

    forward: the first sentence of its docstring, which says what it computes. gradient: the sentences about dx or dy.
    source: the op, whose forward and backward stand together. kernels: the plain kernels that it calls, from
    backend/math.py. All are empty for None, a node that is no op.
    """
    if op is None:
        return {"forward": "", "gradient": "", "place": "", "source": "", "kernels": []}
    function = inspect.unwrap(op)
    paragraphs = [" ".join(text.split()) for text in _docstring(op).split("\n\n")]
    sentences = [sentence for text in paragraphs for sentence in _SENTENCE_END.split(text)]
    source = inspect.getsource(function)
    kernels = [inspect.getsource(getattr(Math, name)) for name in _kernels_in(source)]
    return {
        "forward": sentences[0], "gradient": " ".join(s for s in sentences if _GRADIENT.search(s)),
        "place": _place(function), "source": textwrap.dedent(source), "kernels": [textwrap.dedent(k) for k in kernels],
    }  # fmt: skip


def operand_names(op: Any, n: int) -> list[str]:
    """x, weight, ...; for an op that takes any number of operands, arrays[0], arrays[1], ..."""
    parameters = list(inspect.signature(op.__wrapped__).parameters.values())[1:]
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "operand")
    return [names[i] if i < len(names) else f"{rest}[{i - len(names)}]" for i in range(n)]


def _docstring(op: Any) -> str:
    """Its docstring; `_concat`, the op inside the function `concat`, has that function's."""
    return inspect.getdoc(op) or inspect.getdoc(getattr(ops, op.__name__.lstrip("_"), None)) or ""


def _kernels_in(source: str) -> list[str]:
    """softmax and softmax_backward in `k.softmax(x, axis)` and `k.softmax_backward(dy, y, axis)`."""
    names = dict.fromkeys(re.findall(r"\bk\.(\w+)\(", source))
    return [name for name in names if inspect.isfunction(getattr(Math, name, None))]


def _place(function: Any) -> str:
    """tensorgrad/ops/softmax.py:12"""
    file, line = Path(inspect.getfile(function)), function.__code__.co_firstlineno
    return f"{file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else file.name}:{line}"
