"""What an evaluation of serving leaves: ``results.json``, ``requests.csv``, ``report.md`` and two pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from eval.serve import Run
from eval.statistics import Summary
from eval.tables import aligned, csv_text

LOAD_PICTURE, TIMELINE = "load.png", "timeline.png"
COLUMNS = {
    "e2e_ms": "E2E ms",
    "e2e_ms_p95": "p95",
    "ttft_ms": "TTFT ms",
    "tpot_ms": "TPOT ms",
    "goodput_hz": "goodput 1/s",
    "queue_share": "queue share",
    "tokens_per_s": "tokens/s",
    "added_nll": "added NLL",
    "added_nll_answer": "of answers",
    "e2e_ratio_iqm": "IQM of E2E ratios",
}


def text_table(policies: Sequence[Summary]) -> list[list[str]]:
    """Head and rows of a table: the mean of each figure by policy."""
    rows = [["policy", *COLUMNS.values()]]
    for one in policies:
        rows.append([one["policy"], *(_figure(one[name]["mean"]) for name in COLUMNS)])
    return rows


def terminal(summary: Summary) -> str:
    """A table for each load."""
    parts = [f"load {one['load']:g}\n{aligned(text_table(one['policies']))}" for one in summary["loads"]]
    return "\n\n".join(parts)


def markdown(summary: Summary, command: str) -> str:
    """The text of ``report.md``."""
    parts = [f"# Serving\n\n`{command}`\n"]
    for one in summary["loads"]:
        head, *rows = text_table(one["policies"])
        lines = [_row(head), _row(["---"] + ["---:"] * (len(head) - 1)), *map(_row, rows)]
        parts.append(f"## Load {one['load']:g}\n\n" + "\n".join(lines) + "\n")
        parts.append(_matched(one["matched_quality"]))
    parts.append(
        "Figures are of requests, intervals (in `results.json`) of resamples of cells and documents. The load is in "
        "units of what own routing with optimal shares sustains on each cell's channel.\n"
    )
    pictures = [LOAD_PICTURE, TIMELINE] if len(summary["loads"]) > 1 else [TIMELINE]
    return "\n".join(parts) + "\n" + "\n".join(f"![]({name})" for name in pictures) + "\n"


def _matched(rows: Sequence[Summary]) -> str:
    found = [row for row in rows if row["ratio"] is not None]
    if not found:
        return ""
    head = ["rule", "added NLL", "family", "figure", "over the rule's", "95 %"]
    lines = [_row(head), _row(["---"] * len(head))]
    for row in found:
        ratio = row["ratio"]
        band = f"{ratio['low']:.3f} to {ratio['high']:.3f}"
        cells = [
            row["reference"],
            f"{row['added_nll']:.4f}",
            row["family"],
            row["figure"],
            f"{ratio['mean']:.3f}",
            band,
        ]
        lines.append(_row(cells))
    return "At equal added NLL:\n\n" + "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _figure(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.1f}"


def requests_csv(runs: Mapping[float, Mapping[str, Run]]) -> str:
    """A row for each request of each policy at each load; empty where it did not finish."""
    names = [name.removeprefix("request_") for name in next(iter(next(iter(runs.values())).values())).requests]
    rows = []
    for load, policies in runs.items():
        for policy, run in policies.items():
            figures = {name.removeprefix("request_"): values for name, values in run.requests.items()}
            count, each = figures["e2e_ms"].shape
            for cell in range(count):
                for request in range(each):
                    values = {name: repr(figures[name][cell, request].item()) for name in names}
                    known = {name: "" if value == "nan" else value for name, value in values.items()}
                    place = {"load": repr(load), "policy": policy, "cell": str(cell), "request": str(request)}
                    rows.append(place | known)
    return csv_text(("load", "policy", "cell", "request", *names), rows)


def draw_load(summary: Summary) -> bytes:
    """Mean and p95 of E2E, and goodput, against load: a line for each policy."""
    figure = Figure(figsize=(11, 4))
    axes = figure.subplots(1, 2)
    loads = [one["load"] for one in summary["loads"]]
    colors = colormaps["tab10"].colors  # type: ignore[attr-defined]
    for number, name in enumerate(one["policy"] for one in summary["loads"][0]["policies"]):
        at = [one["policies"][number] for one in summary["loads"]]
        color = colors[number % len(colors)]
        label = f"{name} ({at[-1]['added_nll']['mean']:+.3f} nats)"
        for key, style in (("e2e_ms", "-"), ("e2e_ms_p95", ":")):
            named = label if style == "-" else None
            axes[0].plot(loads, [one[key]["mean"] for one in at], style, color=color, label=named)
        axes[1].plot(loads, [one["goodput_hz"]["mean"] for one in at], "o-", color=color)
    axes[0].set(xlabel="load", ylabel="E2E in ms: mean, dotted p95")
    axes[0].legend(fontsize=7)
    axes[1].set(xlabel="load", ylabel="requests a second within the limits")
    return _png(figure)


def draw_timeline(runs: Mapping[str, Run], cell: int = 0) -> bytes:
    """One cell's requests as bars (waiting, prompt, answer) under two policies."""
    shown = list(runs.items())[:2]
    figure = Figure(figsize=(11, 2.6 * len(shown)))
    panels = np.atleast_1d(figure.subplots(len(shown), 1, sharex=True))
    for axes, (name, run) in zip(panels, shown, strict=True):
        at = {key.removeprefix("request_"): values[cell] for key, values in run.requests.items()}
        arrival = at["arrival_ms"]
        bars = (
            ("waiting", arrival, at["queue_ms"], "0.75"),
            ("prompt", arrival + at["queue_ms"], at["ttft_ms"] - at["queue_ms"], "tab:blue"),
            ("answer", arrival + at["ttft_ms"], at["e2e_ms"] - at["ttft_ms"], "tab:orange"),
        )
        for label, left, width, color in bars:
            axes.barh(np.arange(len(arrival)), width, left=left, color=color, label=label, height=0.8)
        axes.invert_yaxis()
        axes.set(ylabel="request", title=name)
    panels[0].legend(fontsize=7)
    panels[-1].set(xlabel="simulated time, ms")
    return _png(figure)


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    figure.tight_layout()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


def without_nan(value: Any) -> Any:
    """Plain values for JSON: ``None`` where a figure is not known."""
    if isinstance(value, dict):
        return {key: without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
