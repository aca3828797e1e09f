"""The multiple-choice suite: what a lost expert costs, item by item.

An item is scored as the evaluation harnesses of language models do: each choice by the log-probability
that the model gives it after the shared context, per byte where choices differ in length by design. The
context and the choice both pass through the split model: every choice is a window of its own.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.checks import check_keys
from wdmoe_env.text.windows import TokenWindows

NUM_CHOICES = 4
FORMATS = ("cloze", "replaced", "swapped", "continuation", "closed-book", "skill")
"""One word left out; one word replaced; two neighbours swapped; which passage follows; facts; seeded skills."""

SCORED_PER_BYTE = ("continuation",)


@dataclass(frozen=True, slots=True)
class Item:
    """One question.

    Attributes:
        format: one of ``FORMATS``.
        domain: kind of text, such as ``"speeches"``.
        context: what all choices follow.
        choices: four texts, appended to the context as they are.
        answer: index of the right one.
    """

    format: str
    domain: str
    context: str
    choices: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}; got {self.format!r}")
        if len(set(self.choices)) != NUM_CHOICES or not all(self.choices) or not self.context:
            raise ValueError(f"expected a context and {NUM_CHOICES} different choices, got {self}")
        if self.answer not in range(NUM_CHOICES):
            raise ValueError(f"answer must be in [0, {NUM_CHOICES}), got {self.answer}")


@dataclass(frozen=True, slots=True)
class SuiteWindows:
    """Four windows per item, in the items' order: row 4 i + c is choice c of item i.

    Attributes:
        items: M of them.
        windows: 4 M windows of J tokens.
        scored: (4 M, J) True at the positions that predict a token of the choice.
        choice_bytes: (4 M,) bytes of each choice.
    """

    items: tuple[Item, ...]
    windows: TokenWindows
    scored: NDArray[np.bool_]
    choice_bytes: NDArray[np.int64]

    def choice_scores(self, token_nll: NDArray[np.float64], items: NDArray[np.int64]) -> NDArray[np.float64]:
        """Score (m, 4) of every choice of items (m,): log-probability in nats, per byte for some formats.

        Args:
            token_nll: (4 m, J) nats, the windows of those items in order.
            items: (m,) indices.
        """
        rows = (NUM_CHOICES * items[:, None] + np.arange(NUM_CHOICES)).ravel()
        scores = -(token_nll * self.scored[rows]).sum(axis=-1)
        per_byte = np.array([self.items[item].format in SCORED_PER_BYTE for item in items]).repeat(NUM_CHOICES)
        scores /= np.where(per_byte, self.choice_bytes[rows], 1)
        shaped: NDArray[np.float64] = scores.reshape(-1, NUM_CHOICES)
        return shaped


def load_suite(path: Path | None = None) -> tuple[Item, ...]:
    """Read a suite in gzipped JSON Lines; ``None`` reads the one that ships.

    Raises:
        ValueError: a line is not an item, or the file is truncated.
    """
    source = resources.files("wdmoe_env") / "assets" / "suite.jsonl.gz" if path is None else path
    try:
        lines = gzip.decompress(source.read_bytes()).decode("utf-8").splitlines()
        return tuple(_item(json.loads(line)) for line in lines)
    except (EOFError, gzip.BadGzipFile, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{source} is not a whole suite in gzipped JSON Lines: {error}") from error


def _item(record: dict[str, object]) -> Item:
    check_keys("item", record, Item.__slots__)
    return Item(**record | {"choices": tuple(record["choices"])})  # type: ignore[arg-type]


def suite_windows(items: Sequence[Item], tokenize: Callable[[str], list[int]], num_tokens: int) -> SuiteWindows:
    """Turn items into windows; a context that is too long loses its beginning, for all four choices alike.

    Args:
        items: M of them.
        tokenize: text to token ids.
        num_tokens: J.

    Raises:
        ValueError: a choice leaves no room for a token of context.
    """
    total = NUM_CHOICES * len(items)
    grid = np.zeros((total, num_tokens + 1), dtype=np.int64)
    lengths, begins = np.zeros(total, dtype=np.int64), np.zeros(total, dtype=np.int64)
    for number, item in enumerate(items):
        context, choices = tokenize(item.context), [tokenize(choice) for choice in item.choices]
        room = num_tokens + 1 - max(map(len, choices))
        if room < 1:
            raise ValueError(f"num_tokens must be at least {num_tokens + 1 - room} for item {number}, got {num_tokens}")
        for row, choice in enumerate(choices, start=NUM_CHOICES * number):
            ids = context[-room:] + choice
            grid[row, : len(ids)] = ids
            lengths[row], begins[row] = len(ids), len(ids) - len(choice)
    position = np.arange(1, num_tokens + 1)
    mask = position < lengths[:, None]
    domains = tuple(item.domain for item in items for _ in range(NUM_CHOICES))
    sizes = [len(choice.encode()) for item in items for choice in item.choices]
    windows = TokenWindows(grid[:, :-1], grid[:, 1:], mask, domains)
    return SuiteWindows(tuple(items), windows, mask & (position >= begins[:, None]), np.array(sizes, dtype=np.int64))
