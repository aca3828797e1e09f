"""Where to write names in a picture so that they cover neither each other nor what is drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
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


def choose_places(
    sizes: Sequence[tuple[float, float]], points: Float, drawn: Float, inside: Float, pixels_per_point: float
) -> list[int]:
    """Of each label the number within ``PLACES``. The vertical axis points upwards.

    Args:
        sizes: n widths and heights in pixels.
        points: (n, 2) pixels of what is labelled.
        drawn: (m, 2) pixels of what should stay visible: points, bars, lines.
        inside: (4,) left, bottom, right and top of the picture.
        pixels_per_point: scale of the distances.
    """
    visible = np.concatenate([drawn, points])
    taken = np.zeros((0, 4))
    places = []
    for size, at in zip(sizes, points, strict=True):
        boxes, leaders = _candidates(size, at, pixels_per_point)
        best = int(np.argmin(_cost(boxes, leaders, taken, visible, inside)))
        places.append(best)
        taken = np.concatenate([taken, boxes[best : best + 1]])
        if has_leader(best):
            visible = np.concatenate([visible, leaders[best]])
    return places


def has_leader(place: int) -> bool:
    """Whether a place is so far from its point that a line leads to it."""
    return PLACES[place][0] >= LEADER_POINTS


def sampled(corners: Float) -> Float:
    """Points (m, 2) along a polyline (k, 2)."""
    along = np.linspace(0, len(corners) - 1, 25 * (len(corners) - 1) + 1)
    return np.stack([np.interp(along, np.arange(len(corners)), corners[:, axis]) for axis in (0, 1)], axis=1)


def _candidates(size: tuple[float, float], at: Float, pixels_per_point: float) -> tuple[Float, Float]:
    """For each of ``PLACES`` the label's box (k, 4), with a margin, and points (k, 24, 2) on the way to it; pixels."""
    width, height = size
    margin = 0.2 * height
    boxes, leaders = [], []
    for distance, (x, y, horizontal, vertical) in PLACES:
        anchor = at + distance * pixels_per_point * np.array([x, y])
        left, bottom = anchor + np.array([CORNER[horizontal] * width, CORNER[vertical] * height])
        boxes.append([left - margin, bottom - margin, left + width + margin, bottom + height + margin])
        leaders.append(np.linspace(at, anchor, 25)[1:])
    return np.array(boxes), np.array(leaders)


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
