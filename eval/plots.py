"""The picture of a results folder: latency against quality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from eval.fronts import family_fronts
from eval.labels import place_labels
from eval.names import point_label
from eval.placing import sampled
from eval.statistics import Float
from eval.summary import Summary
from wdmoe_env.evaluation import REFERENCE

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
        better: 1 where less is better, -1 where more is.
        latency: name of the horizontal axis.
        label: name of the vertical axis.
        title: of the picture.
        legend: where policies are seldom.
        dress: scales the vertical axis and draws what all policies are compared with.
    """

    key: str
    scale: float
    better: float
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
    better=1.0,
    latency="latency of an episode, sum over blocks (ms)",
    label=f"added NLL (nats per token; linear up to {LINEAR_UP_TO:g}, then logarithmic)",
    title="Latency against quality: mean and 95 % interval; lower left is better",
    legend="center right",
    dress=_symmetric_logarithm,
)
SUITE_ACCURACY = Quality(
    key="accuracy",
    scale=100.0,
    better=-1.0,
    latency="latency of a window, sum over blocks (ms)",
    label="accuracy on the suite (%)",
    title="Latency against accuracy: mean and 95 % interval; upper left is better",
    legend="center right",
    dress=_chance,
)


def plot_pareto(summary: Summary, file: Path | IO[bytes], quality: Quality = ADDED_NLL) -> None:
    """Draw mean latency against mean quality with 95 % intervals, a point per setting.

    Settings of one family (``wdmoe:0.5``, ``wdmoe:0.7``) share a colour, and a line along what no mixture of them
    beats. The reference is a star; learned policies are diamonds, with a faint one for each training seed.

    Args:
        summary: the folder's JSON.
        file: of the PNG, a path or an open file.
        quality: the vertical axis.
    """
    figure = Figure(figsize=(9, 6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    settings = summary["settings"]
    points = np.array([_point(setting, quality) for setting in settings])
    bars = [_bars(setting, quality) for setting in settings]
    colors = family_colors([setting["family"] for setting in settings])
    of_policy = {policy["policy"]: _point(policy, quality) for policy in summary["policies"]}
    for setting, point, ends in zip(settings, points, bars, strict=True):
        seeds = [of_policy[policy] for policy in setting["policies"]]
        _draw_point(axes, setting, point, ends, seeds, colors[setting["family"]])
    fronts = family_fronts([setting["family"] for setting in settings], points, quality.better)
    for family, corners in fronts.items():
        axes.plot(*corners.T, color=colors[family], lw=1, alpha=0.6, label=family)
    _dress(axes, quality, bool(fronts))
    figure.canvas.draw()  # fixes the layout, on which the labels' places depend
    lines = [*fronts.values(), *(bar for ends in bars for bar in ends)]
    drawn = np.concatenate([sampled(axes.transData.transform(line)) for line in lines])
    labels = [point_label(setting, setting["family"] in fronts) for setting in settings]
    place_labels(axes, labels, points, drawn, [colors[setting["family"]] for setting in settings])
    figure.savefig(file, format="png")


def family_colors(families: Sequence[str]) -> dict[str, str]:
    """Black for the reference and a colour per family."""
    others = [family for family in dict.fromkeys(families) if family != REFERENCE]
    wheel = [to_hex(color) for name in ("tab10", "Dark2") for color in colormaps[name].colors]  # type: ignore[attr-defined]
    return {REFERENCE: "black"} | {family: wheel[n % len(wheel)] for n, family in enumerate(others)}


def _point(statistics: Summary, quality: Quality) -> Float:
    return np.array([statistics[LATENCY]["mean"], quality.scale * statistics[quality.key]["mean"]])


def _draw_point(axes: Axes, setting: Summary, point: Float, bars: list[Float], seeds: list[Float], color: str) -> None:
    for bar in bars:
        axes.plot(*bar.T, color=color, lw=1.2, solid_capstyle="butt")
    marker, size = ("*", 14) if setting["family"] == REFERENCE else ("D", 7) if setting["learned"] else ("o", 6)
    axes.plot(*point, marker, ms=size, color=color, zorder=3)
    if len(seeds) > 1:
        axes.plot(*np.array(seeds).T, marker, ms=0.6 * size, color=color, alpha=0.35, lw=0)


def _bars(statistics: Summary, quality: Quality) -> list[Float]:
    """Ends (2, 2) of the two interval bars."""
    x, y = statistics[LATENCY], statistics[quality.key]
    horizontal = [[x["low"], y["mean"]], [x["high"], y["mean"]]]
    vertical = [[x["mean"], y["low"]], [x["mean"], y["high"]]]
    return [np.array(bar) * [1.0, quality.scale] for bar in (horizontal, vertical)]


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
