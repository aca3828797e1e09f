"""The tables on the terminal and the Markdown report, of windows of text and of the suite."""

from __future__ import annotations

import json

from eval.members import short_names
from eval.results import SIMULATED
from eval.statistics import Summary
from eval.summary import SUITE_GROUPINGS
from eval.tables import (
    ACCURACY,
    ADDED_NLL,
    LATENCY,
    Table,
    aligned,
    cell,
    indented,
    leaderboard_table,
    markdown,
    matched_table,
    plain,
)
from wdmoe_env.evaluation import REFERENCE
from wdmoe_env.metrics import METRICS

RESAMPLED_UNITS = {"windows": "episodes", "documents": "documents, all episodes of one together"}

NOTES = """\
Every policy ran the same episodes: the same windows of text, devices, shadowing and fading. In brackets stand 95 %
percentile bootstrap intervals over {resampled} (10,000 resamples, the same for every policy; decision time is
resampled by batches). Latency is the sum over the blocks of an episode; WLR is the mean over blocks of gate weight
served per millisecond of block latency; added NLL is against `vanilla` on the same episode, in nats per token;
`vs vanilla` is the ratio of mean latencies; `points` is the difference in accuracy in percentage points. Decision
time is the wall time of one decision for one block of one episode, decided in batches of {batch_size}, on {machine}.
"""


FAMILY_NOTES = """\
A row is one method at one setting, over all its training seeds. Its intervals come from 2,000 resamples of seeds within
the setting and of episodes, the same episodes for every row. IQM is the interquartile mean over seeds and episodes of
the ratio on the same episode: of latency to that of `vanilla`, and of WLR to that of `vanilla`, of the threshold of
`wdmoe` that has the greatest mean WLR, and of `fractional`. The profiles show the share of runs above a score, each
family by its best setting.
"""

MATCHED_NOTES = """\
Each figure is a family's latency over that of the rule on the left, at the same mean added NLL. Drawing at random
before every episode which of two policies runs gives every point of the line between theirs, so a family's front is
interpolated linearly, along the lower convex hull of its settings and of own routing at optimal shares. Every resample
draws seeds and episodes anew and recomputes both sides. Nothing is extrapolated: there is no figure where the rule adds
less than the front's left end (`adds more`), or may do so by chance (`within noise of nothing added`), or more than the
family's fastest setting does (`beyond its fastest`).
"""


def results_table(summaries: list[Summary], intervals: bool = True) -> Table:
    """Header and a row per policy.

    Args:
        summaries: the policies of ``results.json``.
        intervals: whether every figure has its interval; otherwise only latency against ``vanilla`` and added NLL.
    """
    names = short_names([summary["policy"] for summary in summaries])
    columns = {
        LATENCY: ("latency_ms", ".1f", 1.0, intervals),
        "vs vanilla": ("latency_ratio_to_vanilla", ".3f", 1.0, True),
        METRICS["wlr"].heading: ("wlr", ".3f", 1.0, intervals),
        ADDED_NLL: ("added_nll", "+z.4f", 1.0, True),
        ACCURACY: ("next_token_accuracy", ".2f", 100.0, intervals),
        "points": ("accuracy_points_to_vanilla", "+z.2f", 1.0, intervals),
        "decision ms": ("decision_ms", ".3f", 1.0, intervals),
    }
    rows = [
        [names[summary["policy"]]]
        + [cell(summary[key], form, scale, shown) for key, form, scale, shown in columns.values()]
        for summary in summaries
    ]
    return _with_simulated([["policy", *columns], *rows], summaries)


def _measured(made_by: Summary) -> list[str]:
    """A sentence on where latency was measured, if it was."""
    place = made_by.get("latency")
    return [f"Latency was {plain(place)}, by the clock, on {made_by['machine']}."] if place else []


def _with_simulated(table: Table, summaries: list[Summary]) -> Table:
    """The table with the simulator's latency beside the measured one, where a testbed measured."""
    if SIMULATED not in summaries[0]:
        return table
    heads = [["simulated ms"], *([f"{summary[SIMULATED]['mean']:.1f}"] for summary in summaries)]
    return [[*row[:2], *cell, *row[2:]] for row, cell in zip(table, heads, strict=True)]


def domain_table(summaries: list[Summary]) -> Table:
    """Header and a row per policy of mean added NLL by kind of text, without the reference, which adds nothing."""
    names = short_names([summary["policy"] for summary in summaries])
    by_domain = {
        names[summary["policy"]]: summary["added_nll_by_domain"]
        for summary in summaries
        if summary["policy"] != REFERENCE
    }
    domains = list(summaries[0]["added_nll_by_domain"])
    rows = [[name, *(f"{added[domain]['mean']:+z.4f}" for domain in domains)] for name, added in by_domain.items()]
    return [["policy", *domains], *rows]


def terminal_table(summary: Summary) -> str:
    """What the terminal shows of ``results.json``."""
    return aligned(results_table(summary["policies"], intervals=False))


def measured_note(made_by: Summary) -> list[str]:
    """A sentence on whose clock measured latency; none where it was simulated."""
    if "latency" not in made_by:
        return []
    return [f"Latency was {plain(made_by['latency'])}, by the clock, on {made_by['machine']}."]


def markdown_report(summary: Summary) -> str:
    """The text of ``report.md``.

    Args:
        summary: the content of ``results.json``.
    """
    config, made_by = summary["config"], summary["made_by"]
    environment = config["environment"]
    title = (
        f"{config['episodes']} episodes of {environment['num_tokens']} tokens on the model {environment['model']!r}, "
        f"split {environment['split']!r}, seed {config['seed']}"
    )
    return sections(
        "# Evaluation",
        f"{plain(title)}. {made_with(summary)}",
        markdown(results_table(summary["policies"])),
        "![Latency against added NLL](pareto.png)",
        NOTES.format(
            batch_size=config["batch_size"],
            machine=made_by["machine"],
            resampled=RESAMPLED_UNITS[config.get("resample", "windows")],
        ),
        *measured_note(made_by),
        "## Added NLL by kind of text",
        markdown(domain_table(summary["policies"])),
        *families(summary),
        *how_it_was_made(summary),
    )


def families(summary: Summary) -> list[str]:
    """Sections on families of policies, where one has two settings or training seeds."""
    settings = summary["settings"]
    if len({setting["family"] for setting in settings}) == len(summary["policies"]):
        return []
    matched = summary["matched_quality"]
    return [
        "## Families",
        markdown(leaderboard_table(settings)),
        FAMILY_NOTES,
        "![Performance profiles](profiles.png)",
        *(["## Latency at matched quality", markdown(matched_table(matched)), MATCHED_NOTES] if matched else []),
    ]


def sections(*parts: str) -> str:
    """Parts of a Markdown text, a blank line between them."""
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def made_with(summary: Summary) -> str:
    """The command, as Markdown."""
    return f"Made by\n\n{indented(summary['made_by']['command'])}"


def how_it_was_made(summary: Summary) -> list[str]:
    """The last sections of every report: configuration, hashes, versions."""
    versions = summary["made_by"]["versions"]
    return [
        "## Configuration",
        f"```json\n{json.dumps(summary['config'], indent=2)}\n```",
        markdown([["SHA-256 of", ""], *map(list, summary["sha256"].items())]),
        "## Versions",
        markdown([["package", "version"], *map(list, versions.items())]),
    ]


SUITE_NOTES = """\
Every policy answered the same items, each on devices, shadowing and fading of its own, the same for its four choices.
A choice is a window of its own: its context and the choice pass through the split model, while the policy selects
experts and shares for every block; its score is the log-probability of the choice given the context, per byte for
continuations. Chance is 25 %. In brackets stand 95 % percentile bootstrap intervals over items (10,000 resamples, the
same for every policy); items cut from one document count as independent. `points` is the difference in accuracy to
`vanilla` in percentage points; `lost` and `gained` count the items that `vanilla` alone or the policy alone answered
rightly, and `p` is McNemar's, exact and two-sided. Latency is the sum over the blocks of a window; `vs vanilla` is the
ratio of mean latencies.
"""


def suite_table(summaries: list[Summary], intervals: bool = True) -> Table:
    """Header and a row per policy.

    Args:
        summaries: the policies of ``suite.json``.
        intervals: whether every figure has its interval; otherwise only accuracy and its difference to ``vanilla``.
    """
    names = short_names([summary["policy"] for summary in summaries])
    header = ["policy", ACCURACY, "points", "lost", "gained", "p", LATENCY, "vs vanilla"]
    rows = [
        [
            names[summary["policy"]],
            cell(summary["accuracy"], ".1f", 100.0, True),
            cell(summary["accuracy_points_to_vanilla"], "+z.1f", 1.0, True),
            str(summary["lost"]),
            str(summary["gained"]),
            format(summary["mcnemar_p"], ".2g"),
            cell(summary["latency_ms"], ".1f", 1.0, intervals),
            cell(summary["latency_ratio_to_vanilla"], ".3f", 1.0, intervals),
        ]
        for summary in summaries
    ]
    return [header, *rows]


def group_table(summaries: list[Summary], grouping: str, intervals: bool = True) -> Table:
    """Header and a row per format or domain of accuracies in percent, a column per policy."""
    names = short_names([summary["policy"] for summary in summaries])
    groups = {summary["policy"]: summary[f"by_{grouping}"] for summary in summaries}
    first = next(iter(groups.values()))
    rows = [
        [label, str(first[label]["items"])]
        + [cell(groups[policy][label]["accuracy"], ".1f", 100.0, intervals) for policy in groups]
        for label in first
    ]
    return [[grouping, "items", *(names[policy] for policy in groups)], *rows]


def suite_terminal(summary: Summary) -> str:
    """What the terminal shows of ``suite.json``."""
    policies = summary["policies"]
    groups = [aligned(group_table(policies, grouping, intervals=False)) for grouping in SUITE_GROUPINGS]
    overall = f"{aligned(suite_table(policies, intervals=False))}\n({summary['items']} items; chance is 25 %)"
    return "\n\n".join([overall, *groups])


def suite_report(summary: Summary) -> str:
    """The text of ``report.md``.

    Args:
        summary: the content of ``suite.json``.
    """
    policies, config = summary["policies"], summary["config"]
    environment = config["environment"]
    title = (
        f"{summary['items']} items of the suite {environment['split']!r} on the model {environment['model']!r}, "
        f"four windows of at most {environment['num_tokens']} tokens each, seed {config['seed']}; "
        f"{summary['contexts_cut']} contexts were too long and lost their beginning"
    )
    groups = [
        (f"## Accuracy by {grouping}, %", markdown(group_table(policies, grouping))) for grouping in SUITE_GROUPINGS
    ]
    return sections(
        "# Suite",
        f"{plain(title)}. {made_with(summary)}",
        markdown(suite_table(policies)),
        "![Latency against accuracy](pareto.png)",
        SUITE_NOTES,
        *(part for group in groups for part in group),
        *how_it_was_made(summary),
    )
