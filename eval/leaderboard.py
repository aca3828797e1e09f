"""The leaderboard: a row per family and setting, as a table and as a CSV that can be kept."""

from __future__ import annotations

from eval.summary import Summary
from eval.tables import Table, cell, csv_text

IQM = "iqm_"
# Why a family has no latency at the quality of a reference.
OUTSIDE = {"left": "adds more", "right": "beyond its fastest", "noise": "within noise of nothing added"}
WLR_RATIOS = {
    "wlr_ratio_to_vanilla": "vanilla",
    "wlr_ratio_to_best_wdmoe": "best wdmoe",
    "wlr_ratio_to_fractional": "fractional",
}


def leaderboard_table(settings: list[Summary]) -> Table:
    """Header and a row per setting: latency, quality, accuracy, decision time, and interquartile means of ratios."""
    ratios = [name for name in WLR_RATIOS if name in settings[0]["iqm"]]
    header = ["setting", "seeds", "latency ms", "IQM vs vanilla", "added NLL", "points"]
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
    table = [["at the quality of", "added NLL", "latency ms", *families]]
    for reference, of_family in by_reference.items():
        first = next(iter(of_family.values()))
        figures = [format(first["added_nll"], "+z.4f"), format(first["reference_latency_ms"], ".1f")]
        table.append([reference, *figures, *(matched_cell(of_family.get(family)) for family in families)])
    return table


def matched_cell(row: Summary | None) -> str:
    """The ratio at matched quality with its interval; where there is none, why."""
    if row is None:
        return "-"
    return OUTSIDE[row["outside"]] if row["outside"] else cell(row["latency_ratio"], ".3f", 1.0, True)


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
