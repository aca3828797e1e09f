"""The tables of the page: leaderboards, latency at matched quality, and what is dropped as coloured cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from eval.drops import OUTSIDE
from eval.matched import REFERENCE_FAMILIES
from eval.page.chart import mark
from eval.page.html import Child, Markup, table, tag
from eval.pareto import mark_kind
from eval.statistics import Float, Summary
from eval.study import QUALITY_BUDGET
from eval.tables import ACCURACY, ADDED_NLL, LATENCY, WHY_OUTSIDE, WLR_RATIOS
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
    header: list[Child] = ["setting", "seeds", LATENCY, "of vanilla's, IQM", ADDED_NLL, "accuracy points"]
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
    return table(["setting", "seeds", ACCURACY, "points to vanilla", LATENCY, "of vanilla's"], rows, "board")


def matched(rows: list[Summary], points: dict[tuple[str, str], Summary]) -> Markup:
    """The table of latencies at matched quality.

    Args:
        rows: of ``matched_quality``.
        points: for reference and family the difference in accuracy on the suite, where it was evaluated.
    """
    header: list[Child] = ["at the quality of", ADDED_NLL, LATENCY, "family", "ratio", "drawn from"]
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
        "span", WHY_OUTSIDE[row["outside"]], tag("small", end) if row["outside"] == "right" else None, class_="faint"
    )


def _mixture(mixture: dict[str, Any] | None) -> Markup:
    if mixture is None:
        return tag("span", "-", class_="faint")
    share = round(100.0 * mixture["share_of_second"])
    if share in (0, 100):
        return tag("span", mixture["second"] if share else mixture["first"])
    return tag("span", f"{share} % {mixture['second']}", tag("small", f"else {mixture['first']}"))


# Pairs below which a share says too little to be shown.
LEAST_PAIRS = 20


def representatives(settings: list[Summary]) -> list[Summary]:
    """Of each learned family, ``wdmoe`` and ``marginal-price`` the setting whose added NLL is nearest to the budget."""
    families: dict[str, list[Summary]] = {}
    for setting in settings:
        if setting["learned"] or setting["family"] in REFERENCE_FAMILIES:
            families.setdefault(setting["family"], []).append(setting)
    return [min(members, key=_distance) for members in sorted(families.values(), key=lambda one: not one[0]["learned"])]


def _distance(setting: Summary) -> float:
    return float(abs(setting["added_nll"]["mean"] - QUALITY_BUDGET))


def counts_of(summary: Summary, setting: Summary, side: str, grouping: str) -> Float:
    """Pairs (I, bins), ``"pairs"`` or ``"dropped"``, of all seeds of a setting."""
    of_policy = {one["policy"]: one for one in summary["breakdowns"]}
    return np.sum([of_policy[policy][side][grouping] for policy in setting["policies"]], axis=0, dtype=np.float64)


def drop_map(summary: Summary, setting: Summary, grouping: str) -> Markup:
    """Shares dropped, a row per block and a column per bin."""
    pairs, dropped = (counts_of(summary, setting, side, grouping) for side in ("pairs", "dropped"))
    shares = np.where(pairs >= LEAST_PAIRS, dropped / np.maximum(pairs, 1.0), np.nan)
    labels = bin_labels(grouping, shares.shape[1])
    rows: list[list[Child]] = [[str(block + 1), *map(heat, row)] for block, row in enumerate(shares)]
    return table(["block", *labels], rows, "heat")


def bin_labels(grouping: str, count: int) -> list[str]:
    """Names of the columns."""
    if grouping == "weight":
        return [f".{5 * at:02d}" for at in range(count)]
    if grouping == "rank":
        return ["best", "others"][:count]
    return [str(at + 1) for at in range(count)]


def heat(share: float) -> Markup:
    """A cell's content: the share in percent on its colour; nothing where there is none."""
    if np.isnan(share):
        return tag("i", "", class_="none")
    strong = " strong" if share > 0.55 else ""
    return tag("i", f"{100 * share:.0f}", class_=f"cell{strong}", style=f"--v:{share:.3f}")


def block_map(summary: Summary, settings: Sequence[Summary], key: str) -> Markup:
    """A figure of each block as coloured cells, a row per setting."""
    of_policy = {one["policy"]: one["blocks"][key] for one in summary["breakdowns"]}
    rows: list[list[Child]] = []
    for setting in settings:
        shares = np.mean([of_policy[policy] for policy in setting["policies"]], axis=0)
        rows.append([setting["name"], *map(heat, shares)])
    count = len(next(iter(of_policy.values())))
    return table(["block", *(str(block + 1) for block in range(count))], rows, "heat")


def outside_share(summary: Summary, setting: Summary) -> float:
    """Pairs that a setting serves outside the model's routing, as a share of the routed ones."""
    of_policy = {one["policy"]: one for one in summary["breakdowns"]}
    outside = sum(np.sum(of_policy[policy][OUTSIDE]) for policy in setting["policies"])
    return float(outside / counts_of(summary, setting, "pairs", "rank").sum())


def domain_table(summary: Summary, settings: Sequence[Summary]) -> Markup:
    """For each kind of text and setting the added NLL, the latency over that of ``vanilla``, and the share dropped."""
    of_policy = {policy["policy"]: policy for policy in summary["policies"]}
    dropped = {one["policy"]: one["domains"] for one in summary["breakdowns"]}

    def cell(domain: str, setting: Summary) -> Markup:
        policies = setting["policies"]
        added = np.mean([of_policy[policy]["added_nll_by_domain"][domain]["mean"] for policy in policies])
        ratio = np.mean([of_policy[policy]["latency_ratio_by_domain"][domain]["mean"] for policy in policies])
        share = np.mean([dropped[policy][domain]["drop_share"] for policy in policies])
        return tag("span", f"{added:+z.4f}", tag("small", f"{ratio:.2f} of the time, {100 * share:.0f} % dropped"))

    domains = list(next(iter(dropped.values())))
    rows: list[list[Child]] = [[domain, *(cell(domain, setting) for setting in settings)] for domain in domains]
    return table(["kind of text", *(setting["name"] for setting in settings)], rows, "board")
