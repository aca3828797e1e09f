"""The pictures of a results folder, as PNG: latency against quality, and performance profiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from eval.pareto import (
    ADDED_NLL,
    CORNER,
    PLACES,
    SUITE_ACCURACY,
    Pareto,
    Quality,
    choose_places,
    has_leader,
    mark_kind,
    points_along,
)
from eval.statistics import Float, Summary
from wdmoe_env.evaluation import REFERENCE

CHANCE_PERCENT = 25.0
FONT_POINTS = 9
MARKERS = {"star": ("*", 14), "disc": ("D", 7), "ring": ("o", 6)}
"""Matplotlib's marker of each kind, and its size in points."""


def plot_windows_pareto(summary: Summary, file: Path | IO[bytes]) -> None:
    """Draw mean latency of an episode against mean added NLL.

    Args:
        summary: the content of ``results.json``.
        file: of the PNG, a path or an open file.
    """
    axes = _new_axes("latency of an episode, sum over blocks (ms)", "Latency against quality: {}; lower left is better")
    axes.set_yscale("symlog", linthresh=ADDED_NLL.linear_up_to, linscale=1.0)
    axes.yaxis.set_major_locator(FixedLocator(ADDED_NLL.ticks))
    axes.yaxis.set_minor_locator(FixedLocator([]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    axes.axhline(0, color="0.8", lw=0.8, zorder=0)
    _draw_pareto(axes, Pareto(summary, ADDED_NLL), file)


def plot_suite_pareto(summary: Summary, file: Path | IO[bytes]) -> None:
    """Draw mean latency of a window against accuracy on the suite.

    Args:
        summary: the content of ``suite.json``.
        file: of the PNG, a path or an open file.
    """
    axes = _new_axes("latency of a window, sum over blocks (ms)", "Latency against accuracy: {}; upper left is better")
    axes.axhline(CHANCE_PERCENT, color="0.6", lw=0.8, ls="--", zorder=0)
    axes.text(1, CHANCE_PERCENT, "chance", transform=axes.get_yaxis_transform(), ha="right", va="bottom", color="0.5")
    _draw_pareto(axes, Pareto(summary, SUITE_ACCURACY), file)


def _new_axes(latency: str, title: str) -> Axes:
    figure = Figure(figsize=(9, 6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel(latency)
    axes.set_title(title.format("mean and 95 % interval"), fontsize=11)
    _plain(axes)
    return axes


def _draw_pareto(axes: Axes, pareto: Pareto, file: Path | IO[bytes]) -> None:
    """Draw a point per setting with its 95 % intervals, and save the picture.

    Settings of one family (``wdmoe:0.5``, ``wdmoe:0.7``) share a colour, and a line along their front. The reference is
    a star; learned policies are diamonds, with a faint one for each training seed.
    """
    colors = family_colors([setting["family"] for setting in pareto.settings])
    of_setting = [colors[setting["family"]] for setting in pareto.settings]
    drawn = zip(pareto.settings, pareto.points, pareto.bars(), pareto.seeds, of_setting, strict=True)
    for setting, point, bars, seeds, color in drawn:
        for bar in bars:
            axes.plot(*bar.T, color=color, lw=1.2, solid_capstyle="butt")
        marker, size = MARKERS[mark_kind(setting)]
        axes.plot(*point, marker, ms=size, color=color, zorder=3)
        axes.plot(*seeds.T, marker, ms=0.6 * size, color=color, alpha=0.35, lw=0)
    for family, corners in pareto.fronts.items():
        axes.plot(*corners.T, color=colors[family], lw=1, alpha=0.6, label=family)
    axes.margins(x=0.12, y=0.1)
    axes.set_xlim(left=0)
    axes.set_ylabel(_axis_name(pareto.quality))
    if pareto.fronts:
        axes.legend(frameon=False, loc="center right")
    figure = axes.figure
    figure.canvas.draw()  # fixes the layout, on which the labels' places depend
    covered = points_along([axes.transData.transform(line) for line in pareto.lines()])
    place_labels(axes, pareto.labels, pareto.points, covered, of_setting)
    figure.savefig(file, format="png")  # type: ignore[union-attr]


def _axis_name(quality: Quality) -> str:
    if quality.linear_up_to is None:
        return quality.label
    return f"{quality.label} (linear up to {quality.linear_up_to:g}, then logarithmic)"


def _plain(axes: Axes) -> None:
    """A faint grid below what is drawn, and no box around it."""
    axes.grid(color="0.93")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def plot_profiles(summary: Summary, file: Path | IO[bytes]) -> None:
    """Draw for each score the share of runs above it, with 95 % bands, a curve for each family's best setting.

    Args:
        summary: the content of ``results.json``.
        file: of the PNG, a path or an open file.
    """
    figure = Figure(figsize=(11, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    colors = family_colors([setting["family"] for setting in summary["settings"]])
    all_axes = figure.subplots(1, len(summary["profiles"]), sharey=True, squeeze=False)[0]
    for axes, profile in zip(all_axes, summary["profiles"], strict=True):
        levels = profile["levels"]
        for curve in profile["curves"]:
            color = colors[curve["family"]]
            axes.plot(levels, curve["share"], color=color, lw=2 if curve["learned"] else 1.2, label=curve["name"])
            axes.fill_between(levels, curve["low"], curve["high"], color=color, alpha=0.15, lw=0)
        axes.set_xlabel(profile["score"])
        _plain(axes)
        if profile["curves"]:
            axes.legend(frameon=False, fontsize=9)
    all_axes[0].set_ylabel("share of runs above")
    figure.savefig(file, format="png")


def family_colors(families: Sequence[str]) -> dict[str, str]:
    """Black for the reference and a colour per family."""
    others = [family for family in dict.fromkeys(families) if family != REFERENCE]
    wheel = [to_hex(color) for name in ("tab10", "Dark2") for color in colormaps[name].colors]  # type: ignore[attr-defined]
    return {REFERENCE: "black"} | {family: wheel[n % len(wheel)] for n, family in enumerate(others)}


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
    sizes = [_text_size(axes, label) for label in labels]
    places = choose_places(sizes, axes.transData.transform(points), drawn, inside, axes.figure.dpi / 72.0)
    for label, point, color, place in zip(labels, points, colors, places, strict=True):
        _write(axes, label, point, color, place)


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
        arrowprops=leader if has_leader(place) else None,
    )


def _text_size(axes: Axes, label: str) -> tuple[float, float]:
    """Width and height in pixels."""
    text = axes.text(0, 0, label, fontsize=FONT_POINTS)
    extent = text.get_window_extent()
    text.remove()
    return extent.width, extent.height
