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
DISTANCES_POINTS = (7, 14, 22, 32, 44, 58, 74, 92, 112)
PLACES = [(distance, side) for distance in DISTANCES_POINTS for side in SIDES]
# From this distance on, a line leads from the label to its point.
LEADER_POINTS = 22
# Where the label's left lower corner lies, as a part of its width or height, for each alignment.
CORNER = {"left": 0.0, "bottom": 0.0, "center": -0.5, "right": -1.0, "top": -1.0}

FONT_POINTS = 9
FILE_SUFFIXES = (".safetensors", ".json")


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


def is_file(policy: str) -> bool:
    """Whether a policy is a file and not a rule, by its name alone."""
    path = PurePath(policy)
    return path.suffix in FILE_SUFFIXES or len(path.parts) > 1


def _parts(policy: str) -> tuple[str, ...]:
    if not is_file(policy):
        return (policy,)
    path = PurePath(policy)
    parts = path.with_suffix("").parts if path.suffix in FILE_SUFFIXES else path.parts
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
    inside = np.array(axes.get_window_extent().extents)
    pixels = axes.transData.transform(points)
    visible = np.concatenate([drawn, pixels])
    taken = np.zeros((0, 4))
    for label, point, at, color in zip(labels, points, pixels, colors, strict=True):
        boxes, leaders = _candidates(axes, label, at)
        best = int(np.argmin(_cost(boxes, leaders, taken, visible, inside)))
        distance, _ = PLACES[best]
        _write(axes, label, point, color, best)
        taken = np.concatenate([taken, boxes[best : best + 1]])
        if distance >= LEADER_POINTS:
            visible = np.concatenate([visible, leaders[best]])


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
        arrowprops=leader if distance >= LEADER_POINTS else None,
    )


def _candidates(axes: Axes, label: str, at: Float) -> tuple[Float, Float]:
    """For each of ``PLACES`` the label's box (k, 4), with a margin, and points (k, 24, 2) on the way to it; pixels."""
    width, height = _text_size(axes, label)
    margin = 0.2 * height
    boxes, leaders = [], []
    for distance, (x, y, horizontal, vertical) in PLACES:
        anchor = at + distance * axes.figure.dpi / 72.0 * np.array([x, y])
        left, bottom = anchor + np.array([CORNER[horizontal] * width, CORNER[vertical] * height])
        boxes.append([left - margin, bottom - margin, left + width + margin, bottom + height + margin])
        leaders.append(np.linspace(at, anchor, 25)[1:])
    return np.array(boxes), np.array(leaders)


def _text_size(axes: Axes, label: str) -> tuple[float, float]:
    """Width and height in pixels."""
    text = axes.text(0, 0, label, fontsize=FONT_POINTS)
    extent = text.get_window_extent()
    text.remove()
    return extent.width, extent.height


def _cost(boxes: Float, leaders: Float, taken: Float, visible: Float, inside: Float) -> NDArray[np.int64]:
    """What each candidate covers: labels weigh most, then drawn points; leaving the axes is worst."""
    covered = _within(visible, boxes).sum(axis=1)
    crossed = _within(leaders.reshape(-1, 2), taken).sum(axis=0).reshape(leaders.shape[:2]).sum(axis=1) > 0
    left, bottom, right, top = (boxes[:, side, None] for side in range(4))
    x0, y0, x1, y1 = taken.T
    labels = ((x1 > left) & (x0 < right) & (y1 > bottom) & (y0 < top)).sum(axis=1)
    outside = (boxes[:, :2] < inside[:2]).any(axis=1) | (boxes[:, 2:] > inside[2:]).any(axis=1)
    return covered + 20 * crossed + 50 * labels + 1000 * outside


def _within(points: Float, boxes: Float) -> NDArray[np.bool_]:
    """(k, m): whether each of (m, 2) points lies in each of (k, 4) boxes."""
    x, y = points.T
    left, bottom, right, top = (boxes[:, side, None] for side in range(4))
    return (x > left) & (x < right) & (y > bottom) & (y < top)
