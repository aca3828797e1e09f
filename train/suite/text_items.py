"""Items cut from documents: one word left out, one replaced, two swapped, and which passage follows.

Context and right choice are a verbatim stretch of one document; wrong words come from the same document.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from train.text.documents import Document
from wdmoe_env.text.suite import NUM_CHOICES, Item

CONTEXT_WORDS = 60
SPAN_WORDS = 14
CONTINUATION_WORDS = 26
ITEMS_PER_DOMAIN = {"cloze": 150, "replaced": 150, "swapped": 150, "continuation": 90}
MIN_WORD = 3
"""Shorter words are mostly articles and prepositions, which say little about what the model lost."""

NEAREST = 16
"""Wrong words are drawn from that many of the document's words nearest in length and frequency."""

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?|\d+|\w+")
_START = re.compile(r"(?:(?<=[.!?;:]) |\n)(?=\w)")
MAX_ATTEMPTS = 200


@dataclass(frozen=True)
class Words:
    """A document and where its words are.

    Attributes:
        text: all of it.
        spans: (begin, end) of every word.
        count: how often each word occurs.
        starts: index of each word that begins a sentence or a line.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    count: Counter[str]
    starts: tuple[int, ...]

    @classmethod
    def of(cls, document: Document) -> Words:
        """Find the words of a document."""
        spans = tuple(found.span() for found in _WORD.finditer(document.text))
        number = {begin: index for index, (begin, _) in enumerate(spans)}
        begins = (found.end() for found in _START.finditer(document.text))
        starts = tuple(number[begin] for begin in begins if begin in number)
        return cls(document.text, spans, Counter(document.text[a:b] for a, b in spans), starts)

    def word(self, index: int) -> str:
        """The word of an index."""
        begin, end = self.spans[index]
        return self.text[begin:end]

    def stretch(self, first: int, last: int) -> str:
        """The text of words first to last, with the one white space before it."""
        return self.text[self.spans[first][0] - 1 : self.spans[last][1]]

    def context(self, index: int, words: int) -> str:
        """The text of up to ``words`` words before a word, without the white space that parts them."""
        return self.text[self.spans[max(0, index - words)][0] : self.spans[index][0] - 1]

    def begins_with_capital(self, index: int) -> bool:
        """Whether the word has a capital: choices that differ in this would be told apart by it alone."""
        return self.text[self.spans[index][0]].isupper()

    def follows_space(self, index: int) -> bool:
        """Whether white space parts the word from the one before."""
        return index > 0 and self.text[self.spans[index][0] - 1].isspace()

    def other_words(self, index: int, rng: np.random.Generator, count: int) -> list[str]:
        """Words of the document that could be taken for one: of like case, length and frequency; fewer if need be."""
        word = self.word(index)
        kind = (word[0].isupper(), word.isupper())

        def distance(other: str) -> float:
            return abs(np.log2(self.count[other] / self.count[word])) + abs(len(other) - len(word)) / 2

        alike = [
            other
            for other in self.count
            if other.isalpha()
            and len(other) >= MIN_WORD
            and (other[0].isupper(), other.isupper()) == kind
            and other.lower() != word.lower()
        ]
        nearest = sorted(alike, key=lambda other: (distance(other), other))[:NEAREST]
        return [nearest[i] for i in rng.permutation(len(nearest))[:count]]


Maker = Callable[[Sequence[Words], np.random.Generator], tuple[str, str, list[str]] | None]
"""A domain's documents to (context, right choice, three wrong choices), or None where the draw does not serve."""


def text_items(documents: Sequence[Document], fits: Callable[[str], bool], seed: int) -> list[Item]:
    """Make the items of every format for every domain among held-out documents.

    Args:
        documents: Held out.
        fits: Whether a choice is short enough for a window.
        seed: Of the draws.

    Raises:
        ValueError: A domain has too little text.
    """
    items = []
    for domain in dict.fromkeys(document.domain for document in documents):
        pool = [Words.of(document) for document in documents if document.domain == domain]
        for number, (name, count) in enumerate(ITEMS_PER_DOMAIN.items()):
            rng = np.random.default_rng([seed, number, *domain.encode()])
            items += _draw(name, domain, pool, fits, count, rng)
    return items


def _draw(
    name: str, domain: str, pool: Sequence[Words], fits: Callable[[str], bool], count: int, rng: np.random.Generator
) -> list[Item]:
    made: dict[str, Item] = {}
    for _ in range(MAX_ATTEMPTS * count):
        drawn = MAKERS[name](pool, rng)
        if drawn is not None and len({drawn[1], *drawn[2]}) == NUM_CHOICES and all(map(fits, [drawn[1], *drawn[2]])):
            made.setdefault(drawn[0] + drawn[1], as_item(name, domain, *drawn, rng))
        if len(made) == count:
            return list(made.values())
    raise ValueError(f"expected text for {count} items {name} of {domain}, got {len(made)}: more documents are needed")


def as_item(format: str, domain: str, context: str, right: str, wrong: Sequence[str], rng: np.random.Generator) -> Item:
    """An item whose right choice stands at a random place."""
    answer = int(rng.integers(NUM_CHOICES))
    choices = [*wrong[:answer], right, *wrong[answer:]]
    return Item(format, domain, context, tuple(choices), answer)


def _place(pool: Sequence[Words], rng: np.random.Generator, after: int) -> tuple[Words, int] | None:
    """A random word of a random document, documents by length, with enough before and after it."""
    sizes = np.array([len(words.spans) for words in pool], dtype=float)
    words = pool[rng.choice(len(pool), p=sizes / sizes.sum())]
    room = len(words.spans) - after
    if room <= CONTEXT_WORDS // 2:
        return None
    index = int(rng.integers(CONTEXT_WORDS // 2, room))
    return (words, index) if words.follows_space(index) else None


Edits = Callable[[Words, int, np.random.Generator], list[dict[int, str]]]
"""A document and the first word of a stretch to the words that each wrong choice puts elsewhere, by their index."""


def _edited(count: int, edits: Edits) -> Maker:
    """The maker of a format whose wrong choices are edits of the right one, a stretch of so many words."""

    def make(pool: Sequence[Words], rng: np.random.Generator) -> tuple[str, str, list[str]] | None:
        place = _place(pool, rng, after=count)
        if place is None:
            return None
        words, first = place
        wrong = [_changed(words, first, count, new) for new in edits(words, first, rng)]
        return words.context(first, CONTEXT_WORDS), words.stretch(first, first + count - 1), wrong

    return make


def _another_first(words: Words, first: int, rng: np.random.Generator) -> list[dict[int, str]]:
    """Other words in place of the first; none where it is not plain."""
    if not _is_plain(words.word(first)):
        return []
    return [{first: other} for other in words.other_words(first, rng, NUM_CHOICES - 1)]


def _one_replaced(words: Words, first: int, rng: np.random.Generator) -> list[dict[int, str]]:
    """One inner word replaced, a different one each time."""
    plain = [index for index in range(first + 1, first + SPAN_WORDS - 1) if _is_plain(words.word(index))]
    chosen = [plain[i] for i in rng.permutation(len(plain))[: NUM_CHOICES - 1]]
    return [{index: other} for index in chosen for other in words.other_words(index, rng, 1)]


def _two_swapped(words: Words, first: int, rng: np.random.Generator) -> list[dict[int, str]]:
    """Two neighbouring inner words swapped, a different pair each time."""
    span = range(first + 1, first + SPAN_WORDS - 2)
    pairs = [i for i in span if words.word(i).lower() != words.word(i + 1).lower() and words.word(i).isalpha()]
    chosen = [pairs[i] for i in rng.permutation(len(pairs))[: NUM_CHOICES - 1]]
    return [{i: words.word(i + 1), i + 1: words.word(i)} for i in chosen]


def _continuation(pool: Sequence[Words], rng: np.random.Generator) -> tuple[str, str, list[str]] | None:
    others = rng.permutation(len(pool))[:NUM_CHOICES]
    passages: list[tuple[Words, int]] = []
    for number, words in enumerate(pool[i] for i in others):
        least = CONTEXT_WORDS if number == 0 else 1
        starts = [start for start in words.starts if least <= start <= len(words.spans) - CONTINUATION_WORDS]
        if passages:
            capital = passages[0][0].begins_with_capital(passages[0][1])
            starts = [start for start in starts if words.begins_with_capital(start) == capital]
        if not starts:
            return None
        passages.append((words, starts[rng.integers(len(starts))]))
    (own, start), *rest = passages
    right = own.stretch(start, start + CONTINUATION_WORDS - 1)
    wrong = [right[0] + words.stretch(at, at + CONTINUATION_WORDS - 1)[1:] for words, at in rest]
    return own.context(start, CONTEXT_WORDS), right, wrong


MAKERS: dict[str, Maker] = {
    "cloze": _edited(2, _another_first),  # and the word after it: tokens alone do not say where a word ends
    "replaced": _edited(SPAN_WORDS, _one_replaced),
    "swapped": _edited(SPAN_WORDS, _two_swapped),
    "continuation": _continuation,
}


def _is_plain(word: str) -> bool:
    return word.isalpha() and len(word) >= MIN_WORD


def _changed(words: Words, first: int, count: int, new: dict[int, str]) -> str:
    """The stretch of so many words from one on, with some words replaced and everything between them kept."""
    parts = []
    for index in range(first, first + count):
        begin, end = words.spans[index]
        gap = words.text[begin - 1] if index == first else words.text[words.spans[index - 1][1] : begin]
        parts.append(gap + new.get(index, words.text[begin:end]))
    return "".join(parts)
