"""The picture of a results folder: latency against quality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from eval.labels import is_file, place_labels, short_names
from eval.plan import REFERENCE
from eval.statistics import Float
from eval.summary import Summary

# Added NLL up to here is drawn linearly and beyond it by its logarithm, so that the worst policies fit too.
LINEAR_UP_TO = 0.02
TICKS = (-1.0, -0.3, -0.1, -0.05, -0.02, -0.01, 0.0, 0.01, 0.02, 0.05, 0.1, 0.3, 1.0, 3.0)
CHANCE_PERCENT = 25.0
LATENCY = "latency_ms"


@dataclass(frozen=True, slots=True)
class Quality:
    """What stands against latency.

    Attributes:
        key: of the statistic in a policy's summary.
        scale: from the statistic to what is drawn.
        latency: name of the horizontal axis.
        label: name of the vertical axis.
        title: of the picture.
        legend: where policies are seldom.
        dress: scales the vertical axis and draws what all policies are compared with.
    """

    key: str
    scale: float
    latency: str
    label: str
    title: str
    legend: Literal["upper right", "center right"]
    dress: Callable[[Axes], None]


def _symmetric_logarithm(axes: Axes) -> None:
    axes.set_yscale("symlog", linthresh=LINEAR_UP_TO, linscale=1.0)
    axes.yaxis.set_major_locator(FixedLocator(TICKS))
    axes.yaxis.set_minor_locator(FixedLocator([]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    axes.axhline(0, color="0.8", lw=0.8, zorder=0)


def _chance(axes: Axes) -> None:
    axes.axhline(CHANCE_PERCENT, color="0.6", lw=0.8, ls="--", zorder=0)
    axes.text(1, CHANCE_PERCENT, "chance", transform=axes.get_yaxis_transform(), ha="right", va="bottom", color="0.5")


ADDED_NLL = Quality(
    key="added_nll",
    scale=1.0,
    latency="latency of an episode, sum over blocks (ms)",
    label=f"added NLL (nats per token; linear up to {LINEAR_UP_TO:g}, then logarithmic)",
    title="Latency against quality: mean and 95 % interval; lower left is better",
    legend="upper right",
    dress=_symmetric_logarithm,
)
SUITE_ACCURACY = Quality(
    key="accuracy",
    scale=100.0,
    latency="latency of a window, sum over blocks (ms)",
    label="accuracy on the suite (%)",
    title="Latency against accuracy: mean and 95 % interval; upper left is better",
    legend="center right",
    dress=_chance,
)


def plot_pareto(summaries: list[Summary], path: Path, quality: Quality = ADDED_NLL) -> None:
    """Draw mean latency against mean quality with 95 % intervals.

    Policies that differ in a parameter alone (``wdmoe:0.5``, ``wdmoe:0.7``) share a colour and a line; the reference
    is a star, learned policies are diamonds.

    Args:
        summaries: the policies of the folder's JSON.
        path: of the PNG.
        quality: the vertical axis.
    """
    figure = Figure(figsize=(9, 6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    policies = [summary["policy"] for summary in summaries]
    bars = [_bars(summary, quality) for summary in summaries]
    points = np.array([[s[LATENCY]["mean"], quality.scale * s[quality.key]["mean"]] for s in summaries])
    colors = _colors(policies)
    for policy, point, ends, color in zip(policies, points, bars, colors, strict=True):
        _draw_point(axes, policy, point, ends, color)
    sweeps = _sweeps(policies)
    for family, members in sweeps.items():
        axes.plot(*points[members].T, color=colors[members[0]], lw=1, alpha=0.6, label=f"{family}:parameter")
    _dress(axes, quality, bool(sweeps))
    figure.canvas.draw()  # fixes the layout, on which the labels' places depend
    lines = [points[members] for members in sweeps.values()] + [bar for ends in bars for bar in ends]
    drawn = np.concatenate([_sampled(axes, line) for line in lines])
    place_labels(axes, _labels(policies, sweeps), points, drawn, colors)
    figure.savefig(path)


def _draw_point(axes: Axes, policy: str, point: Float, bars: list[Float], color: str) -> None:
    for bar in bars:
        axes.plot(*bar.T, color=color, lw=1.2, solid_capstyle="butt")
    marker, size = ("*", 14) if policy == REFERENCE else ("D", 7) if is_file(policy) else ("o", 6)
    axes.plot(*point, marker, ms=size, color=color, zorder=3)


def _bars(summary: Summary, quality: Quality) -> list[Float]:
    """Ends (2, 2) of the two interval bars."""
    x, y = summary[LATENCY], summary[quality.key]
    horizontal = [[x["low"], y["mean"]], [x["high"], y["mean"]]]
    vertical = [[x["mean"], y["low"]], [x["mean"], y["high"]]]
    return [np.array(bar) * [1.0, quality.scale] for bar in (horizontal, vertical)]


def _colors(policies: list[str]) -> list[str]:
    """Black for the reference and a colour per family."""
    families = list(dict.fromkeys(_family(policy) for policy in policies if policy != REFERENCE))
    wheel = [to_hex(color) for name in ("tab10", "Dark2") for color in colormaps[name].colors]  # type: ignore[attr-defined]
    of_family = {family: wheel[n % len(wheel)] for n, family in enumerate(families)}
    return [of_family.get(_family(policy), "black") for policy in policies]


def _family(policy: str) -> str:
    return policy if is_file(policy) else policy.partition(":")[0]


def _sweeps(policies: list[str]) -> dict[str, list[int]]:
    """Families with two parameters or more: positions of their members, by rising parameter."""
    swept: dict[str, list[int]] = {}
    for at, policy in enumerate(policies):
        if ":" in policy and not is_file(policy):
            swept.setdefault(_family(policy), []).append(at)
    by_parameter = {
        family: sorted(members, key=lambda at: _parameter(policies[at])) for family, members in swept.items()
    }
    return {family: members for family, members in by_parameter.items() if len(members) > 1}


def _parameter(policy: str) -> float:
    return float(policy.partition(":")[2])


def _labels(policies: list[str], sweeps: dict[str, list[int]]) -> list[str]:
    """Names of points; of a sweep, which the legend names, the parameter alone."""
    names = short_names(policies)
    swept = {at for members in sweeps.values() for at in members}
    return [policy.partition(":")[2] if at in swept else names[policy] for at, policy in enumerate(policies)]


def _dress(axes: Axes, quality: Quality, swept: bool) -> None:
    """Scales, names and limits."""
    quality.dress(axes)
    axes.margins(x=0.12, y=0.1)
    axes.set_xlim(left=0)
    axes.set_xlabel(quality.latency)
    axes.set_ylabel(quality.label)
    axes.set_title(quality.title, fontsize=11)
    axes.grid(color="0.93")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if swept:
        axes.legend(frameon=False, loc=quality.legend)


def _sampled(axes: Axes, line: Float) -> Float:
    """Points (m, 2) in pixels along a polyline in data coordinates."""
    corners = axes.transData.transform(line)
    along = np.linspace(0, len(corners) - 1, 25 * (len(corners) - 1) + 1)
    return np.stack([np.interp(along, np.arange(len(corners)), corners[:, axis]) for axis in (0, 1)], axis=1)
