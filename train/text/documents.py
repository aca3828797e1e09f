"""What a document is."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PLAIN = str.maketrans("\u00a0\u201c\u201d\u2018\u2019", " \"\"''", "\r\ufeff")


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        domain: What kind of text it is.
        name: Unique among the documents of a domain.
        text: The cleaned text.
        group: Documents of one pool with the same group never part (parallel translations).
        learned: True: the language model always learns from it. False: never. None: the division decides.
    """

    domain: str
    name: str
    text: str
    group: str
    learned: bool | None = None


def tidy(text: str) -> str:
    """Unify line ends, quotation marks, spaces and blank lines."""
    text = re.sub(r"[ \t]+", " ", text.translate(_PLAIN))
    return re.sub(r" ?\n[ \n]*", "\n", text).strip()


def unwrap(text: str) -> str:
    """Undo hard line breaks: only blank lines end a paragraph."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text.replace("\r", "").strip())
