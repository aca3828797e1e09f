"""The leaderboards: a row per setting, every figure with its interval beneath it."""

from __future__ import annotations

from typing import Any

from eval.leaderboard import OUTSIDE, WLR_RATIOS
from eval.page.chart import mark
from eval.page.colors import mark_kind
from eval.page.html import Child, Markup, table, tag
from eval.summary import Summary
from wdmoe_env.evaluation import REFERENCE


def figure(statistic: Summary | None, form: str, scale: float = 1.0) -> Markup:
    """A figure with its interval; a dash where there is none."""
    if statistic is None:
        return tag("span", "-", class_="faint")
    mean, low, high = (format(scale * statistic[key], form) for key in ("mean", "low", "high"))
    return tag("span", mean, tag("small", f"{low} to {high}"))


def named(setting: Summary, colors: dict[str, str]) -> Markup:
    """The name of a setting with its mark."""
    key = tag("svg", mark(8, 8, mark_kind(setting), colors[setting["family"]]), width=16, height=16, aria_hidden="true")
    return tag("span", key, setting["name"], class_="key")


def ordered(settings: list[Summary]) -> list[Summary]:
    """The reference, then what was learned, then rules."""
    return sorted(settings, key=lambda one: (one["family"] != REFERENCE, not one["learned"]))


def leaderboard(settings: list[Summary], colors: dict[str, str]) -> Markup:
    """The table of an evaluation on windows of text."""
    ratios = [name for name in WLR_RATIOS if name in settings[0]["iqm"]]
    header: list[Child] = ["setting", "seeds", "latency ms", "of vanilla's, IQM", "added NLL", "accuracy points"]
    header += [f"WLR over {WLR_RATIOS[name]}'s, IQM" for name in ratios]
    rows: list[list[Child]] = [
        [
            named(row, colors),
            str(len(row["seeds"])),
            figure(row["latency_ms"], ".1f"),
            figure(row["iqm"]["latency_ratio_to_vanilla"], ".3f"),
            figure(row["added_nll"], "+z.4f"),
            figure(row["accuracy_points_to_vanilla"], "+z.2f"),
            *(figure(row["iqm"][name], ".3f") for name in ratios),
            format(row["decision_ms"], ".3f"),
        ]
        for row in ordered(settings)
    ]
    return table([*header, "decision ms"], rows, "board")


def suite_leaderboard(settings: list[Summary], colors: dict[str, str]) -> Markup:
    """The table of an evaluation on the suite."""
    rows: list[list[Child]] = [
        [
            named(row, colors),
            str(len(row["seeds"])),
            figure(row["accuracy"], ".1f", 100.0),
            figure(row["accuracy_points_to_vanilla"], "+z.2f"),
            figure(row["latency_ms"], ".1f"),
            figure(row["latency_ratio_to_vanilla"], ".3f"),
        ]
        for row in ordered(settings)
    ]
    return table(["setting", "seeds", "accuracy %", "points to vanilla", "latency ms", "of vanilla's"], rows, "board")


def matched(rows: list[Summary], points: dict[tuple[str, str], Summary]) -> Markup:
    """The table of latencies at matched quality.

    Args:
        rows: of ``matched_quality``.
        points: for reference and family the difference in accuracy on the suite, where it was evaluated.
    """
    header: list[Child] = ["at the quality of", "added NLL", "latency ms", "family", "ratio", "drawn from"]
    body: list[list[Child]] = []
    for row in rows:
        cells: list[Child] = [
            row["reference"],
            format(row["added_nll"], "+z.4f"),
            format(row["reference_latency_ms"], ".1f"),
            row["family"],
            _outside(row) if row["outside"] else figure(row["latency_ratio"], ".3f"),
            _mixture(row["mixture"]),
        ]
        body.append([*cells, *([figure(points.get((row["reference"], row["family"])), "+z.2f")] if points else [])])
    return table([*header, *(["suite, points"] if points else [])], body, "board")


def _outside(row: Summary) -> Markup:
    """Why there is no ratio, and where the front ends if that is why."""
    end = f"{row['fastest']}: {row['fastest_added_nll']:+.4f}, {row['fastest_latency_ms']:.1f} ms"
    return tag(
        "span", OUTSIDE[row["outside"]], tag("small", end) if row["outside"] == "right" else None, class_="faint"
    )


def _mixture(mixture: dict[str, Any] | None) -> Markup:
    if mixture is None:
        return tag("span", "-", class_="faint")
    share = round(100.0 * mixture["share_of_second"])
    if share in (0, 100):
        return tag("span", mixture["second"] if share else mixture["first"])
    return tag("span", f"{share} % {mixture['second']}", tag("small", f"else {mixture['first']}"))
