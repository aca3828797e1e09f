"""Tables of text: rows of cells, the first of which is the header."""

from __future__ import annotations

from typing import Any

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
    """A table in Markdown."""
    rule = ["---", *("---:" for _ in table[0][1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in [table[0], rule, *table[1:]])


def cell(statistic: dict[str, Any], form: str, scale: float, interval: bool) -> str:
    """A figure, with its interval or without."""
    mean, low, high = (format(scale * statistic[key], form) for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]" if interval else mean
