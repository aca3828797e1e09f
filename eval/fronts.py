"""The front of a family of policies, and its latency at a given quality.

A family's settings are points of mean added NLL and mean latency. Who draws at random before every episode which of two
policies to run gets every point of the line between theirs, so a front may be interpolated linearly, and only the
lower convex hull of the points counts. At its left end stands the model's own routing at optimal shares, which adds no
NLL; its right end is the fastest setting. Beyond the ends nothing was measured, and nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.statistics import Float


@dataclass(frozen=True, slots=True)
class Mixture:
    """Which two points of a front to draw from to meet a quality.

    Attributes:
        first: number of the point that adds less.
        second: number of the other; the same where one point suffices.
        share: of episodes that the second one runs.
    """

    first: int
    second: int
    share: float


def latency_at(added: Float, latency: Float, at: Float) -> Float:
    """Latency (R,) of fronts of K points at an added NLL.

    Left of a front it is infinite: that quality is not reached. Right of it, it is that of the fastest point, which
    is what the front surely gives there.

    Args:
        added: (R, K) mean added NLL of each point.
        latency: (R, K) mean latency.
        at: (R,) added NLL.
    """
    at = np.minimum(at, _of_fastest(added, latency))
    return _mixed(added, latency, at).min(axis=(1, 2))


def mixture_at(added: Float, latency: Float, at: float) -> Mixture:
    """The two points (K,) whose mixture has the least latency at an added NLL within the front."""
    mixed = _mixed(added[None], latency[None], np.array([at]))[0]
    first, second = np.unravel_index(mixed.argmin(), mixed.shape)
    gap = added[second] - added[first]
    return Mixture(int(first), int(second), float((at - added[first]) / gap) if gap > 0 else 0.0)


def is_within(added: Float, latency: Float, at: Float) -> NDArray[np.bool_]:
    """Whether an added NLL (R,) lies between the ends of fronts of points (R, K)."""
    return (added.min(axis=1) <= at) & (at <= _of_fastest(added, latency))


def hull(points: Float) -> Float:
    """Corners (H, 2) of the lower convex hull of points (K, 2), from the least first coordinate to the least second."""
    corners: list[Float] = []
    for point in points[np.lexsort(points.T[::-1])]:
        while len(corners) > 1 and _cross(corners[-2], corners[-1], point) <= 0:
            corners.pop()
        if not corners or point[1] < corners[-1][1]:
            corners.append(point)
    return np.array(corners)


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


def _mixed(added: Float, latency: Float, at: Float) -> Float:
    """(R, K, K): latency at an added NLL between the first point and the second, infinite where it is not between."""
    first, second, wanted = added[:, :, None], added[:, None, :], at[:, None, None]
    gap = second - first
    share = np.divide(wanted - first, gap, out=np.zeros_like(gap), where=gap > 0)
    between = (first <= wanted) & (wanted <= second)
    mixed = latency[:, :, None] + share * (latency[:, None, :] - latency[:, :, None])
    return np.where(between, mixed, np.inf)


def _of_fastest(added: Float, latency: Float) -> Float:
    """Added NLL (R,) of the fastest point; of equally fast ones, of the best."""
    fastest = latency == latency.min(axis=1, keepdims=True)
    return np.where(fastest, added, np.inf).min(axis=1)


def _cross(first: Float, second: Float, third: Float) -> float:
    """Positive where the three points turn left."""
    a, b = second - first, third - first
    return float(a[0] * b[1] - a[1] * b[0])
