"""What a policy drops and when: tables whose cells are coloured by the share of pairs dropped."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.drops import OUTSIDE
from eval.matched import REFERENCE_FAMILIES
from eval.page.html import Child, Markup, table, tag
from eval.profiles import QUALITY_BUDGET
from eval.statistics import Float
from eval.summary import Summary

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
