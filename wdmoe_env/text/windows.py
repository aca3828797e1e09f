"""Token windows on a fixed grid over the shipped documents.

The documents of ``train`` and of ``test`` are disjoint, and the shipped model was trained on neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.reading import numbered_lines, parse_json, read_text


@dataclass(frozen=True, slots=True)
class Document:
    """One document of the shipped text.

    Attributes:
        domain: kind of text, such as ``"speeches"``.
        name: name within the source.
        text: the text.
    """

    domain: str
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class TokenWindows:
    """M windows of J tokens, each with the token that follows every position.

    Attributes:
        token_ids: (M, J) int64 inputs; padding is 0.
        targets: (M, J) int64 next tokens; padding is 0.
        mask: (M, J) True where there is a token to predict from.
        domains: M names.
        documents: (M,) number of the document that each window is of; each of its own where none is given.
    """

    token_ids: NDArray[np.int64]
    targets: NDArray[np.int64]
    mask: NDArray[np.bool_]
    domains: tuple[str, ...]
    documents: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def __post_init__(self) -> None:
        """Number the windows where nothing says which document they are of."""
        if len(self.documents) != len(self.token_ids):
            object.__setattr__(self, "documents", np.arange(len(self.token_ids)))

    def __len__(self) -> int:
        """M."""
        return len(self.token_ids)

    def rows(self, index: NDArray[np.int64]) -> TokenWindows:
        """Some of the windows, by indices (n,)."""
        domains = tuple(self.domains[one] for one in index)
        return TokenWindows(
            self.token_ids[index], self.targets[index], self.mask[index], domains, self.documents[index]
        )


DOCUMENT_SPLITS = ("train", "test", "shifted")
"""Splits of documents that ship."""


def load_documents(split: str) -> list[Document]:
    """Read the shipped documents of one of ``DOCUMENT_SPLITS``."""
    path = resources.files("wdmoe_env") / "assets" / "text" / f"{split}.jsonl.gz"
    records = [parse_json(line) for _, line in numbered_lines(read_text(path))]
    return [Document(record["domain"], record["document"], record["text"]) for record in records]


def token_windows(documents: list[Document], tokenize: Callable[[str], list[int]], num_tokens: int) -> TokenWindows:
    """Cut documents into windows that do not overlap and never cross documents.

    The tail of a document is dropped, except where the document is shorter than one window: then the
    window is padded.

    Args:
        documents: what to cut.
        tokenize: text to token ids.
        num_tokens: J.

    Raises:
        ValueError: no document holds two tokens.
    """
    rows, domains, numbers = [], [], []
    for number, document in enumerate(documents):
        for window in _cut(tokenize(document.text), num_tokens):
            rows.append(window)
            domains.append(document.domain)
            numbers.append(number)
    if not rows:
        raise ValueError("expected at least one document of two tokens or more, got none")
    lengths = np.array([len(row) for row in rows])
    grid = np.zeros((len(rows), num_tokens + 1), dtype=np.int64)
    filled = np.arange(num_tokens + 1) < lengths[:, None]
    grid[filled] = np.concatenate(rows)
    return TokenWindows(grid[:, :-1], grid[:, 1:], filled[:, 1:], tuple(domains), np.array(numbers))


def _cut(token_ids: list[int], num_tokens: int) -> Iterator[list[int]]:
    """Windows of ``num_tokens + 1`` ids; the last id of one is the first of the next."""
    if 2 <= len(token_ids) <= num_tokens:
        yield token_ids
    for start in range(0, len(token_ids) - num_tokens, num_tokens):
        yield token_ids[start : start + num_tokens + 1]
