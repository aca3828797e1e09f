"""Latency against quality: every setting a point with its interval, every family a front."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from eval.fronts import family_fronts
from eval.names import point_label
from eval.page.chart import Axis, Size, both_sizes, grid, legend, mark, picture, polyline, round_ticks, text_size
from eval.page.colors import color_classes, mark_kind
from eval.page.html import Markup, tag
from eval.placing import CORNER, PLACES, choose_places, has_leader, sampled
from eval.statistics import Float
from eval.summary import Summary

LATENCY_TICKS = [(float(ms), str(ms)) for ms in (5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 130, 200, 300, 500)]
FEW_LATENCY_TICKS = [(float(ms), str(ms)) for ms in (5, 10, 20, 30, 40, 60, 100, 200, 500)]
ADDED_TICKS = [
    (value, f"{value:+g}" if value else "0")
    for value in (-0.3, -0.1, -0.05, -0.02, -0.01, 0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 4)
]
LINEAR_UP_TO = 0.02
ANCHOR = {"left": "start", "center": "middle", "right": "end"}


def symmetric_logarithm(values: Float) -> Float:
    """Linear up to ``LINEAR_UP_TO``, then a decade is as long as that."""
    scaled = np.abs(values) / LINEAR_UP_TO
    beyond = 1.0 + np.log10(np.maximum(scaled, 1.0))
    return np.sign(values) * np.where(scaled <= 1.0, scaled, beyond)


@dataclass(frozen=True, slots=True)
class Quality:
    """What stands against latency.

    Attributes:
        key: of the statistic.
        scale: from the statistic to what is drawn.
        better: 1 where less is better, -1 where more is.
        label: name of the axis.
        ticks: of the axis; round figures where there are none.
        transform: of the axis.
    """

    key: str
    scale: float
    better: float
    label: str
    ticks: list[tuple[float, str]]
    transform: Callable[[Float], Float]


ADDED_NLL = Quality("added_nll", 1.0, 1.0, "added NLL, nats per token", ADDED_TICKS, symmetric_logarithm)
POINTS = Quality(
    "accuracy_points_to_vanilla", 1.0, -1.0, "accuracy on the suite minus vanilla's, points", [], np.asarray
)


class Pareto:
    """The picture of one evaluation.

    Args:
        summary: a folder's JSON.
        quality: the vertical axis.
    """

    def __init__(self, summary: Summary, quality: Quality) -> None:
        self.settings = summary["settings"]
        self.quality = quality
        self.colors = color_classes(self.settings)
        self._of_policy = {policy["policy"]: self._values(policy)[:, 0] for policy in summary["policies"]}
        values = np.stack([self._values(setting) for setting in self.settings])
        self._points, self._low, self._high = (values[..., side] for side in range(3))

    def draw(self) -> Markup:
        """The picture in both sizes, with its legend."""
        entries = {one["family"]: (one["family"], mark_kind(one), self.colors[one["family"]]) for one in self.settings}
        return tag("div", both_sizes(self._sized), legend(list(entries.values())))

    def _values(self, statistics: Summary) -> Float:
        """Latency and quality (2,) as mean, low and high, (2, 3)."""
        sides = ("mean", "low", "high")
        return np.array(
            [
                [statistics["latency_ms"][side] for side in sides],
                [self.quality.scale * statistics[self.quality.key][side] for side in sides],
            ]
        )

    def _sized(self, size: Size) -> Markup:
        x, y = self._axes(size)

        def to_pixels(points: Iterable[Float]) -> Float:
            return np.array([[x(a), y(b)] for a, b in points])

        pixels = to_pixels(self._points)
        fronts = {family: to_pixels(corners) for family, corners in self._fronts().items()}
        bars = [to_pixels(ends) for ends in self._bars()]
        lines = [polyline(corners, f"front {self.colors[family]}") for family, corners in fronts.items()]
        drawn = np.concatenate([sampled(line) for line in [*fronts.values(), *bars]])
        spans = [polyline(ends, f"bar {self._color(at // 2)}") for at, ends in enumerate(bars)]
        across = LATENCY_TICKS if size.width > 500 else FEW_LATENCY_TICKS
        upwards = self.quality.ticks or round_ticks(np.array([y.low, y.high]))
        return picture(
            size,
            f"Latency against {self.quality.label}",
            grid(size, x, y, (across, upwards), ("latency, ms", self.quality.label)),
            lines,
            spans,
            [seed for at in range(len(pixels)) for seed in self._seeds(at, to_pixels)],
            [self._mark(at, pixels[at]) for at in range(len(pixels))],
            self._labels(size, pixels, drawn),
        )

    def _axes(self, size: Size) -> tuple[Axis, Axis]:
        low, high = self._low.min(axis=0), self._high.max(axis=0)
        bottom, left = size.height - size.bottom, size.left
        transform = self.quality.transform
        ends = transform(np.array([low[1], high[1]]))
        margin = 0.07 * (ends[1] - ends[0]) + 1e-3
        inverse = self._inverse
        y = Axis(inverse(ends[0] - margin), inverse(ends[1] + margin), bottom, size.top, transform)
        return Axis(low[0] / 1.06, high[0] * 1.12, left, size.width - size.right, np.log), y

    def _inverse(self, value: float) -> float:
        """The value that the axis shows at a transformed one."""
        if self.quality.transform is not symmetric_logarithm:
            return float(value)
        size = abs(value)
        return float(np.sign(value) * LINEAR_UP_TO * (size if size <= 1.0 else 10.0 ** (size - 1.0)))

    def _color(self, at: int) -> str:
        return self.colors[self.settings[at]["family"]]

    def _fronts(self) -> dict[str, Float]:
        """Of each family with two settings or more the corners of its front."""
        return family_fronts([one["family"] for one in self.settings], self._points, self.quality.better)

    def _bars(self) -> list[Float]:
        """Two intervals (2, 2) of each point."""
        bars = []
        for (x, y), low, high in zip(self._points, self._low, self._high, strict=True):
            bars += [np.array([[low[0], y], [high[0], y]]), np.array([[x, low[1]], [x, high[1]]])]
        return bars

    def _seeds(self, at: int, to_pixels: Callable[[Iterable[Float]], Float]) -> list[Markup]:
        policies = self.settings[at]["policies"]
        if len(policies) < 2:
            return []
        points = to_pixels([self._of_policy[policy] for policy in policies])
        return [tag("circle", cx=x, cy=y, r=2.2, class_=f"seed {self._color(at)}") for x, y in points]

    def _mark(self, at: int, pixel: Float) -> Markup:
        setting, (latency, quality) = self.settings[at], self._points[at]
        seeds = f", {len(setting['seeds'])} seeds" if len(setting["seeds"]) > 1 else ""
        title = f"{setting['name']}{seeds}: {latency:.1f} ms, {quality:.4g}"
        return mark(float(pixel[0]), float(pixel[1]), mark_kind(setting), self._color(at), title)

    def _labels(self, size: Size, pixels: Float, drawn: Float) -> list[Markup]:
        swept = self._fronts().keys()
        names = [point_label(one, one["family"] in swept) for one in self.settings]
        upwards, shift = np.array([1.0, -1.0]), np.array([0.0, size.height])
        inside = np.array([size.left, size.bottom, size.width - size.right, size.height - size.top])
        sizes = [text_size(name) for name in names]
        places = choose_places(sizes, pixels * upwards + shift, drawn * upwards + shift, inside, 1.2)
        found = zip(names, pixels, sizes, places, strict=True)
        return [self._label(at, *one) for at, one in enumerate(found)]

    def _label(self, at: int, name: str, pixel: Float, size: tuple[float, float], place: int) -> Markup:
        distance, (x, y, horizontal, vertical) = PLACES[place]
        anchor = pixel + 1.2 * distance * np.array([x, -y])
        baseline = anchor[1] - CORNER[vertical] * size[1] - 0.22 * size[1]
        color = self._color(at)
        leader = tag("line", x1=pixel[0], y1=pixel[1], x2=anchor[0], y2=anchor[1], class_=f"leader {color}")
        text = tag("text", name, x=anchor[0], y=baseline, text_anchor=ANCHOR[horizontal], class_=f"name {color}")
        return tag("g", leader if has_leader(place) else None, text)
