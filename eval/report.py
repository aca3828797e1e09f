"""The table on the terminal and the Markdown report."""

from __future__ import annotations

import json
from typing import Any

from eval.labels import short_names
from eval.plan import REFERENCE
from eval.summary import Summary

Table = list[list[str]]

NOTES = """\
Every policy ran the same episodes: the same windows of text, devices, shadowing and fading. In brackets stand 95 %
percentile bootstrap intervals over episodes (10,000 resamples, the same for every policy; decision time is
resampled by batches). Latency is the sum over the blocks of an episode; WLR is the mean over blocks of gate weight
served per millisecond of block latency; added NLL is against `vanilla` on the same episode, in nats per token;
`vs vanilla` is the ratio of mean latencies; `points` is the difference in accuracy in percentage points. Decision
time is the wall time of one decision for one block of one episode, decided in batches of {batch_size}, on {machine}.
"""


def results_table(summaries: list[Summary], intervals: bool = True) -> Table:
    """Header and a row per policy.

    Args:
        summaries: the policies of ``results.json``.
        intervals: whether every figure has its interval; otherwise only latency against ``vanilla`` and added NLL.
    """
    names = short_names([summary["policy"] for summary in summaries])
    columns = {
        "latency ms": ("latency_ms", ".1f", 1.0, intervals),
        "vs vanilla": ("latency_ratio_to_vanilla", ".3f", 1.0, True),
        "WLR 1/ms": ("wlr", ".3f", 1.0, intervals),
        "added NLL": ("added_nll", "+z.4f", 1.0, True),
        "accuracy %": ("next_token_accuracy", ".2f", 100.0, intervals),
        "points": ("accuracy_points_to_vanilla", "+z.2f", 1.0, intervals),
        "decision ms": ("decision_ms", ".3f", 1.0, intervals),
    }
    rows = [
        [names[summary["policy"]]]
        + [cell(summary[key], form, scale, shown) for key, form, scale, shown in columns.values()]
        for summary in summaries
    ]
    return [["policy", *columns], *rows]


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
    """A table in Markdown."""
    rule = ["---", *("---:" for _ in table[0][1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in [table[0], rule, *table[1:]])


def terminal_table(summary: Summary) -> str:
    """What the terminal shows of ``results.json``."""
    return aligned(results_table(summary["policies"], intervals=False))


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
        f"{title}. {made_with(summary)}",
        markdown(results_table(summary["policies"])),
        "![Latency against added NLL](pareto.png)",
        NOTES.format(batch_size=config["batch_size"], machine=made_by["machine"]),
        "## Added NLL by kind of text",
        markdown(domain_table(summary["policies"])),
        *how_it_was_made(summary),
    )


def sections(*parts: str) -> str:
    """Parts of a Markdown text, a blank line between them."""
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def made_with(summary: Summary) -> str:
    """The command, as Markdown."""
    return f"Made by\n\n    {summary['made_by']['command']}"


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


def cell(statistic: dict[str, Any], form: str, scale: float, interval: bool) -> str:
    """A figure, with its interval or without."""
    mean, low, high = (format(scale * statistic[key], form) for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]" if interval else mean
