"""The picture of a roofline: every op as a point below the roofs. Needs Matplotlib (extra `plot`)."""

import importlib
import itertools
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorgrad.inspect.roofline import Roofline, Row

COLOURS = {"forward": "#0072b2", "backward": "#d55e00", "update": "#009e73"}
GREY = "#444444"
SMALLEST_AREA, LARGEST_AREA = 6.0, 700.0  # square points; the largest is that of an op that takes the whole step
# Where a label may stand, in points from its op: near first, then further away with a line to it.
DISTANCES, DIRECTIONS = (9, 20, 34, 50, 68, 90), ((1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (-1, 0))


def draw(found: "Roofline", ax: Any, n_labels: int) -> Any:
    """Draw on axes, or on new ones; return them. See `Roofline.plot`."""
    if ax is None:
        figure = importlib.import_module("matplotlib.figure").Figure(figsize=(9, 6), layout="constrained")
        ax = figure.add_subplot()
    points = [row for row in found.rows if row.flops and row.bytes and row.seconds]
    ax.set(xscale="log", yscale="log", xlabel="FLOPs for each byte", ylabel="GFLOP/s")
    share = sum(row.seconds for row in points) / found.step_seconds
    ax.set_title(
        f"A step of {found.step_seconds * 1e3:,.1f} ms on {found.backend}, {found.dtype}: {share:.0%} of its time is "
        "in these ops\n(area: time; numbers: lines of the table)", loc="left", fontsize=10,
    )  # fmt: skip
    ax.grid(True, color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    _roofs(ax, found, points)
    for phase, colour in COLOURS.items():
        of_phase = [row for row in points if row.phase == phase]
        if of_phase:
            areas = [_area(row, found) for row in of_phase]
            ax.scatter(*zip(*map(_at, of_phase), strict=True), s=areas, c=colour, alpha=0.7, linewidths=0, label=phase)
    for handle in ax.legend(loc="upper left", frameon=False, fontsize=9).legend_handles:
        handle.set_sizes([40])
    _label(ax, found, points, n_labels)
    return ax


def _roofs(ax: Any, found: "Roofline", points: "list[Row]") -> None:
    """The speed of a product, and the bandwidth of memory and of the fastest cache."""
    peak, memory, cache = found.peak / 1e9, found.roof.memory / 1e9, max(found.bandwidth.values()) / 1e9
    intensities = [row.intensity for row in points if row.intensity] or [1.0]
    left, right = min(*intensities, peak / cache) / 3, max(*intensities, peak / memory) * 5
    speeds = [row.flops / row.seconds / 1e9 for row in points] or [peak]
    ax.set(xlim=(left, right), ylim=(min(speeds) / 3, max(*speeds, peak) * 3))
    ax.plot([peak / cache, right], [peak, peak], color=GREY, linewidth=1.2)
    ax.text(right, peak * 1.08, f"product, {peak:,.1f} GFLOP/s", fontsize=8, ha="right", color=GREY)
    ax.figure.draw_without_rendering()  # so that the axes have their size: what follows stands inside
    for bandwidth, style, name in ((memory, "-", "memory"), (cache, "--", "cache")):
        ridge = peak / bandwidth
        ax.plot([left, ridge], [left * bandwidth, peak], style, color=GREY, linewidth=1.2)
        x = (max(left, ax.get_ylim()[0] / bandwidth) * ridge) ** 0.5  # in the middle of the line
        (x0, y0), (x1, y1) = ax.transData.transform([(x, x * bandwidth), (ridge, peak)])
        ax.annotate(
            f"{name}, {bandwidth:,.1f} GB/s", (x, x * bandwidth), (-3, 3), textcoords="offset points", fontsize=8,
            color=GREY, rotation=math.degrees(math.atan2(y1 - y0, x1 - x0)), rotation_mode="anchor", ha="center",
        )  # fmt: skip


def _label(ax: Any, found: "Roofline", points: "list[Row]", n: int) -> None:
    """Name the n ops with the most time, where their names cover neither each other nor a point."""
    boxes = importlib.import_module("matplotlib.transforms").Bbox
    scale, frame = ax.figure.dpi / 72, ax.get_window_extent()
    taken = [text.get_window_extent() for text in ax.texts] + [ax.get_legend().get_window_extent()]
    places = {id(row): ax.transData.transform(_at(row)) for row in points}
    for row in points:
        (x, y), radius = places[id(row)], scale * (_area(row, found) / math.pi) ** 0.5
        taken.append(boxes.from_extents(x - radius, y - radius, x + radius, y + radius))
    working = [row for row in found.rows if row.share is not None]  # the lines of the table
    for i, row in [(i, row) for i, row in enumerate(working, 1) if id(row) in places][:n]:
        label = ax.annotate(
            f"{i} {row.op}", _at(row), (0, 0), textcoords="offset points", fontsize=8, va="center",
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.6},
        )  # fmt: skip
        label.set_in_layout(False)
        size, (x, y) = _extent(label), places[id(row)]
        for distance, (right, up) in itertools.product(DISTANCES, DIRECTIONS):
            left, bottom = x + right * distance * scale - (1 - right) / 2 * size.width, y + up * distance * scale
            box = boxes.from_bounds(left, bottom - size.height / 2, size.width, size.height)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                label.set_position((distance * right, distance * up))
                label.set_horizontalalignment(("right", "center", "left")[right + 1])
                label.arrow_patch.set_visible(distance > DISTANCES[0])
                taken.append(box)
                break
        else:
            label.remove()


def _at(row: "Row") -> tuple[float, float]:
    """FLOPs for each byte, and GFLOP/s."""
    return row.flops / row.bytes, row.flops / row.seconds / 1e9


def _area(row: "Row", found: "Roofline") -> float:
    """Square points."""
    return max(SMALLEST_AREA, LARGEST_AREA * row.seconds / found.step_seconds)


def _extent(label: Any) -> Any:
    """The box of the text alone, without the line to its point."""
    label.get_window_extent()  # moves it to its place
    return importlib.import_module("matplotlib.text").Text.get_window_extent(label)
