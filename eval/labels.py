"""Short names of policies, and where to write them in a picture so that they cover nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from eval.statistics import Float

# Sides of a point on which its label may stand, best first: direction, and which part of the label lies nearest.
SIDES = (
    (1, 0, "left", "center"),
    (0.7, 0.7, "left", "bottom"),
    (0.7, -0.7, "left", "top"),
    (-1, 0, "right", "center"),
    (-0.7, 0.7, "right", "bottom"),
    (-0.7, -0.7, "right", "top"),
    (0, 1, "center", "bottom"),
    (0, -1, "center", "top"),
)
DISTANCES_POINTS = (7, 14, 22, 32, 44, 58)
# From this distance on, a line leads from the label to its point.
LEADER_POINTS = 22
# Where the label's left lower corner lies, as a part of its width or height, for each alignment.
CORNER = {"left": 0.0, "bottom": 0.0, "center": -0.5, "right": -1.0, "top": -1.0}

FONT_POINTS = 9


def short_names(policies: Sequence[str]) -> dict[str, str]:
    """A name for each policy: rules keep theirs, files go by the last parts of their path that tell them apart.

    A file named ``policy``, as training names all of them, goes by its folder.
    """
    parts = {policy: _parts(policy) for policy in policies}
    names = {}
    for policy, own in parts.items():
        others = [theirs for other, theirs in parts.items() if other != policy]
        lengths = range(1, len(own) + 1)
        length = next((n for n in lengths if all(own[-n:] != theirs[-n:] for theirs in others)), len(own))
        names[policy] = "/".join(own[-length:])
    return names


def _parts(policy: str) -> tuple[str, ...]:
    path = PurePath(policy)
    if path.suffix not in (".safetensors", ".json") and len(path.parts) == 1:
        return (policy,)
    parts = path.with_suffix("").parts if path.suffix in (".safetensors", ".json") else path.parts
    return parts[:-1] if parts[-1] == "policy" and len(parts) > 1 else parts


def place_labels(axes: Axes, labels: Sequence[str], points: Float, drawn: Float, colors: Sequence[str]) -> None:
    """Write labels beside their points so that they cover neither each other nor what is drawn.

    Args:
        axes: laid out and scaled.
        labels: n texts.
        points: (n, 2) in data coordinates.
        drawn: (m, 2) pixels of what should stay visible: points, bars, lines.
        colors: n.
    """
    scale = axes.figure.dpi / 72.0
    inside = np.array(axes.get_window_extent().extents)
    taken = np.zeros((0, 4))
    for label, point, color in zip(labels, points, colors, strict=True):
        at = axes.transData.transform(point)
        width, height = _text_size(axes, label)
        places = [(distance, side) for distance in DISTANCES_POINTS for side in SIDES]
        boxes = np.array([_box(at, scale * distance, side, width, height) for distance, side in places])
        best = int(np.argmin(_cost(boxes, taken, drawn, inside)))
        taken = np.concatenate([taken, boxes[best : best + 1]])
        distance, (x, y, horizontal, vertical) = places[best]
        axes.annotate(
            label,
            tuple(point),
            xytext=(distance * x, distance * y),
            textcoords="offset points",
            ha=horizontal,
            va=vertical,
            fontsize=FONT_POINTS,
            color=color,
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.5, "shrinkB": 3}
            if distance >= LEADER_POINTS
            else None,
        )


def _text_size(axes: Axes, label: str) -> tuple[float, float]:
    """Width and height in pixels."""
    text = axes.text(0, 0, label, fontsize=FONT_POINTS)
    extent = text.get_window_extent()
    text.remove()
    return extent.width, extent.height


def _box(at: Float, distance: float, side: tuple[float, float, str, str], width: float, height: float) -> Float:
    """Left, bottom, right and top of a label in pixels, with a margin."""
    x, y, horizontal, vertical = side
    left = at[0] + distance * x + CORNER[horizontal] * width
    bottom = at[1] + distance * y + CORNER[vertical] * height
    margin = 0.2 * height
    return np.array([left - margin, bottom - margin, left + width + margin, bottom + height + margin])


def _cost(boxes: Float, taken: Float, drawn: Float, inside: Float) -> NDArray[np.int64]:
    """What each of (k, 4) boxes covers: labels weigh most, then drawn points; leaving the axes is worst."""
    left, bottom, right, top = (boxes[:, side, None] for side in range(4))
    x, y = drawn.T
    points = ((x > left) & (x < right) & (y > bottom) & (y < top)).sum(axis=1)
    x0, y0, x1, y1 = taken.T
    labels = ((x1 > left) & (x0 < right) & (y1 > bottom) & (y0 < top)).sum(axis=1)
    outside = (boxes[:, :2] < inside[:2]).any(axis=1) | (boxes[:, 2:] > inside[2:]).any(axis=1)
    return points + 50 * labels + 1000 * outside
