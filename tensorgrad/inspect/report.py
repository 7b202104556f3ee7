"""An explanation as text, as a picture, and as both in a notebook."""

import base64
import html
import io
import textwrap
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from tensorgrad.gradcheck.differences import index_text

if TYPE_CHECKING:
    from tensorgrad.inspect.explanation import Entry, Explanation, Place, Use

WIDTH = 80
MAX_ROWS = 5  # examples or positions of a use
MAX_TEXTS = 256  # in a heat map
LR = 1e-3  # in the line that says what an update changes


def number(x: float) -> str:
    """Four significant digits."""
    return f"{x:.4g}"


def percent(x: float) -> str:
    """A share of the gradient."""
    return f"{100 * x:.1f} %"


def as_text(found: "Explanation") -> str:
    """Lines of at most 80 columns."""
    ratio = f"{number(found.ratio)} times the weight's norm, {number(found.weight_norm)}"
    lines = [
        f"The gradient of {found.name} {found.shape} {found.dtype}",
        f"norm      {number(found.gradient_norm)}: {ratio}",
        f"a step    of lr {LR:g} changes the weight by {number(100 * found.sgd_change(LR))} % with SGD, "
        f"by {number(100 * found.adam_change(LR))} % with Adam",
        f"rounding  {found.rounding:.1e} of the norm, beside float64; up to {found.tolerance:g} is usual"
        if found.rounding <= found.tolerance
        else f"ROUNDING  the gradient in float64 is another: {found.rounding:.1e} of the norm away",
        *(["cancels   the contributions add up to less than 1 % of their norms"] if found.cancels else []),
        "",
        *entry_lines(found.entries),
        *(line for use in found.uses for line in ("", *use_lines(found, use))),
    ]
    return "\n".join(part for line in lines for part in textwrap.wrap(line, WIDTH, subsequent_indent="    ") or [""])


def entry_lines(entries: "list[Entry]") -> Iterator[str]:
    """The largest elements beside finite differences."""
    if entries:
        yield f"{'largest':16} {'gradient':>12} {'in float64':>12} {'difference':>12} {'error':>8}"
    for e in entries:
        numbers = f"{e.recorded:12.5g} {e.float64:12.5g} {e.difference:12.5g} {e.error:8.0e}"
        yield f"{index_text(e.index):16} {numbers}  {'confirmed' if e.is_confirmed else 'WRONG'}"


def use_lines(found: "Explanation", use: "Use") -> Iterator[str]:
    """What came through one op, by example and position, and the way there from the loss."""
    place = f" in {use.module}" if use.module else ""
    yield f"{percent(use.share)} through {use.op}{place}, as {use.operand}: norm {number(use.norm)}"
    if use.caller:
        yield f"  called at {use.caller}"
    if use.shares is not None and use.norms is not None:
        if use.examples is not None and (shares := use.example_shares):
            order = np.argsort(-np.abs(shares), kind="stable")[:MAX_ROWS]
            yield "  by example: " + ", ".join(
                f"{i}: {percent(shares[i])} (norm {number(use.examples[i])})" for i in order
            )
        for row in use.largest(MAX_ROWS):
            text = found.text_of(use, row)
            name = index_text(row) + (f" {text!r}" if text is not None else "")
            yield f"  {name:28} {percent(use.shares[row]):>8}   norm {number(use.norms[row])}"
    if use.path:
        yield "  from the loss: " + " -> ".join(way(use.path))


def way(path: "list[Place]") -> Iterator[str]:
    """The modules on a way, or the ops outside of any, with the norm of the gradient that each sends on."""
    for name, places in groupby(path[:-1], lambda place: place.module or place.op):
        *_, last = places
        yield f"{name} {number(last.leaves)}"
    yield f"{path[-1].op}, where {number(path[-1].arrives)} arrives"


def as_figure(found: "Explanation") -> Any:
    """A row for each use: the share of every example and position, and what came through."""
    from matplotlib.figure import Figure  # not pyplot, which would select a window system for the process

    uses = [use for use in found.uses if use.shares is not None]
    heights = [1.2] + [0.9 + 0.25 * min(len(_matrix(use)), 24) for use in uses]
    figure = Figure(figsize=(9, sum(heights) + 0.6), layout="constrained")
    axes = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    figure.suptitle(f"The gradient of {found.name}, norm {number(found.gradient_norm)}", parse_math=False)
    names = [_name(use) for use in found.uses]
    axes[0].barh(range(len(names)), [use.share for use in found.uses], color="#4477aa")
    axes[0].set_yticks(range(len(names)), names, parse_math=False)
    axes[0].invert_yaxis()
    axes[0].set_xlabel("share of the gradient")
    limit = max((float(np.abs(_matrix(use)).max(initial=0)) for use in uses), default=0) or 1.0
    for place, use in zip(axes[1:], uses, strict=True):
        _heat_map(figure, place, found, use, limit)
    return figure


def _name(use: "Use") -> str:
    return f"{use.op} in {use.module}" if use.module else use.op


def _matrix(use: "Use") -> Any:
    shares: Any = use.shares
    return shares.reshape(-1, shares.shape[-1])


def _heat_map(figure: Any, place: Any, found: "Explanation", use: "Use", limit: float) -> None:
    from matplotlib.ticker import MaxNLocator

    matrix = _matrix(use)
    image = place.imshow(matrix, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=place, label="share")
    place.set_title(_name(use), fontsize=10, parse_math=False)
    place.set_ylabel("example")
    place.set_xlabel("position")
    for axis in (place.xaxis, place.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    if matrix.size <= MAX_TEXTS and found.text_of(use, (0, 0)) is not None:
        turned = 90 if matrix.shape[1] > 12 else 0
        for row, column in np.ndindex(matrix.shape):
            text, dark = repr(found.text_of(use, (row, column)))[1:-1], abs(matrix[row, column]) > 0.6 * limit
            place.text(column, row, text, ha="center", va="center", fontsize=8, rotation=turned, parse_math=False,
                       color="white" if dark else "black")  # fmt: skip


def as_html(found: "Explanation") -> str:
    """The text, and the picture where matplotlib is installed."""
    text = f"<pre>{html.escape(as_text(found))}</pre>"
    try:
        figure = as_figure(found)
    except ImportError:
        return text
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100)
    image = base64.b64encode(png.getvalue()).decode()
    return f'{text}<img alt="The share of every example and position" src="data:image/png;base64,{image}">'
