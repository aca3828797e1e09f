"""Axes, marks, colours and legends of the pictures, as SVG that takes its colours from the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from eval.page.html import Child, Markup, tag
from eval.statistics import Float, Summary
from wdmoe_env.evaluation import REFERENCE

FONT = 13
# Mean width of a letter over the size of the font.
LETTER = 0.56
MOST_TICKS = 7
NUM_COLORS = 12
REFERENCE_CLASS = "ink"

Ticks = Sequence[tuple[float, str]]


@dataclass(frozen=True, slots=True)
class Axis:
    """From values to pixels.

    Attributes:
        low: value at the start.
        high: value at the end.
        start: pixel.
        end: pixel.
        transform: of values, before they are spread evenly.
    """

    low: float
    high: float
    start: float
    end: float
    transform: Callable[[Float], Float] = np.asarray

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high, at = self.transform(np.array([self.low, self.high, value])).tolist()
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def shown(self, ticks: Ticks) -> Ticks:
        """Ticks within the axis."""
        return [tick for tick in ticks if self.low <= tick[0] <= self.high]


@dataclass(frozen=True, slots=True)
class Size:
    """Pixels of a picture and of its margins."""

    width: float
    height: float
    left: float = 58.0
    right: float = 14.0
    top: float = 12.0
    bottom: float = 46.0


WIDE = Size(1160.0, 560.0, left=70.0)
NARROW = Size(368.0, 420.0, left=62.0, right=8.0)


def both_sizes(draw: Callable[[Size], Markup], wide: Size = WIDE, narrow: Size = NARROW) -> Markup:
    """A picture drawn for wide and for narrow windows; the page shows the one that fits."""
    return tag("figure", tag("div", draw(wide), class_="wide"), tag("div", draw(narrow), class_="narrow"))


def picture(size: Size, name: str, *children: Child) -> Markup:
    """The picture, with a name for those who cannot see it."""
    box = f"0 0 {size.width:g} {size.height:g}"
    return tag("svg", tag("title", name), *children, viewBox=box, role="img", width=size.width, height=size.height)


def grid(size: Size, x: Axis, y: Axis, ticks: tuple[Ticks, Ticks], labels: tuple[str, str]) -> Markup:
    """Grid lines, figures and names of both axes."""
    bottom, left = size.height - size.bottom, size.left
    parts: list[Markup] = []
    for value, text in x.shown(ticks[0]):
        at = x(value)
        parts.append(tag("line", x1=at, x2=at, y1=size.top, y2=bottom, class_="grid"))
        parts.append(tag("text", text, x=at, y=bottom + 17, text_anchor="middle", class_="tick"))
    for value, text in y.shown(ticks[1]):
        at = y(value)
        parts.append(tag("line", x1=left, x2=size.width - size.right, y1=at, y2=at, class_="grid"))
        parts.append(tag("text", text, x=left - 6, y=at + 4, text_anchor="end", class_="tick"))
    middle = (size.top + bottom) / 2
    parts.append(
        tag("text", labels[0], x=(left + size.width - size.right) / 2, y=size.height - 8, text_anchor="middle")
    )
    turned = f"rotate(-90 13 {middle:g})"
    parts.append(tag("text", labels[1], x=13.0, y=middle, text_anchor="middle", transform=turned))
    return tag("g", parts)


def round_ticks(values: Float) -> list[tuple[float, str]]:
    """Round figures that span values, at most ``MOST_TICKS`` or so."""
    span = float(values.max() - values.min()) or 1.0
    raw = span / MOST_TICKS
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
    first = math.ceil(values.min() / step)
    return [(n * step, f"{n * step:.6g}") for n in range(first, math.floor(values.max() / step) + 1)]


def polyline(points: Float, class_: str) -> Markup:
    """A line through pixels (n, 2)."""
    return tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=class_)


def polygon(points: Float, class_: str) -> Markup:
    """An area within pixels (n, 2)."""
    return tag("polygon", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=class_)


def mark(x: float, y: float, kind: str, class_: str, title: str | None = None, radius: float = 5.0) -> Markup:
    """A point: a star for the reference, a disc for what was learned, a ring for a rule."""
    named = tag("title", title) if title else None
    if kind == "star":
        turns = np.pi * np.arange(10) / 5 - np.pi / 2
        reach = 1.7 * radius * np.where(np.arange(10) % 2, 0.42, 1.0)
        corners = np.stack([x + reach * np.cos(turns), y + reach * np.sin(turns)], axis=1)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
        return tag("polygon", named, points=points, class_=f"disc {class_}")
    return tag("circle", named, cx=x, cy=y, r=radius, class_=f"{kind} {class_}")


def legend(entries: Sequence[tuple[str, str, str]]) -> Markup:
    """Names with their marks: name, kind of mark, class of colour."""
    keys = [
        tag("li", tag("svg", mark(8, 8, kind, color), width=16, height=16, aria_hidden="true"), name)
        for name, kind, color in entries
    ]
    return tag("ul", keys, class_="legend")


def text_size(text: str) -> tuple[float, float]:
    """Width and height in pixels, roughly: what measures it exactly is the reader's browser."""
    return LETTER * FONT * len(text), float(FONT)


def color_classes(settings: Iterable[Summary]) -> dict[str, str]:
    """The CSS class of each family: learned ones first, in the palette's strongest colours."""
    ordered = sorted(settings, key=lambda setting: not setting["learned"])
    families = [family for family in dict.fromkeys(one["family"] for one in ordered) if family != REFERENCE]
    return {REFERENCE: REFERENCE_CLASS} | {family: f"c{n % NUM_COLORS}" for n, family in enumerate(families)}
