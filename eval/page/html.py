"""HTML and SVG as nested calls: whatever is not markup already is escaped, so that no name can become code."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = str | Iterable[str] | None


def tag(name: str, *children: Child, **attributes: object) -> Markup:
    """An element.

    Args:
        name: of the element.
        *children: markup as it is, other text escaped, ``None`` left out; sequences are flattened.
        **attributes: ``class_`` stands for ``class`` and ``stroke_width`` for ``stroke-width``; ``None`` is left out.
    """
    named = [(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None]
    opening = "".join(f' {key}="{escape(_text(value))}"' for key, value in named)
    return Markup(f"<{name}{opening}>{_inner(children)}</{name}>")


def _inner(children: Iterable[Child]) -> str:
    parts = []
    for child in children:
        if isinstance(child, Markup):
            parts.append(str(child))
        elif isinstance(child, str):
            parts.append(escape(child))
        elif child is not None:
            parts.append(_inner(child))
    return "".join(parts)


def _text(value: object) -> str:
    """Numbers of a picture need no more than a hundredth of a pixel."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def table(header: list[Child], rows: list[list[Child]], class_: str | None = None) -> Markup:
    """A table whose first column names the rows; it scrolls sideways where it does not fit."""
    head = tag("tr", [tag("th", cell, scope="col") for cell in header])
    body = [tag("tr", tag("th", row[0], scope="row"), [tag("td", cell) for cell in row[1:]]) for row in rows]
    return tag("div", tag("table", tag("thead", head), tag("tbody", body), class_=class_), class_="scroll")


def section(title: str, *children: Child) -> Markup:
    """A section under a heading."""
    return tag("section", tag("h2", title), *children)
