"""The picture of a roofline: every op as a point below the roofs. Needs Matplotlib (extra `plot`)."""

import importlib
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorgrad.inspect.roofline import Roofline, Row

COLOURS = {"forward": "#0072b2", "backward": "#d55e00", "update": "#009e73"}
GREY = "#444444"
LARGEST_AREA = 700  # square points, of an op that takes the whole step
# Where a label may stand, in points from its op: near first, then further away with a line to it.
DISTANCES, DIRECTIONS = (9, 20, 34, 50, 68, 90), ((1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (-1, 0))


def draw(found: "Roofline", ax: Any, n_labels: int) -> Any:
    """Draw on axes, or on new ones; return them. See `Roofline.plot`."""
    if ax is None:
        figure = importlib.import_module("matplotlib.figure").Figure(figsize=(9, 6), layout="constrained")
        ax = figure.add_subplot()
    points = [row for row in found.rows if row.flops and row.bytes and row.seconds]
    ax.set(xscale="log", yscale="log", xlabel="FLOPs for each byte", ylabel="GFLOP/s")
    _roofs(ax, found, points)
    for phase, colour in COLOURS.items():
        of_phase = [row for row in points if row.phase == phase]
        if of_phase:
            areas = [max(6.0, LARGEST_AREA * row.seconds / found.step_seconds) for row in of_phase]
            at = [row.intensity for row in of_phase], [row.flops / row.seconds / 1e9 for row in of_phase]
            ax.scatter(*at, s=areas, c=colour, alpha=0.7, linewidths=0, label=phase)
    share = sum(row.seconds for row in points) / found.step_seconds
    ax.set_title(
        f"A step of {found.step_seconds * 1e3:,.1f} ms on {found.backend}, {found.dtype}: {share:.0%} of its time is "
        "in these ops\n(area: time; numbers: lines of the table)", loc="left", fontsize=10,
    )  # fmt: skip
    for handle in ax.legend(loc="upper left", frameon=False, fontsize=9).legend_handles:
        handle.set_sizes([40])
    ax.grid(True, color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    working = [row for row in found.rows if row.share is not None]  # the lines of the table
    _label(ax, [(i, row) for i, row in enumerate(working, 1) if row.flops and row.bytes][:n_labels])
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
    ax.figure.draw_without_rendering()  # so that the axes have their size
    for bandwidth, style, name in ((memory, "-", "memory"), (cache, "--", "cache")):
        ridge = peak / bandwidth
        ax.plot([left, ridge], [left * bandwidth, peak], style, color=GREY, linewidth=1.2)
        x = (max(left, ax.get_ylim()[0] / bandwidth) * ridge) ** 0.5  # in the middle of the line
        (x0, y0), (x1, y1) = ax.transData.transform([(x, x * bandwidth), (ridge, peak)])
        ax.annotate(
            f"{name}, {bandwidth:,.1f} GB/s", (x, x * bandwidth), (-3, 3), textcoords="offset points", fontsize=8,
            color=GREY, rotation=math.degrees(math.atan2(y1 - y0, x1 - x0)), rotation_mode="anchor", ha="center",
        )  # fmt: skip


def _label(ax: Any, rows: "list[tuple[int, Row]]") -> None:
    """Name the ops where their names cover neither each other nor the points."""
    scale = ax.figure.dpi / 72
    centres = [ax.transData.transform((row.intensity, row.flops / row.seconds / 1e9)) for _, row in rows]
    taken: list[Any] = [text.get_window_extent() for text in ax.texts]
    taken.append(ax.get_legend().get_window_extent())
    for (i, row), centre in zip(rows, centres, strict=True):
        label = ax.annotate(
            f"{i} {row.op}", (row.intensity, row.flops / row.seconds / 1e9), (0, 0), textcoords="offset points",
            fontsize=8, va="center", arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.6},
        )  # fmt: skip
        label.set_in_layout(False)
        for distance in DISTANCES:
            if any(_place(ax, label, centres, centre, taken, distance, way, scale) for way in DIRECTIONS):
                taken.append(_extent(label))
                label.arrow_patch.set_visible(distance > DISTANCES[0])
                break
        else:
            label.remove()


def _place(
    ax: Any, label: Any, centres: list[Any], centre: Any, taken: list[Any], distance: float, way: tuple[int, int],
    scale: float,
) -> bool:  # fmt: skip
    """Put the label there; whether it is free there."""
    label.set_position((distance * way[0], distance * way[1]))
    label.set_horizontalalignment(("right", "center", "left")[way[0] + 1])
    box, frame = _extent(label), ax.get_window_extent()
    inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    around = box.padded(3 * scale)
    on_point = any(around.contains(*other) for other in centres)
    return inside and not on_point and not any(box.overlaps(other) for other in taken)


def _extent(label: Any) -> Any:
    """The box of the text alone, without the line to its point."""
    label.get_window_extent()  # moves it to its place
    return importlib.import_module("matplotlib.text").Text.get_window_extent(label)
