"""The suite's tables on the terminal and its Markdown report."""

from __future__ import annotations

from eval.names import short_names
from eval.report import how_it_was_made, made_with, sections
from eval.suite_summary import GROUPINGS
from eval.summary import Summary
from eval.tables import Table, aligned, cell, markdown, plain

NOTES = """\
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
    header = ["policy", "accuracy %", "points", "lost", "gained", "p", "latency ms", "vs vanilla"]
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
    groups = [aligned(group_table(policies, grouping, intervals=False)) for grouping in GROUPINGS]
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
    groups = [(f"## Accuracy by {grouping}, %", markdown(group_table(policies, grouping))) for grouping in GROUPINGS]
    return sections(
        "# Suite",
        f"{plain(title)}. {made_with(summary)}",
        markdown(suite_table(policies)),
        "![Latency against accuracy](pareto.png)",
        NOTES,
        *(part for group in groups for part in group),
        *how_it_was_made(summary),
    )
