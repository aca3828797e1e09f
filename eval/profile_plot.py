"""The picture of the performance profiles."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from eval.plots import family_colors
from eval.summary import Summary


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
        axes.grid(color="0.93")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if profile["curves"]:
            axes.legend(frameon=False, fontsize=9)
    all_axes[0].set_ylabel("share of runs above")
    figure.savefig(file, format="png")
