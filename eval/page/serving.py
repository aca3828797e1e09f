"""The sections of the page on cells that serve requests: tables, what is equal in quality, and one cell in time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from eval.members import short_names
from eval.page.chart import Axis, Size, both_sizes, grid, legend, picture, polyline, round_ticks
from eval.page.html import Child, Markup, section, table, tag
from eval.serve_report import COLUMNS, SEED_HEAD, Lines, load_lines, mixture_text
from eval.serve_statistics import E2E, GOODPUT, TAIL
from eval.serve_timeline import BINS, PHASES, Timeline
from eval.statistics import Float, Summary

INTERVALS = (E2E, TAIL, "added_nll", "e2e_ratio_iqm")
"""Figures whose interval is shown."""
ROW, HEAD, GAP, FOOT = 9.0, 8.0, 10.0, 44.0
LOADS_WIDE, LOADS_NARROW = Size(560.0, 340.0, left=66.0), Size(368.0, 300.0, left=62.0, right=8.0)
COLORS = ("c9", "c0", "c1")
"""Of the phases of a request."""


def serving_sections(summary: Summary) -> Markup:
    """An evaluation on cells that serve requests.

    Args:
        summary: the content of ``results.json``.
    """
    config = summary["config"]
    environment = config["environment"]
    serving = environment["serving"]
    title = (
        f"{config['episodes']} cells of {serving['requests']} requests in {serving['slots']} slots on the model "
        f"{environment['model']}, split {environment['split']}, seed {config['seed']}. Every policy met the same "
        "arrivals, texts and channels."
    )
    return tag(
        "div",
        tag("header", tag("h2", "Requests served"), tag("p", title, class_="lead")),
        [_load_section(one) for one in summary["loads"]],
        _loads_section(summary),
        _timeline_section(summary.get("timelines", {})),
    )


def _load_section(one: Summary) -> Markup:
    names = short_names([policy["policy"] for policy in one["policies"]])
    columns = {name: head for name, head in COLUMNS.items() if name in one["policies"][0]}
    rows: list[list[Child]] = [
        [names[policy["policy"]], *(_figure(policy[name], name in INTERVALS) for name in columns)]
        for policy in one["policies"]
    ]
    board = table(["policy", *columns.values()], rows, "board")
    equal, seeds = _matched(one["matched_quality"]), _trained(one["training_seeds"])
    return section(f"Load {one['load']:g}", board, tag("p", NOTE, class_="note"), equal, seeds)


def _figure(statistic: Summary, interval: bool) -> Markup:
    if statistic["mean"] is None:
        return tag("span", "-", class_="faint")
    form = ".4f" if abs(statistic["mean"]) < 1 else ".1f"
    mean, low, high = (format(statistic[key], form) for key in ("mean", "low", "high"))
    return tag("span", mean, tag("small", f"{low} to {high}") if interval else None)


def _matched(rows: Sequence[Summary]) -> Markup | None:
    """What could be compared at equal added NLL, as a table."""
    body: list[list[Child]] = [
        [
            row["reference"],
            f"{row['added_nll']:+.4f}",
            row["family"],
            row["figure"],
            _figure(row["ratio"], interval=True),
            mixture_text(row["mixture"]),
        ]
        for row in rows
        if row["ratio"] is not None
    ]
    if not body:
        return None
    header: list[Child] = ["at the quality of", "added NLL", "family", "figure", "ratio", "drawn from"]
    return tag("div", tag("h3", "At equal added NLL"), table(header, body, "board"), tag("p", MATCHED, class_="note"))


def _trained(rows: Sequence[Summary]) -> Markup | None:
    """Means over training seeds, as a table."""
    body: list[list[Child]] = []
    for row in rows:
        figures = (row[E2E], row["added_nll"], *(row["ratios"][name] for name in (E2E, TAIL)))
        shown = [None if one is None else _figure(one, interval=True) for one in figures]
        body.append([row["setting"], str(len(row["seeds"])), *shown])
    return tag("div", tag("h3", "Training seeds"), table([*SEED_HEAD], body, "board")) if body else None


def _loads_section(summary: Summary) -> Markup | None:
    if len(summary["loads"]) < 2:
        return None
    lines = load_lines(summary)
    entries = [(name, "disc", f"c{number}") for number, name in enumerate(lines)]
    pictures = [
        both_sizes(partial(_draw_loads, lines, keys, label), LOADS_WIDE, LOADS_NARROW)
        for keys, label in (((E2E, TAIL), "E2E in ms: mean, and p95 thin"), ((GOODPUT,), "goodput, 1/s"))
    ]
    return section("Against load", tag("div", pictures, class_="pair"), legend(entries))


def _draw_loads(lines: Lines, keys: Sequence[str], label: str, size: Size) -> Markup:
    values = [point[key] for line in lines.values() for point in line.values() for key in keys if key in point]
    loads = np.array([load for line in lines.values() for load in line])
    x = Axis(loads.min(), loads.max(), size.left, size.width - size.right)
    y = Axis(0.0, 1.05 * max(*values, 1e-9), size.height - size.bottom, size.top)
    drawn = []
    for number, line in enumerate(lines.values()):
        for key, width in zip(keys, ("thick", "thin"), strict=False):
            points = [(x(load), y(point[key])) for load, point in line.items() if key in point]
            drawn.append(polyline(np.array(points), f"curve {width} c{number % 12}"))
    axes = grid(size, x, y, (round_ticks(loads), round_ticks(np.array([0.0, y.high]))), ("load", label))
    return picture(size, f"{label} against load", axes, drawn)


def _timeline_section(timelines: Summary) -> Markup | None:
    if not timelines:
        return None
    shown = {name: Timeline.from_dict(one) for name, one in timelines.items()}
    longest_ms = max(one.end_ms for one in shown.values())
    names = short_names(list(shown))
    parts = []
    for policy, one in shown.items():
        height = HEAD + ROW * (len(one.requests["e2e_ms"]) + len(one.busy)) + GAP + FOOT
        sizes = Size(1160.0, height, left=70.0), Size(368.0, height, left=62.0, right=8.0)
        drawn = both_sizes(partial(_draw_timeline, one, longest_ms), *sizes)
        parts += [tag("h3", names[policy]), drawn]
    entries = [(name, "disc", color) for name, color in zip(PHASES, COLORS, strict=True)]
    return section("One cell in time", *parts, legend(entries), tag("p", TIMELINE, class_="note"))


def _draw_timeline(one: Timeline, longest_ms: float, size: Size) -> Markup:
    x = Axis(0.0, longest_ms, size.left, size.width - size.right)
    bars = []
    for color, (left, width) in zip(COLORS, one.bars(), strict=True):
        for number in np.flatnonzero(np.isfinite(width)):
            bars.append(_box(x(left[number]), x(left[number] + width[number]), HEAD + ROW * number, color, 1.0))
    top = HEAD + ROW * len(one.requests["e2e_ms"]) + GAP
    bins = 60 if size.width > 500 else 30
    busy: Float = one.busy.reshape(len(one.busy), bins, BINS // bins).mean(axis=-1)
    edges = [x(at) for at in np.linspace(0.0, one.end_ms, bins + 1).tolist()]
    for device, shares in enumerate(busy.tolist()):
        for at, share in enumerate(shares):
            bars.append(_box(edges[at], edges[at + 1], top + ROW * device, "ink", min(share, 1.0)))
    bottom = size.height - FOOT
    names = [("requests", HEAD + (top - GAP - HEAD) / 2), ("devices", (top + bottom) / 2)]
    words = [tag("text", name, x=size.left - 8, y=at + 4, text_anchor="end", class_="tick") for name, at in names]
    ticks = [
        tag("text", text, x=x(value), y=bottom + 17, text_anchor="middle", class_="tick")
        for value, text in round_ticks(np.array([0.0, longest_ms]))
    ]
    label = tag("text", "simulated time, ms", x=(size.left + size.width) / 2, y=size.height - 6, text_anchor="middle")
    return picture(size, "Requests and devices of one cell in time", bars, words, ticks, label)


def _box(left: float, right: float, top: float, color: str, share: float) -> Markup:
    width = max(right - left, 0.4)
    return tag("rect", x=left, y=top, width=width, height=ROW - 1, class_=f"fill {color}", fill_opacity=round(share, 2))


NOTE = """\
Means over requests; beneath them 95 % intervals over cells and documents. The load is in units of what own routing with
optimal shares sustains on each cell's channel.
"""
MATCHED = """\
Where the policy on the left is a threshold of the paper's rule, the ratio is the family's figure at that threshold's
added NLL over the threshold's own; where it is another policy, its figure over that of the rule at its added NLL.
"""
TIMELINE = """\
Each row above is a request: it waits, its prompt is read, its answer is generated. Each row below is a device, the
darker the larger the part of the time that it is busy.
"""
