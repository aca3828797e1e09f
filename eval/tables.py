"""Tables of text, whose first row is the header, and the leaderboard as a table and as a CSV that can be kept."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eval.statistics import Summary
from wdmoe_env.metrics import METRICS

Table = list[list[str]]


def aligned(table: Table) -> str:
    """A table for the terminal: names to the left, figures to the right."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in table
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown(table: Table) -> str:
    """A table in Markdown, whose cells stand as they are, whatever a name in them says."""
    rule = ["---", *("---:" for _ in table[0][1:])]
    rows = [[plain(text) for text in row] for row in table]
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], rule, *rows[1:]])


def plain(text: str) -> str:
    """Text for a line of Markdown that shows what it says: no tag, link, image, cell or line begins in it."""
    # A link or an image needs these two next to each other, and a figure with its interval does not have them.
    return html.escape(" ".join(text.splitlines()), quote=False).replace("](", "]&#40;").replace("|", "&#124;")


def indented(text: str) -> str:
    """Text as a block of code in Markdown, where nothing is read as anything else."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def cell(statistic: dict[str, Any], form: str, scale: float, interval: bool) -> str:
    """A figure, with its interval or without."""
    mean, low, high = (format(scale * statistic[key], form) for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]" if interval else mean


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Text of a CSV: a header, and a line for each row, whose missing entries stay empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


# Heads of columns that several tables have.
LATENCY, ADDED_NLL = METRICS["latency_ms"].heading, METRICS["added_nll"].label
ACCURACY = f"{METRICS['next_token_accuracy'].label} %"
IQM = "iqm_"
# Why a family has no latency at the quality of a reference.
WHY_OUTSIDE = {"left": "adds more", "right": "beyond its fastest", "noise": "within noise of nothing added"}
WLR_RATIOS = {
    "wlr_ratio_to_vanilla": "vanilla",
    "wlr_ratio_to_best_wdmoe": "best wdmoe",
    "wlr_ratio_to_fractional": "fractional",
}


def leaderboard_table(settings: list[Summary]) -> Table:
    """Header and a row per setting: latency, quality, accuracy, decision time, and interquartile means of ratios."""
    ratios = [name for name in WLR_RATIOS if name in settings[0]["iqm"]]
    header = ["setting", "seeds", LATENCY, "IQM vs vanilla", ADDED_NLL, "points"]
    rows = [
        [
            row["name"],
            str(len(row["seeds"])),
            cell(row["latency_ms"], ".1f", 1.0, True),
            cell(row["iqm"]["latency_ratio_to_vanilla"], ".3f", 1.0, True),
            cell(row["added_nll"], "+z.4f", 1.0, True),
            cell(row["accuracy_points_to_vanilla"], "+z.2f", 1.0, True),
            *(cell(row["iqm"][name], ".3f", 1.0, True) for name in ratios),
            format(row["decision_ms"], ".3f"),
        ]
        for row in settings
    ]
    return [[*header, *(f"WLR vs {WLR_RATIOS[name]}" for name in ratios), "decision ms"], *rows]


def matched_table(rows: list[Summary]) -> Table:
    """Header and a row per reference: its added NLL and latency, and the ratio of each family's to it."""
    families = list(dict.fromkeys(row["family"] for row in rows))
    by_reference: dict[str, dict[str, Summary]] = {}
    for row in rows:
        by_reference.setdefault(row["reference"], {})[row["family"]] = row
    table = [["at the quality of", ADDED_NLL, LATENCY, *families]]
    for reference, of_family in by_reference.items():
        first = next(iter(of_family.values()))
        figures = [format(first["added_nll"], "+z.4f"), format(first["reference_latency_ms"], ".1f")]
        table.append([reference, *figures, *(matched_cell(of_family.get(family)) for family in families)])
    return table


def matched_cell(row: Summary | None) -> str:
    """The ratio at matched quality with its interval; where there is none, why."""
    if row is None:
        return "-"
    return WHY_OUTSIDE[row["outside"]] if row["outside"] else cell(row["latency_ratio"], ".3f", 1.0, True)


def leaderboard_csv(settings: list[Summary]) -> str:
    """Text of the CSV: family, setting and seeds, then every statistic with its interval.

    Args:
        settings: of a results folder's JSON.
    """
    records = [_record(row) for row in settings]
    return csv_text(list(dict.fromkeys(key for record in records for key in record)), records)


def _record(row: Summary) -> dict[str, str]:
    record = {name: str(row[name]) for name in ("family", "setting")} | {"seeds": " ".join(map(str, row["seeds"]))}
    statistics = {**row, **{f"{IQM}{name}": value for name, value in row.get("iqm", {}).items()}}
    for name, value in statistics.items():
        if isinstance(value, dict) and value.keys() == {"mean", "low", "high"}:
            record |= {f"{name}_{side}": format(value[side], ".6g") for side in ("mean", "low", "high")}
        elif isinstance(value, float):
            record[name] = format(value, ".6g")
    return record
