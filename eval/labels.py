"""Names beside the points of a matplotlib picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from eval.placing import CORNER, PLACES, choose_places, has_leader
from eval.statistics import Float

FONT_POINTS = 9


def place_labels(axes: Axes, labels: Sequence[str], points: Float, drawn: Float, colors: Sequence[str]) -> None:
    """Write labels beside their points so that they cover neither each other nor what is drawn.

    Args:
        axes: laid out and scaled.
        labels: n texts.
        points: (n, 2) in data coordinates.
        drawn: (m, 2) pixels of what should stay visible: points, bars, lines.
        colors: n.
    """
    inside = np.array(axes.get_window_extent().extents)
    sizes = [_text_size(axes, label) for label in labels]
    places = choose_places(sizes, axes.transData.transform(points), drawn, inside, axes.figure.dpi / 72.0)
    for label, point, color, place in zip(labels, points, colors, places, strict=True):
        _write(axes, label, point, color, place)


def _write(axes: Axes, label: str, point: Float, color: str, place: int) -> None:
    distance, (x, y, horizontal, vertical) = PLACES[place]
    nearest = (-CORNER[horizontal], -CORNER[vertical])
    leader = {"arrowstyle": "-", "color": color, "lw": 0.5, "shrinkA": 0, "shrinkB": 3, "relpos": nearest}
    axes.annotate(
        label,
        (point[0], point[1]),
        xytext=(distance * x, distance * y),
        textcoords="offset points",
        ha=horizontal,
        va=vertical,
        fontsize=FONT_POINTS,
        color=color,
        arrowprops=leader if has_leader(place) else None,
    )


def _text_size(axes: Axes, label: str) -> tuple[float, float]:
    """Width and height in pixels."""
    text = axes.text(0, 0, label, fontsize=FONT_POINTS)
    extent = text.get_window_extent()
    text.remove()
    return extent.width, extent.height
