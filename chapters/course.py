"""What every chapter uses: to show code and pages, to compare numbers and gradients, to draw, to check an exercise."""

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]


def show(*objects: Any) -> None:
    """Show the source of functions, classes or modules of the library, and the file that they are in."""
    for thing in objects:
        thing = inspect.unwrap(thing) if callable(thing) else thing
        path = Path(inspect.getsourcefile(thing) or "").resolve().relative_to(ROOT).as_posix()
        source = textwrap.dedent(inspect.getsource(thing)).rstrip()
        if "ipykernel" in sys.modules:
            from IPython.display import Markdown, display

            display(Markdown(f"[`{path}`](../{path})\n\n```python\n{source}\n```"))
        else:
            print(f"{path}\n\n{source}\n")


def show_lines(file: str, first: str, n: int, language: str) -> None:
    """Show n lines of a file of the library that is not Python, from the first one that begins with `first`."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(first))
    source = "\n".join(lines[start : start + n])
    if "ipykernel" in sys.modules:
        from IPython.display import Markdown, display

        display(Markdown(f"`{file}`\n\n```{language}\n{source}\n```"))
    else:
        print(f"{file}\n\n{source}\n")


def page(recorded: Any) -> None:
    """Show the page of a recording or of the explorer below the cell; outside of a notebook, nothing."""
    if "ipykernel" in sys.modules:
        from IPython.display import display

        display({"text/html": recorded._repr_html_()}, raw=True)


def same(ours: Any, theirs: Any, what: str, tolerance: float = 1e-12) -> None:
    """Say that two results are the same numbers.

    Arrays, tensors or numbers of one shape. The largest difference may be `tolerance` of the largest number. Raises
    AssertionError, with the difference, where it is more.
    """
    first, second = (np.asarray(getattr(x, "data", x) if hasattr(x, "requires_grad") else x) for x in (ours, theirs))
    assert first.shape == second.shape, f"{what}: shapes {first.shape} and {second.shape}"
    size = max(float(np.abs(second).max(initial=0.0)), 1e-300)
    difference = float(np.abs(first - second).max(initial=0.0)) / size
    assert difference <= tolerance, f"{what}: they differ by {difference:.3g} of the largest, not at most {tolerance:g}"
    print(f"the same numbers: {what} (to {tolerance:g})")


def differences(
    f: Callable[[np.ndarray[Any, Any]], Any], x: np.ndarray[Any, Any], h: float = 1e-6
) -> np.ndarray[Any, Any]:
    """The gradient at x of f, a function from an array to a number: a central difference for every element.

    Chapter 00b writes it.
    """
    gradient = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[place] = h
        gradient[place] = (f(x + step) - f(x - step)) / (2 * h)
    return gradient


def exercise(answer: Callable[..., Any], test: Callable[[Any], None]) -> None:
    """Check the reader's answer with its test, and say how it went; the chapter goes on in any case."""
    name = answer.__name__
    if is_empty(answer):
        print(f"{name}: not answered yet. Write its body, and run this cell again.")
        return
    try:
        test(answer)
    except Exception as error:  # whatever goes wrong in a reader's code
        print(f"{name}: not yet. {type(error).__name__}: {error}")
    else:
        print(f"{name}: right!")


def is_empty(answer: Callable[..., Any]) -> bool:
    """Whether a function has no body but its docstring and an ellipsis."""
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(answer))).body
    assert isinstance(function, ast.FunctionDef | ast.ClassDef)
    return all(isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) for line in function.body)


def picture(width: float = 7, height: float = 3.5, rows: int = 1, columns: int = 1, **options: Any) -> Any:
    """Return a figure and its axes, as plt.subplots does, in the style of the course; width and height in inches."""
    import matplotlib.pyplot as plt

    plt.rcParams.update({
        "figure.dpi": 90, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
        "grid.color": "#e3e3e3", "axes.axisbelow": True, "image.cmap": "Blues", "legend.frameon": False,
        "axes.prop_cycle": plt.cycler(color=["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]),
    })  # fmt: skip
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", **options)
