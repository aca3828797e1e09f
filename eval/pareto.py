"""Latency against quality: the points, intervals, fronts and names that every picture of them shows, and where.

The PNG of a results folder (``eval.plots``) and the picture of the report page (``eval.page.pictures``) are drawn from
this. A family's settings are joined along what no mixture of them beats: the lower convex hull of their points. Names
stand where they cover neither each other nor what is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.members import point_label
from eval.statistics import Float, Summary
from wdmoe_env.evaluation import REFERENCE
from wdmoe_env.metrics import METRICS

LATENCY = "latency_ms"
LINEAR_UP_TO = 0.02
"""Added NLL that is drawn linearly; what lies beyond is drawn by its logarithm, so that the worst policies fit too."""
ADDED_NLL_TICKS = (-1.0, -0.3, -0.1, -0.05, -0.02, -0.01, 0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 4)

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


@dataclass(frozen=True, slots=True)
class Quality:
    """What stands against latency.

    Attributes:
        key: of the statistic in a summary.
        label: name of the vertical axis.
        scale: from the statistic to what is drawn.
        better: 1 where less is better, -1 where more is.
        linear_up_to: what is larger is drawn by its logarithm; ``None`` for an axis that is linear throughout.
        ticks: of the vertical axis; round figures where there are none.
    """

    key: str
    label: str
    scale: float = 1.0
    better: float = -1.0
    linear_up_to: float | None = None
    ticks: tuple[float, ...] = ()


_ADDED_NLL = METRICS["added_nll"]
ADDED_NLL = Quality(
    _ADDED_NLL.name,
    f"{_ADDED_NLL.label}, {_ADDED_NLL.unit} per token",
    better=_ADDED_NLL.sign,
    linear_up_to=LINEAR_UP_TO,
    ticks=ADDED_NLL_TICKS,
)
SUITE_ACCURACY = Quality("accuracy", "accuracy on the suite, %", scale=100.0)
SUITE_POINTS = Quality("accuracy_points_to_vanilla", "accuracy on the suite minus vanilla's, points")


class Pareto:
    """What a picture of latency against quality shows of one evaluation.

    Args:
        summary: a folder's JSON.
        quality: the vertical axis.

    Attributes:
        settings: K of them, as the JSON describes them.
        points: (K, 2) mean latency and quality.
        low: (K, 2) lower ends of their intervals.
        high: (K, 2) upper ends.
        seeds: for each setting the points (S, 2) of its training seeds, none where it has one.
        fronts: of each family with two settings or more the corners (H, 2) of its front.
        labels: K names.
    """

    def __init__(self, summary: Summary, quality: Quality) -> None:
        self.quality = quality
        self.settings: list[Summary] = summary["settings"]
        self.points, self.low, self.high = np.stack([self._values(one) for one in self.settings], axis=1)
        of_policy = {policy["policy"]: self._values(policy)[0] for policy in summary["policies"]}
        self.seeds = [np.array([of_policy[policy] for policy in one["policies"]]) for one in self.settings]
        self.seeds = [points if len(points) > 1 else points[:0] for points in self.seeds]
        self.fronts = family_fronts([one["family"] for one in self.settings], self.points, quality.better)
        self.labels = [point_label(one, one["family"] in self.fronts) for one in self.settings]

    def bars(self) -> list[list[Float]]:
        """The ends (2, 2) of the two intervals of each setting."""
        ends = zip(self.points, self.low, self.high, strict=True)
        return [
            [np.array([[low[0], y], [high[0], y]]), np.array([[x, low[1]], [x, high[1]]])] for (x, y), low, high in ends
        ]

    def lines(self) -> list[Float]:
        """All that is drawn as a line, each (n, 2): fronts, then intervals."""
        return [*self.fronts.values(), *(bar for bars in self.bars() for bar in bars)]

    def _values(self, statistics: Summary) -> Float:
        """Mean, low and high (3, 2) of latency and quality."""
        latency, quality = statistics[LATENCY], statistics[self.quality.key]
        return np.array([[latency[side], self.quality.scale * quality[side]] for side in ("mean", "low", "high")])


def points_along(lines: Sequence[Float]) -> Float:
    """Points (m, 2) along lines (n, 2), which names should not cover."""
    return np.concatenate([_points_of(line) for line in lines])


def _points_of(corners: Float) -> Float:
    """Points (m, 2) along a line of corners (k, 2)."""
    along = np.linspace(0, len(corners) - 1, 25 * (len(corners) - 1) + 1)
    return np.stack([np.interp(along, np.arange(len(corners)), corners[:, axis]) for axis in (0, 1)], axis=1)


def mark_kind(setting: Summary) -> str:
    """The mark of a setting: a star for the reference, a disc for what was learned, a ring for a rule."""
    return "star" if setting["family"] == REFERENCE else "disc" if setting["learned"] else "ring"


def family_fronts(families: Sequence[str], points: Float, better: float) -> dict[str, Float]:
    """Of each family with two points or more the corners (H, 2) of its front.

    Args:
        families: K names.
        points: (K, 2) latency, of which less is better, and quality.
        better: 1 where less quality is better, -1 where more is.
    """
    members: dict[str, list[int]] = {}
    for at, family in enumerate(families):
        members.setdefault(family, []).append(at)
    signs = np.array([1.0, better])
    return {family: hull(points[at] * signs) * signs for family, at in members.items() if len(at) > 1}


def hull(points: Float) -> Float:
    """Corners (H, 2) of the lower convex hull of points (K, 2), from the least first coordinate to the least second."""
    corners: list[Float] = []
    for point in points[np.lexsort(points.T[::-1])]:
        while len(corners) > 1 and _cross(corners[-2], corners[-1], point) <= 0:
            corners.pop()
        if not corners or point[1] < corners[-1][1]:
            corners.append(point)
    return np.array(corners)


def _cross(first: Float, second: Float, third: Float) -> float:
    """Positive where the three points turn left."""
    a, b = second - first, third - first
    return float(a[0] * b[1] - a[1] * b[0])


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
