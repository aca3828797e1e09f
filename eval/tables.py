"""Tables of text: rows of cells, the first of which is the header."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterable, Mapping, Sequence
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
