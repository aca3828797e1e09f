"""The sections of the page: windows of text, the suite, and how it was made."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from eval.page.chart import color_classes
from eval.page.html import Child, Markup, section, table, tag
from eval.page.pictures import draw_matched, draw_pareto, draw_profile
from eval.page.tables import (
    block_map,
    domain_table,
    drop_map,
    leaderboard,
    matched,
    outside_share,
    representatives,
    suite_leaderboard,
)
from eval.pareto import ADDED_NLL, SUITE_POINTS
from eval.report import FAMILY_NOTES, MATCHED_NOTES
from eval.statistics import Summary
from eval.study import QUALITY_BUDGET
from eval.transfer import transfer_rows, transfer_table

MAPS = (
    ("weight", "by gate weight of all but the best expert, from"),
    ("rank", "by rank"),
    ("device", "by device, fastest to slowest"),
    ("position", "by part of the window"),
)


def windows_sections(summary: Summary, points: dict[tuple[str, str], Summary]) -> Markup:
    """An evaluation on windows of text.

    Args:
        summary: the content of ``results.json``.
        points: differences in accuracy on the suite at matched quality, where there are any.
    """
    settings, colors = summary["settings"], color_classes(summary["settings"])
    config = summary["config"]
    environment = config["environment"]
    title = (
        f"{config['episodes']} episodes of {environment['num_tokens']} tokens on the model {environment['model']}, "
        f"split {environment['split']}, seed {config['seed']}. Every policy ran the same windows, devices and channels."
    )
    return tag(
        "div",
        tag("header", tag("h2", "Windows of text"), tag("p", title, class_="lead")),
        section("Latency against quality", note(PARETO_NOTE), draw_pareto(summary, ADDED_NLL)),
        section("Leaderboard", leaderboard(settings, colors), note(FAMILY_NOTES), note(DECISION_NOTE)),
        _matched_section(summary, colors, points),
        _profile_section(summary, colors),
        _block_section(summary),
        _drop_section(summary),
        section("By kind of text", domain_table(summary, representatives(settings)), note(DOMAIN_NOTE)),
    )


def suite_sections(summary: Summary) -> Markup:
    """An evaluation on the suite.

    Args:
        summary: the content of ``suite.json``.
    """
    settings, environment = summary["settings"], summary["config"]["environment"]
    what = f"{summary['items']} items on the model {environment['model']}"
    return tag(
        "div",
        tag("header", tag("h2", "Multiple-choice suite"), tag("p", f"{what}; {SUITE_NOTE}", class_="lead")),
        section("Latency against accuracy", draw_pareto(summary, SUITE_POINTS)),
        section("Accuracy", suite_leaderboard(settings, color_classes(settings))),
        section("Accuracy by format, %", _by_group(summary, "by_format")),
        section("Accuracy by kind of text, %", _by_group(summary, "by_domain")),
    )


def transfer_section(of_condition: dict[str, Summary]) -> Markup:
    """Latency at matched quality under other conditions.

    Args:
        of_condition: the content of ``results.json`` of each.
    """
    rows = transfer_rows(of_condition)
    settings = [setting for summary in of_condition.values() for setting in summary["settings"]]
    learned = frozenset(setting["family"] for setting in settings if setting["learned"])
    named = [row | {"reference": f"{row['condition']}, {row['reference']}"} for row in rows]
    header, *body = transfer_table(rows)
    return tag(
        "div",
        tag("header", tag("h2", "Transfer"), tag("p", TRANSFER_NOTE, class_="lead")),
        section("Latency at matched quality", draw_matched(named, color_classes(settings), learned)),
        section("As a table", table([*header], [[*row] for row in body], "board"), note(MATCHED_NOTES)),
    )


def made_section(folders: Sequence[tuple[str, Summary]]) -> Markup:
    """Commands, configuration, hashes and versions of every results folder."""
    parts: list[Markup] = []
    for name, summary in folders:
        made_by = summary["made_by"]
        parts.append(tag("h3", name))
        parts.append(tag("pre", f"{made_by['command']}\npython -m eval --replay {name}"))
        parts.append(tag("p", made_by["machine"], class_="note"))
        hashes: list[list[Child]] = [[what, digest] for what, digest in summary["sha256"].items()]
        versions: list[list[Child]] = [[package, version] for package, version in made_by["versions"].items()]
        parts.append(_folded("SHA-256 of model and policies", table(["file", "SHA-256"], hashes, "hashes")))
        parts.append(_folded("Versions", table(["package", "version"], versions, "hashes")))
        parts.append(_folded("Configuration", tag("pre", json.dumps(summary["config"], indent=2))))
    return section("How this was made", *parts)


def note(text: str) -> Markup:
    """Small print, with code between the code marks of Markdown."""
    parts = text.replace("\n", " ").strip().split("`")
    return tag("p", [tag("code", part) if at % 2 else part for at, part in enumerate(parts)], class_="note")


def _matched_section(summary: Summary, colors: dict[str, str], points: dict[tuple[str, str], Summary]) -> Markup | None:
    rows = summary["matched_quality"]
    if not rows:
        return None
    learned = frozenset(setting["family"] for setting in summary["settings"] if setting["learned"])
    return section(
        "Latency at matched quality",
        draw_matched(rows, colors, learned),
        note(MATCHED_NOTES),
        _folded("As a table", matched(rows, points)) if not points else matched(rows, points),
        note(POINTS_NOTE) if points else None,
    )


def _profile_section(summary: Summary, colors: dict[str, str]) -> Markup:
    pictures = [draw_profile(profile, colors) for profile in summary["profiles"] if profile["curves"]]
    return section("Performance profiles", note(PROFILE_NOTE), tag("div", pictures, class_="pair"))


def _block_section(summary: Summary) -> Markup:
    chosen = representatives(summary["settings"])
    maps = (
        ("drop_share", "pairs dropped, %"),
        ("latency_ratio_to_vanilla", "latency, % of vanilla's in the same block"),
    )
    parts = [tag("div", tag("h3", title), block_map(summary, chosen, key)) for key, title in maps]
    return section("Block by block", note(CHOICE_NOTE), tag("div", parts, class_="pair"))


def _drop_section(summary: Summary) -> Markup:
    parts = []
    for setting in representatives(summary["settings"]):
        maps = [tag("div", tag("h4", title), drop_map(summary, setting, grouping)) for grouping, title in MAPS]
        outside = outside_share(summary, setting)
        served = f", and serves {100 * outside:.1f} % as many outside the routing" if outside else ""
        parts.append(tag("h3", setting["name"], tag("span", served, class_="faint")))
        parts.append(tag("div", maps, class_="maps"))
    return section("What is dropped, and when", note(DROP_NOTE), *parts)


def _by_group(summary: Summary, key: str) -> Markup:
    of_policy = {policy["policy"]: policy[key] for policy in summary["policies"]}
    groups = list(next(iter(of_policy.values())))
    rows: list[list[Child]] = []
    for setting in summary["settings"]:
        chosen = [of_policy[policy] for policy in setting["policies"]]
        means = [np.mean([one[group]["accuracy"]["mean"] for one in chosen]) for group in groups]
        rows.append([setting["name"], *(f"{100 * mean:.1f}" for mean in means)])
    return table(["setting", *groups], rows, "board")


def _folded(title: str, *children: Child) -> Markup:
    return tag("details", tag("summary", title), *children)


PARETO_NOTE = """\
Mean over training seeds and episodes with 95 % intervals; lower left is better. Small dots are single training seeds.
The lines join what no mixture of a family's settings beats. Added NLL is against vanilla, the model's own routing with
equal shares; it is drawn linearly up to 0.02 nats and by its logarithm beyond.
"""
DECISION_NOTE = """\
Decision time is the wall time of one decision for one block of one episode, decided in batches; a replay does not
compare it.
"""
PROFILE_NOTE = """\
The share of runs, a training seed on an episode each, whose score is above a level, with 95 % bands. Each family is
shown by its setting of greatest mean score.
"""
CHOICE_NOTE = f"Each family is shown by its setting whose added NLL is nearest to {QUALITY_BUDGET:g} nats per token."
DROP_NOTE = """\
The share of the pairs of a token and a routed expert that were not served, in percent, block by block. A token's best
expert has the greatest gate weight; hatched cells hold fewer than 20 pairs.
"""
DOMAIN_NOTE = "Added NLL in nats per token; beneath it latency over vanilla's, and the share of routed pairs dropped."
TRANSFER_NOTE = """\
The same policies under conditions that they were not made for, each against the thresholds of wdmoe in that condition.
"""
SUITE_NOTE = "chance is 25 %. Intervals are over training seeds and items."
POINTS_NOTE = """\
Points on the suite: the accuracy of the family at the mixture drawn from, minus that of the rule, in percentage points,
the same items on both sides.
"""
