"""The picture of a results folder: latency against quality."""

from __future__ import annotations

from pathlib import Path

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
X, Y = "latency_ms", "added_nll"


def plot_pareto(summaries: list[Summary], path: Path) -> None:
    """Draw mean latency against mean added NLL with 95 % intervals.

    Policies that differ in a parameter alone (``wdmoe:0.5``, ``wdmoe:0.7``) share a colour and a line; the reference
    is a star, learned policies are diamonds.

    Args:
        summaries: the policies of ``results.json``.
        path: of the PNG.
    """
    figure = Figure(figsize=(9, 6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    policies = [summary["policy"] for summary in summaries]
    points = np.array([[summary[X]["mean"], summary[Y]["mean"]] for summary in summaries])
    colors = _colors(policies)
    for summary, color in zip(summaries, colors, strict=True):
        _draw_point(axes, summary, color)
    sweeps = _sweeps(policies)
    for family, members in sweeps.items():
        axes.plot(*points[members].T, color=colors[members[0]], lw=1, alpha=0.6, label=f"{family}:parameter")
    _dress(axes, bool(sweeps))
    figure.canvas.draw()  # fixes the layout, on which the labels' places depend
    lines = [points[members] for members in sweeps.values()] + [bar for s in summaries for bar in _bars(s)]
    drawn = np.concatenate([_sampled(axes, line) for line in lines])
    place_labels(axes, _labels(policies, sweeps), points, drawn, colors)
    figure.savefig(path)


def _draw_point(axes: Axes, summary: Summary, color: str) -> None:
    for bar in _bars(summary):
        axes.plot(*bar.T, color=color, lw=1.2, solid_capstyle="butt")
    marker, size = ("*", 14) if summary["policy"] == REFERENCE else ("D", 7) if is_file(summary["policy"]) else ("o", 6)
    axes.plot(summary[X]["mean"], summary[Y]["mean"], marker, ms=size, color=color, zorder=3)


def _bars(summary: Summary) -> list[Float]:
    """Ends (2, 2) of the two interval bars."""
    x, y = summary[X], summary[Y]
    horizontal = [[x["low"], y["mean"]], [x["high"], y["mean"]]]
    vertical = [[x["mean"], y["low"]], [x["mean"], y["high"]]]
    return [np.array(horizontal), np.array(vertical)]


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


def _dress(axes: Axes, legend: bool) -> None:
    """Scales, names and limits."""
    axes.set_yscale("symlog", linthresh=LINEAR_UP_TO, linscale=1.0)
    axes.yaxis.set_major_locator(FixedLocator(TICKS))
    axes.yaxis.set_minor_locator(FixedLocator([]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    axes.margins(x=0.12, y=0.1)
    axes.set_xlim(left=0)
    axes.set_xlabel("latency of an episode, sum over blocks (ms)")
    axes.set_ylabel(f"added NLL (nats per token; linear up to {LINEAR_UP_TO:g}, then logarithmic)")
    axes.set_title("Latency against quality: mean and 95 % interval; lower left is better", fontsize=11)
    axes.axhline(0, color="0.8", lw=0.8, zorder=0)
    axes.grid(color="0.93")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(frameon=False, loc="upper right")


def _sampled(axes: Axes, line: Float) -> Float:
    """Points (m, 2) in pixels along a polyline in data coordinates."""
    corners = axes.transData.transform(line)
    along = np.linspace(0, len(corners) - 1, 25 * (len(corners) - 1) + 1)
    return np.stack([np.interp(along, np.arange(len(corners)), corners[:, axis]) for axis in (0, 1)], axis=1)
