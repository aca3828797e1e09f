"""Performance profiles with their bands."""

from __future__ import annotations

import numpy as np

from eval.page.chart import Axis, Size, both_sizes, grid, legend, picture, polygon, polyline, round_ticks
from eval.page.html import Markup, tag
from eval.summary import Summary

WIDE, NARROW = Size(560.0, 350.0), Size(368.0, 300.0, left=52.0, right=8.0)
SHARES = [(at / 4, f"{25 * at} %") for at in range(5)]


def draw_profile(profile: Summary, colors: dict[str, str]) -> Markup:
    """The picture of one score, with the settings that stand for their families."""
    entries = [(one["name"], "disc" if one["learned"] else "ring", colors[one["family"]]) for one in profile["curves"]]
    return tag("div", both_sizes(lambda size: _sized(profile, colors, size), WIDE, NARROW), legend(entries))


def _sized(profile: Summary, colors: dict[str, str], size: Size) -> Markup:
    levels = np.array(profile["levels"])
    x = Axis(levels[0], levels[-1], size.left, size.width - size.right)
    y = Axis(0.0, 1.0, size.height - size.bottom, size.top)
    bands, lines = [], []
    for curve in profile["curves"]:
        color, width = colors[curve["family"]], "thick" if curve["learned"] else "thin"
        edges = [np.array([[x(a), y(b)] for a, b in zip(levels, curve[side], strict=True)]) for side in ("low", "high")]
        bands.append(polygon(np.concatenate([edges[0], edges[1][::-1]]), f"band {color}"))
        line = np.array([[x(a), y(b)] for a, b in zip(levels, curve["share"], strict=True)])
        lines.append(polyline(line, f"curve {width} {color}"))
    axes = grid(size, x, y, (round_ticks(levels), SHARES), (profile["score"], ""))
    return picture(size, f"Share of runs above a score: {profile['score']}", axes, bands, lines)
