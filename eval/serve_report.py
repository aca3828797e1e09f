"""What an evaluation of serving leaves: ``requests.csv``, ``report.md``, the pictures, the terminal's tables."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from eval.folder import json_text
from eval.members import short_names
from eval.serve_statistics import E2E, ENERGY, GOODPUT, OPTIMIZER, TAIL, Run, family_of
from eval.serve_timeline import Timeline, draw_timelines
from eval.statistics import Summary
from eval.tables import Table, aligned, cell, csv_text, indented, markdown

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
    ENERGY: "J/token",
}


def files_of(
    summary: Summary, runs: Mapping[float, Mapping[str, Run]], timelines: Mapping[str, Timeline], command: str
) -> dict[str, bytes]:
    """All files of a results folder.

    Args:
        summary: the content of ``results.json``.
        runs: by load and policy.
        timelines: of some policies what their first cell did.
        command: what made it, for the reader.
    """
    files = {
        "requests.csv": requests_csv(runs).encode(),
        "report.md": markdown_report(summary, command).encode(),
        TIMELINE: draw_timelines(timelines),
    }
    if len(runs) > 1:
        files[LOAD_PICTURE] = draw_load(summary)
    return files | {"results.json": json_text(without_nan(summary)).encode()}


def text_table(policies: Sequence[Summary]) -> Table:
    """Head and rows of a table: the mean of each figure by policy, and the interval of E2E."""
    names = short_names([one["policy"] for one in policies])
    columns = {name: head for name, head in COLUMNS.items() if name in policies[0]}
    rows = [["policy", *columns.values()]]
    for one in policies:
        rows.append([names[one["policy"]], *(_figure(one[name], name == E2E) for name in columns)])
    return rows


def terminal(summary: Summary) -> str:
    """For each load a table of all figures, and one of E2E beside the paper's rule at equal added NLL."""
    parts = []
    for one in summary["loads"]:
        parts.append(f"load {one['load']:g}\n{aligned(text_table(one['policies']))}")
        for table in (rule_table(one["matched_quality"]), seeds_table(one["training_seeds"])):
            if len(table) > 1:
                parts.append(aligned(table))
    return "\n\n".join(parts)


def rule_table(rows: Sequence[Summary]) -> Table:
    """Head and rows of E2E over that of the paper's rule, at the added NLL of each policy that is no such rule."""
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["family"] == family_of(OPTIMIZER) and row["ratio"] is not None:
            found.setdefault(row["reference"], {})[row["figure"]] = cell(row["ratio"], ".3f", 1.0, interval=True)
    names = short_names(list(found))
    table = [["over the paper's rule at equal added NLL", "E2E", "p95"]]
    return table + [
        [names[name], *(ratios.get(figure, "") for figure in (E2E, TAIL))] for name, ratios in found.items()
    ]


def markdown_report(summary: Summary, command: str) -> str:
    """The text of ``report.md``."""
    config = summary["config"]
    serving = config["environment"]["serving"]
    what = f"{config['episodes']} cells of {serving['requests']} requests for each policy, the same for all of them."
    parts = [f"# Serving\n\n{indented(command)}\n\n{what}\n"]
    for one in summary["loads"]:
        parts.append(f"## Load {one['load']:g}\n\n{markdown(text_table(one['policies']))}\n")
        rows = matched_table(one["matched_quality"])
        if len(rows) > 1:
            parts.append(f"At equal added NLL:\n\n{markdown(rows)}\n")
        rows = seeds_table(one["training_seeds"])
        if len(rows) > 1:
            parts.append(f"Means of training seeds:\n\n{markdown(rows)}\n")
    parts.append(NOTES)
    pictures = [LOAD_PICTURE, TIMELINE] if len(summary["loads"]) > 1 else [TIMELINE]
    return "\n".join(parts) + "\n" + "\n".join(f"![]({name})" for name in pictures) + "\n"


NOTES = """\
Figures are of requests; in brackets stand 95 % intervals over cells and documents, both drawn with replacement. The
load is in units of what own routing with optimal shares sustains on each cell's channel. Where the policy on the left
is a threshold of the paper's rule, the ratio is the family's E2E at that threshold's added NLL over the threshold's own
one; where it is another policy, the ratio is its E2E over that of the paper's rule at the same added NLL. Intervals of
training seeds draw these anew too.
"""


def matched_table(rows: Sequence[Summary]) -> Table:
    """Head and rows of what could be compared at equal added NLL."""
    table = [["at the quality of", "added NLL", "family", "figure", "ratio", "drawn from"]]
    for row in rows:
        if row["ratio"] is not None:
            ratio = cell(row["ratio"], ".3f", 1.0, interval=True)
            drawn = mixture_text(row["mixture"])
            table.append([row["reference"], f"{row['added_nll']:.4f}", row["family"], row["figure"], ratio, drawn])
    return table


SEED_HEAD = ["training seeds", "seeds", "E2E ms", "added NLL", "E2E over the rule's", "p95 over the rule's"]


def seeds_table(rows: Sequence[Summary]) -> Table:
    """Head and rows of the means over training seeds; a ratio that is not known is left empty."""
    table = [SEED_HEAD]
    for row in rows:
        figures = [cell(row[name], form, 1.0, interval=True) for name, form in ((E2E, ".1f"), ("added_nll", ".4f"))]
        ratios = [row["ratios"][name] for name in (E2E, TAIL)]
        found = ["" if ratio is None else cell(ratio, ".3f", 1.0, interval=True) for ratio in ratios]
        table.append([row["setting"], str(len(row["seeds"])), *figures, *found])
    return table


def mixture_text(mixture: Summary) -> str:
    """Which policies a mixture draws from, and how often."""
    percent = round(100.0 * mixture["share_of_second"])
    if percent in (0, 100):
        return str(mixture["second"] if percent else mixture["first"])
    return f"{percent} % {mixture['second']}, else {mixture['first']}"


def _figure(statistic: Summary, interval: bool) -> str:
    return cell(statistic, ".4f" if abs(statistic["mean"]) < 1 else ".1f", 1.0, interval)


def requests_csv(runs: Mapping[float, Mapping[str, Run]]) -> str:
    """A row for each request of each policy at each load; empty where it did not finish."""
    names = [name.removeprefix("request_") for name in next(iter(next(iter(runs.values())).values())).requests]
    rows = []
    for load, policies in runs.items():
        for policy, run in policies.items():
            figures = {name.removeprefix("request_"): values for name, values in run.requests.items()}
            count, each = figures["e2e_ms"].shape
            for number, request in product(range(count), range(each)):
                values = {name: repr(figures[name][number, request].item()) for name in names}
                known = {name: "" if value == "nan" else value for name, value in values.items()}
                place = {"load": repr(load), "policy": policy, "cell": str(number), "request": str(request)}
                rows.append(place | known)
    return csv_text(("load", "policy", "cell", "request", *names), rows)


def draw_load(summary: Summary, threshold: str | None = None) -> bytes:
    """Mean and p95 of E2E, and goodput, against load: lines at equal added NLL, or one for each policy.

    At the added NLL of a threshold of the paper's rule, the one whose quality most families reach, there is a line for
    the rule and one for each other family where its front reaches that quality. Without the rule, each policy has a
    line at its own quality, which the legend says.

    Args:
        summary: of an evaluation.
        threshold: of the paper's rule, such as "wdmoe:0.8", in place of the one that is chosen.
    """
    lines = load_lines(summary, threshold)
    figure = Figure(figsize=(11, 4))
    axes = figure.subplots(1, 2)
    colors = colormaps["tab10"].colors  # type: ignore[attr-defined]
    for number, (label, points) in enumerate(lines.items()):
        color = colors[number % len(colors)]
        for key, style in ((E2E, "-"), (TAIL, ":")):
            at = [(load, values[key]) for load, values in points.items() if key in values]
            axes[0].plot(*zip(*at, strict=True), style, marker=".", color=color, label=label if style == "-" else None)
        at = [(load, values[GOODPUT]) for load, values in points.items() if GOODPUT in values]
        axes[1].plot(*zip(*at, strict=True), "o-", color=color)
    axes[0].set(xlabel="load", ylabel="E2E in ms: mean, dotted p95")
    axes[1].legend(*axes[0].get_legend_handles_labels(), fontsize=7)  # there is more room than among two sorts of lines
    axes[1].set(xlabel="load", ylabel="requests a second within the limits")
    return _png(figure)


Lines = dict[str, dict[float, dict[str, float]]]
"""Of each line what it is called, and by load the figures of its points."""


def load_lines(summary: Summary, threshold: str | None = None) -> Lines:
    """The lines of ``draw_load``."""
    return _matched_lines(summary, threshold) or _policy_lines(summary)


def _matched_lines(summary: Summary, threshold: str | None) -> Lines:
    rules = [row["reference"] for row in summary["matched_quality"] if row["reference"].startswith(OPTIMIZER)]
    distinct = list(dict.fromkeys(rules))
    if not distinct:
        return {}
    of_all = [row for one in summary["loads"] for row in one["matched_quality"]]
    reached = {one: [row["front_value"] is not None for row in of_all if row["reference"] == one] for one in distinct}
    middle = distinct[len(distinct) // 2]
    rule = threshold or max(distinct, key=lambda one: (sum(reached[one]), one == middle))
    lines = Lines()
    rows = [row for row in of_all if row["reference"] == rule]
    lost = sorted(row["added_nll"] for row in rows)
    ends = dict.fromkeys(f"{nats:+.3f}" for nats in (lost[0], lost[-1]))  # a rule loses not quite the same at each load
    label = f"{rule} ({' to '.join(ends)} nats)"
    for one in summary["loads"]:
        for row in one["matched_quality"]:
            if row["reference"] == rule:
                own = lines.setdefault(label, {})
                own.setdefault(one["load"], {})[row["figure"]] = row["reference_value"]
                if row["front_value"] is not None:
                    family = lines.setdefault(f"{row['family']}, as good", {})
                    family.setdefault(one["load"], {})[row["figure"]] = row["front_value"]
    return lines


def _policy_lines(summary: Summary) -> Lines:
    lines = Lines()
    names = short_names([one["policy"] for one in summary["policies"]])
    for number, name in enumerate(one["policy"] for one in summary["policies"]):
        at = {one["load"]: one["policies"][number] for one in summary["loads"]}
        label = f"{names[name]} ({at[summary['loads'][-1]['load']]['added_nll']['mean']:+.3f} nats)"
        lines[label] = {load: {key: one[key]["mean"] for key in (E2E, TAIL, GOODPUT)} for load, one in at.items()}
    return lines


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
