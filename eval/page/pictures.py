"""The pictures of the page, as SVG: latency against quality, at matched quality, and performance profiles."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from eval.page.chart import (
    Axis,
    Size,
    both_sizes,
    color_classes,
    grid,
    legend,
    mark,
    picture,
    polygon,
    polyline,
    round_ticks,
    text_size,
)
from eval.page.html import Markup, tag
from eval.pareto import CORNER, PLACES, Pareto, Quality, choose_places, has_leader, mark_kind, points_along
from eval.statistics import Float, Summary

LATENCY_TICKS = [(float(ms), str(ms)) for ms in (5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 130, 200, 300, 500)]
FEW_LATENCY_TICKS = [(float(ms), str(ms)) for ms in (5, 10, 20, 30, 40, 60, 100, 200, 500)]
ANCHOR = {"left": "start", "center": "middle", "right": "end"}
PROFILE_WIDE, PROFILE_NARROW = Size(560.0, 350.0), Size(368.0, 300.0, left=52.0, right=8.0)
SHARES = [(at / 4, f"{25 * at} %") for at in range(5)]
# Of the picture of latencies at matched quality, in pixels.
ROW, GAP, HEAD, FOOT = 18.0, 14.0, 10.0, 44.0
# Width of what stands behind a name where there is room.
DETAIL = 150.0


def draw_pareto(summary: Summary, quality: Quality) -> Markup:
    """Latency against quality: every setting a point with its interval, every family a front.

    Args:
        summary: a folder's JSON.
        quality: the vertical axis.
    """
    pareto, colors = Pareto(summary, quality), color_classes(summary["settings"])
    entries = {one["family"]: (one["family"], mark_kind(one), colors[one["family"]]) for one in pareto.settings}
    drawn = both_sizes(lambda size: _SizedPareto(pareto, colors, size).draw())
    return tag("div", drawn, legend(list(entries.values())))


class _SizedPareto:
    """The picture of latency against quality in one size.

    Args:
        pareto: what it shows.
        colors: class of each family.
        size: in pixels.
    """

    def __init__(self, pareto: Pareto, colors: dict[str, str], size: Size) -> None:
        self._pareto = pareto
        self._size = size
        self._colors = colors
        self._of_setting = [colors[one["family"]] for one in pareto.settings]
        self._x, self._y = self._axes()

    def draw(self) -> Markup:
        """The picture."""
        pareto, size, x, y = self._pareto, self._size, self._x, self._y
        pixels = self._pixels(pareto.points)
        fronts = [polyline(self._pixels(line), f"front {self._colors[name]}") for name, line in pareto.fronts.items()]
        bars = [
            polyline(self._pixels(bar), f"bar {color}")
            for color, pair in zip(self._of_setting, pareto.bars(), strict=True)
            for bar in pair
        ]
        across = LATENCY_TICKS if size.width > 500 else FEW_LATENCY_TICKS
        upwards = [(tick, f"{tick:+g}" if tick else "0") for tick in pareto.quality.ticks]
        upwards = upwards or round_ticks(np.array([y.low, y.high]))
        name = pareto.quality.label
        axes = grid(size, x, y, (across, upwards), ("latency, ms", name))
        marks = [self._mark(at, pixel) for at, pixel in enumerate(pixels)]
        return picture(size, f"Latency against {name}", axes, fronts, bars, self._seeds(), marks, self._labels(pixels))

    def _pixels(self, points: Iterable[Float]) -> Float:
        return np.array([[self._x(latency), self._y(quality)] for latency, quality in points])

    def _axes(self) -> tuple[Axis, Axis]:
        size, low, high = self._size, self._pareto.low.min(axis=0), self._pareto.high.max(axis=0)
        to_even, from_even = _scale(self._pareto.quality.linear_up_to)
        ends = to_even(np.array([low[1], high[1]]))
        margin = 0.07 * (ends[1] - ends[0]) + 1e-3
        bottom, top = from_even(ends + np.array([-margin, margin])).tolist()
        y = Axis(bottom, top, size.height - size.bottom, size.top, to_even)
        return Axis(low[0] / 1.06, high[0] * 1.12, size.left, size.width - size.right, np.log), y

    def _seeds(self) -> list[Markup]:
        return [
            tag("circle", cx=x, cy=y, r=2.2, class_=f"seed {color}")
            for color, seeds in zip(self._of_setting, self._pareto.seeds, strict=True)
            for x, y in self._pixels(seeds)
        ]

    def _mark(self, at: int, pixel: Float) -> Markup:
        setting, (latency, quality) = self._pareto.settings[at], self._pareto.points[at]
        seeds = f", {len(setting['seeds'])} seeds" if len(setting["seeds"]) > 1 else ""
        title = f"{setting['name']}{seeds}: {latency:.1f} ms, {quality:.4g}"
        return mark(float(pixel[0]), float(pixel[1]), mark_kind(setting), self._of_setting[at], title)

    def _labels(self, pixels: Float) -> list[Markup]:
        size, names = self._size, self._pareto.labels
        covered = points_along([self._pixels(line) for line in self._pareto.lines()])
        upwards, shift = np.array([1.0, -1.0]), np.array([0.0, size.height])
        inside = np.array([size.left, size.bottom, size.width - size.right, size.height - size.top])
        sizes = [text_size(name) for name in names]
        places = choose_places(sizes, pixels * upwards + shift, covered * upwards + shift, inside, 1.2)
        found = zip(names, pixels, sizes, places, self._of_setting, strict=True)
        return [_label(*one) for one in found]


def _scale(linear_up_to: float | None) -> tuple[Callable[[Float], Float], Callable[[Float], Float]]:
    """From values to where they stand evenly, and back: linear, or beyond a value a decade as long as up to it."""
    if linear_up_to is None:
        return np.asarray, np.asarray

    def to_even(values: Float) -> Float:
        size = np.abs(values) / linear_up_to
        return np.sign(values) * np.where(size <= 1.0, size, 1.0 + np.log10(np.maximum(size, 1.0)))

    def from_even(values: Float) -> Float:
        size = np.abs(values)
        return np.sign(values) * linear_up_to * np.where(size <= 1.0, size, 10.0 ** (size - 1.0))

    return to_even, from_even


def _label(name: str, pixel: Float, size: tuple[float, float], place: int, color: str) -> Markup:
    distance, (x, y, horizontal, vertical) = PLACES[place]
    anchor = pixel + 1.2 * distance * np.array([x, -y])
    baseline = anchor[1] - CORNER[vertical] * size[1] - 0.22 * size[1]
    leader = tag("line", x1=pixel[0], y1=pixel[1], x2=anchor[0], y2=anchor[1], class_=f"leader {color}")
    text = tag("text", name, x=anchor[0], y=baseline, text_anchor=ANCHOR[horizontal], class_=f"name {color}")
    return tag("g", leader if has_leader(place) else None, text)


def draw_matched(rows: list[Summary], colors: dict[str, str], learned: frozenset[str]) -> Markup:
    """The picture of the rows that are reached.

    Args:
        rows: of ``matched_quality``.
        colors: class of each family.
        learned: names of the learned families.
    """
    reached = [row for row in rows if row["latency_ratio"]]
    if not reached:
        return tag("p", "No family reaches the quality of any of these settings.")
    groups: dict[str, list[Summary]] = {}
    for row in reached:
        groups.setdefault(row["reference"], []).append(row)
    height = HEAD + FOOT + sum(ROW * len(group) + GAP for group in groups.values())
    longest = max(text_size(name)[0] for name in groups)
    wide, narrow = Size(1160.0, height, left=longest + DETAIL), Size(368.0, height, left=longest + 20.0, right=8.0)
    entries = {row["family"]: (row["family"], _kind(row, learned), colors[row["family"]]) for row in reached}
    drawn = both_sizes(lambda size: _matched(groups, colors, learned, size), wide, narrow)
    return tag("div", drawn, legend(list(entries.values())))


def _kind(row: Summary, learned: frozenset[str]) -> str:
    return "disc" if row["family"] in learned else "ring"


def _matched(groups: dict[str, list[Summary]], colors: dict[str, str], learned: frozenset[str], size: Size) -> Markup:
    ratios = [row["latency_ratio"] for group in groups.values() for row in group]
    ends = np.array([min([0.98, *(one["low"] for one in ratios)]), max([1.02, *(one["high"] for one in ratios)])])
    x = Axis(ends[0] - 0.01, ends[1] + 0.01, size.left, size.width - size.right)
    parts = [_matched_scale(size, x, ends)]
    y = HEAD
    for reference, group in groups.items():
        parts.append(_reference_name(reference, group[0], size, y + ROW * len(group) / 2))
        for row in group:
            parts.append(_interval(row, x, y + ROW / 2, colors[row["family"]], _kind(row, learned)))
            y += ROW
        y += GAP
    return picture(size, "Latency over the rule's at the same added NLL", parts)


def _matched_scale(size: Size, x: Axis, ends: np.ndarray) -> Markup:
    bottom = size.height - FOOT
    parts = []
    ticks = round_ticks(ends)
    for value, text in ticks if size.width > 500 else ticks[::2]:
        parts.append(tag("line", x1=x(value), x2=x(value), y1=0, y2=bottom, class_="grid"))
        parts.append(tag("text", text, x=x(value), y=bottom + 16, text_anchor="middle", class_="tick"))
    parts.append(tag("line", x1=x(1.0), x2=x(1.0), y1=0, y2=bottom, class_="one"))
    middle = (size.left + size.width - size.right) / 2
    label = "latency over the rule's, at equal added NLL" if size.width > 500 else "latency ratio at equal NLL"
    return tag("g", parts, tag("text", label, x=middle, y=bottom + 36, text_anchor="middle"))


def _reference_name(reference: str, row: Summary, size: Size, middle: float) -> Markup:
    detail = f"  {row['added_nll']:+.4f}, {row['reference_latency_ms']:.1f} ms" if size.width > 500 else ""
    faint = tag("tspan", detail, class_="faint")
    return tag("text", reference, faint, x=size.left - 12, y=middle + 4, text_anchor="end")


def _interval(row: Summary, x: Axis, y: float, color: str, kind: str) -> Markup:
    ratio = row["latency_ratio"]
    ends = np.array([[x(ratio["low"]), y], [x(ratio["high"]), y]])
    title = f"{row['family']}: {ratio['mean']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
    return tag("g", polyline(ends, f"bar {color}"), mark(x(ratio["mean"]), y, kind, color, title))


def draw_profile(profile: Summary, colors: dict[str, str]) -> Markup:
    """The picture of one score, with the settings that stand for their families."""
    entries = [(one["name"], "disc" if one["learned"] else "ring", colors[one["family"]]) for one in profile["curves"]]
    return tag(
        "div", both_sizes(lambda size: _profile(profile, colors, size), PROFILE_WIDE, PROFILE_NARROW), legend(entries)
    )


def _profile(profile: Summary, colors: dict[str, str], size: Size) -> Markup:
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
