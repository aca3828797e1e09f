"""Latency at matched quality as a picture: for each rule's setting the families' ratios with their intervals."""

from __future__ import annotations

import numpy as np

from eval.page.chart import Axis, Size, both_sizes, legend, mark, picture, polyline, round_ticks, text_size
from eval.page.html import Markup, tag
from eval.summary import Summary

ROW, GAP, HEAD, FOOT = 18.0, 14.0, 10.0, 44.0
# Width of what stands behind a name where there is room.
DETAIL = 150.0


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
    drawn = both_sizes(lambda size: _sized(groups, colors, learned, size), wide, narrow)
    return tag("div", drawn, legend(list(entries.values())))


def _kind(row: Summary, learned: frozenset[str]) -> str:
    return "disc" if row["family"] in learned else "ring"


def _sized(groups: dict[str, list[Summary]], colors: dict[str, str], learned: frozenset[str], size: Size) -> Markup:
    ratios = [row["latency_ratio"] for group in groups.values() for row in group]
    ends = np.array([min([0.98, *(one["low"] for one in ratios)]), max([1.02, *(one["high"] for one in ratios)])])
    x = Axis(ends[0] - 0.01, ends[1] + 0.01, size.left, size.width - size.right)
    parts = [_scale(size, x, ends)]
    y = HEAD
    for reference, group in groups.items():
        parts.append(_name(reference, group[0], size, y + ROW * len(group) / 2))
        for row in group:
            parts.append(_interval(row, x, y + ROW / 2, colors[row["family"]], _kind(row, learned)))
            y += ROW
        y += GAP
    return picture(size, "Latency over the rule's at the same added NLL", parts)


def _scale(size: Size, x: Axis, ends: np.ndarray) -> Markup:
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


def _name(reference: str, row: Summary, size: Size, middle: float) -> Markup:
    detail = f"  {row['added_nll']:+.4f}, {row['reference_latency_ms']:.1f} ms" if size.width > 500 else ""
    faint = tag("tspan", detail, class_="faint")
    return tag("text", reference, faint, x=size.left - 12, y=middle + 4, text_anchor="end")


def _interval(row: Summary, x: Axis, y: float, color: str, kind: str) -> Markup:
    ratio = row["latency_ratio"]
    ends = np.array([[x(ratio["low"]), y], [x(ratio["high"]), y]])
    title = f"{row['family']}: {ratio['mean']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
    return tag("g", polyline(ends, f"bar {color}"), mark(x(ratio["mean"]), y, kind, color, title))
