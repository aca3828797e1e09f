"""The multiple-choice suite: what a lost expert costs, item by item.

An item is scored as the evaluation harnesses of language models do: each choice by the log-probability
that the model gives it after the shared context, per byte where choices differ in length by design. The
context and the choice both pass through the split model: every choice is a window of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.checks import check_choice, check_integer, is_tuple_of
from wdmoe_env.reading import numbered_lines, parse_json, read_text, shown_path
from wdmoe_env.text.continuations import continuation_windows, cut_contexts, encode_continuations
from wdmoe_env.text.windows import TokenWindows

NUM_CHOICES = 4
FORMATS = ("cloze", "replaced", "swapped", "continuation", "closed-book", "skill")
"""One word left out; one word replaced; two neighbours swapped; which passage follows; facts; seeded skills."""

SCORED_PER_BYTE = ("continuation",)

SUITE_TOKENS = 128
"""Tokens of a window in all published figures: most items keep their whole context."""


@dataclass(frozen=True, slots=True)
class Item:
    """One question.

    Attributes:
        format: one of ``FORMATS``.
        domain: kind of text, such as ``"speeches"``.
        context: what all choices follow.
        choices: four texts, appended to the context as they are.
        answer: index of the right one.

    Raises:
        ValueError: an unknown format, an empty text, other than four different choices, or an answer that is not
            among them.
    """

    format: str
    domain: str
    context: str
    choices: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        """Check every field."""
        check_choice("format", self.format, FORMATS)
        for name in ("domain", "context"):
            text = getattr(self, name)
            if not isinstance(text, str) or not text:
                raise ValueError(f"{name} must be a text, got {text!r}")
        whole = is_tuple_of(self.choices, str) and all(self.choices) and len(self.choices) == NUM_CHOICES
        if not whole or len(set(self.choices)) != NUM_CHOICES:
            raise ValueError(f"choices must be {NUM_CHOICES} different texts, got {self.choices!r}")
        check_integer("answer", self.answer, at_least=0)
        if self.answer >= NUM_CHOICES:
            raise ValueError(f"answer must be below {NUM_CHOICES}, got {self.answer}")


@dataclass(frozen=True, slots=True)
class SuiteWindows:
    """Four windows per item, in the items' order: row 4 i + c is choice c of item i.

    Attributes:
        items: M of them.
        windows: 4 M windows of J tokens.
        scored: (4 M, J) True at the positions that predict a token of the choice.
        choice_bytes: (4 M,) bytes of each choice.
        context_cut: (M,) True where the context was too long and lost its beginning.
    """

    items: tuple[Item, ...]
    windows: TokenWindows
    scored: NDArray[np.bool_]
    choice_bytes: NDArray[np.int64]
    context_cut: NDArray[np.bool_]

    def choice_scores(self, token_nll: NDArray[np.float64], items: NDArray[np.int64]) -> NDArray[np.float64]:
        """Score (m, 4) of every choice of items (m,): log-probability in nats, per byte for some formats.

        Args:
            token_nll: (4 m, J) nats, the windows of those items in order.
            items: (m,) indices.
        """
        rows = window_rows(items)
        scores = -(token_nll * self.scored[rows]).sum(axis=-1)
        per_byte = np.array([self.items[item].format in SCORED_PER_BYTE for item in items]).repeat(NUM_CHOICES)
        scores /= np.where(per_byte, self.choice_bytes[rows], 1)
        shaped: NDArray[np.float64] = scores.reshape(-1, NUM_CHOICES)
        return shaped


def window_rows(items: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows (4 m,) of the windows of items (m,), in order."""
    rows: NDArray[np.int64] = (NUM_CHOICES * items[:, None] + np.arange(NUM_CHOICES)).ravel()
    return rows


def suite_file(path: Path | None = None) -> Traversable:
    """The file of a suite; ``None`` is the one that ships."""
    return resources.files("wdmoe_env") / "assets" / "suite.jsonl.gz" if path is None else path


def load_suite(path: Path | None = None) -> tuple[Item, ...]:
    """Read a suite in JSON Lines, gzipped or plain, of at most ``wdmoe_env.reading.MOST_TEXT_BYTES`` when unpacked.

    Args:
        path: of the suite; ``None`` reads the one that ships.

    Raises:
        ValueError: there is no such file, it is too large or truncated, a line is not an item, or there is none.
    """
    source = suite_file(path)
    if not source.is_file():
        raise ValueError(f"expected a suite in JSON Lines, but there is no file {shown_path(source)}")
    items = []
    for number, line in numbered_lines(read_text(source)):
        try:
            items.append(_item(line))
        except ValueError as error:
            raise ValueError(f"line {number} of the suite {shown_path(source)} is not an item: {error}") from None
    if not items:
        raise ValueError(f"expected a suite of one item or more, but {shown_path(source)} is empty")
    return tuple(items)


def _item(line: str) -> Item:
    record: Any = parse_json(line)
    if not isinstance(record, dict) or record.keys() != set(Item.__slots__):
        got = ", ".join(sorted(record)) if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"expected the fields {', '.join(sorted(Item.__slots__))}, got {got}")
    choices = record["choices"]
    return Item(**record | {"choices": tuple(choices) if isinstance(choices, list) else choices})


def suite_windows(items: Sequence[Item], tokenize: Callable[[str], list[int]], num_tokens: int) -> SuiteWindows:
    """Turn items into windows; a context that is too long loses its beginning, for all four choices alike.

    Args:
        items: M of them.
        tokenize: text to token ids.
        num_tokens: J.

    Raises:
        ValueError: a choice leaves no room for a token of context, or has no token of its own.
    """
    encoded = [encode_continuations(item.context, item.choices, tokenize) for item in items]
    longest = max(len(choice.tokens) for choices in encoded for choice in choices)
    if num_tokens < longest:
        raise ValueError(f"num_tokens must be at least {longest}, the longest choice of the suite, got {num_tokens}")
    fitting = [cut_contexts(choices, num_tokens) for choices in encoded]
    windows, scored = continuation_windows([choice for choices in fitting for choice in choices], num_tokens)
    domains = tuple(item.domain for item in items for _ in range(NUM_CHOICES))
    sizes = [len(choice.encode()) for item in items for choice in item.choices]
    cut = [len(after[0].context) < len(before[0].context) for before, after in zip(encoded, fitting, strict=True)]
    windows = replace(windows, domains=domains)
    return SuiteWindows(tuple(items), windows, scored, np.array(sizes, dtype=np.int64), np.array(cut))
