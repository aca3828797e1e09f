"""Seeded skills: small questions with one right and three wrong answers, made without end.

A question is held out if a hash of its wording says so; the language model learns from
none of those, whatever the seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from train.text.documents import Document

QUESTIONS_PER_DOCUMENT = 24
LEARNED_DOCUMENTS = 2_600
HELD_OUT_DOCUMENTS = 230
_HELD_OUT_SHARE = 8

_WOMEN = ["Anna", "Dora", "Fay", "Helen", "Jane", "Lucy", "Nora", "Paula", "Rosa", "Tina"]
_MEN = ["Ben", "Carl", "Emil", "George", "Ivan", "Karl", "Max", "Otto", "Sam", "Victor"]
_NAMES = _WOMEN + _MEN
_THINGS = ["key", "book", "ring", "coin", "letter", "cup", "map", "shoe", "hat", "lamp", "knife", "bell"]
_PLACES = ["box", "drawer", "basket", "garden", "kitchen", "cellar", "tower", "boat", "bag", "cupboard", "stable"]
_LEGS = {"dogs": 4, "hens": 2, "horses": 4, "spiders": 8, "bees": 6, "geese": 2, "cows": 4, "crabs": 10}
_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
_WORDS = ["red", "blue", "green", "white", "black", "gold", "grey", "pink", "brown", "silver"]
_RELATIONS = {
    # (first step, second step) -> what the first person is to the third
    ("mother", "mother"): "grandmother",
    ("mother", "father"): "grandmother",
    ("father", "mother"): "grandfather",
    ("father", "father"): "grandfather",
    ("sister", "mother"): "aunt",
    ("sister", "father"): "aunt",
    ("brother", "mother"): "uncle",
    ("brother", "father"): "uncle",
}


@dataclass(frozen=True)
class Question:
    """A question of one task, with its answer and three wrong ones."""

    task: str
    prompt: str
    answer: str
    wrong: tuple[str, ...]

    @property
    def held_out(self) -> bool:
        """Whether the language model must not learn from it."""
        return hashlib.sha256(self.prompt.encode()).digest()[0] % _HELD_OUT_SHARE == 0


def _addition(rng: np.random.Generator) -> Question:
    a, b = (int(n) for n in rng.integers(2, 60, size=2))
    total = a + b
    return Question("addition", f"Q: What is {a} + {b}? A:", str(total), _near(rng, total, (1, -1, 10, -10, 2, -2)))


def _difference(rng: np.random.Generator) -> Question:
    a, b = sorted(int(n) for n in rng.integers(2, 80, size=2))
    rest = b - a
    return Question("difference", f"Q: What is {b} - {a}? A:", str(rest), _near(rng, rest, (1, -1, 10, -10, 2, -2)))


def _sequence(rng: np.random.Generator) -> Question:
    start, step = int(rng.integers(1, 40)), int(rng.integers(2, 12))
    shown = [start + step * k for k in range(4)]
    following = start + 4 * step
    prompt = f"Q: Which number follows {', '.join(map(str, shown))}? A:"
    return Question("sequence", prompt, str(following), _near(rng, following, (1, -1, step, -step, 2)))


def _family(rng: np.random.Generator) -> Question:
    first, second = list(_RELATIONS)[rng.integers(len(_RELATIONS))]
    left = _pick(rng, _WOMEN if first in ("mother", "sister") else _MEN)
    middle = _pick(rng, [name for name in (_WOMEN if second == "mother" else _MEN) if name != left])
    right = _pick(rng, [name for name in _NAMES if name not in (left, middle)])
    answer = _RELATIONS[first, second]
    prompt = f"{left} is the {first} of {middle}. {middle} is the {second} of {right}. Q: What is {left} to {right}? A:"
    wrong = tuple(sorted({*_RELATIONS.values()} - {answer}))
    return Question("family", prompt, answer, wrong)


def _moved(rng: np.random.Generator) -> Question:
    things, places = _some(rng, _THINGS, 2), _some(rng, _PLACES, 4)
    names = _some(rng, _NAMES, 3)
    prompt = (
        f"{names[0]} put the {things[0]} in the {places[0]}. {names[1]} put the {things[1]} in the {places[1]}. "
        f"{names[2]} moved the {things[0]} to the {places[2]}. Q: Where is the {things[0]}? A: in the"
    )
    return Question("moved", prompt, places[2], (places[0], places[1], places[3]))


def _order(rng: np.random.Generator) -> Question:
    names = _some(rng, _NAMES, 4)
    quality, first_is = (("taller", "tallest"), ("older", "oldest"), ("faster", "fastest"))[rng.integers(3)]
    steps = [f"{names[k]} is {quality} than {names[k + 1]}." for k in rng.permutation(3)]
    return Question("order", f"{' '.join(steps)} Q: Who is the {first_is}? A:", names[0], tuple(names[1:]))


def _legs(rng: np.random.Generator) -> Question:
    kinds = _some(rng, list(_LEGS), 2)
    counts = [int(n) for n in rng.integers(2, 8, size=2)]
    total = sum(count * _LEGS[kind] for count, kind in zip(counts, kinds, strict=True))
    listed = " and ".join(f"{count} {kind}" for count, kind in zip(counts, kinds, strict=True))
    return Question("legs", f"Q: How many legs do {listed} have? A:", str(total), _near(rng, total, (2, -2, 4, -4, 6)))


def _day(rng: np.random.Generator) -> Question:
    today, later, name = int(rng.integers(7)), int(rng.integers(2, 16)), _pick(rng, _NAMES)
    answer = _DAYS[(today + later) % 7]
    prompt = f"Today is {_DAYS[today]}. {name} comes in {later} days. Q: On which day does {name} come? A:"
    return Question("day", prompt, answer, tuple(_some(rng, [day for day in _DAYS if day != answer], 3)))


def _reversal(rng: np.random.Generator) -> Question:
    words = _some(rng, _WORDS, 4)
    right = words[::-1]
    wrong = {" ".join(right[k] for k in order) for order in ((1, 0, 2, 3), (0, 2, 1, 3), (0, 1, 3, 2))}
    return Question("reversal", f"Q: Reverse {' '.join(words)}. A:", " ".join(right), tuple(sorted(wrong)))


TASKS: tuple[Callable[[np.random.Generator], Question], ...] = (
    _addition,
    _difference,
    _sequence,
    _family,
    _moved,
    _order,
    _legs,
    _day,
    _reversal,
)


def questions(rng: np.random.Generator, held_out: bool) -> Iterator[Question]:
    """Yield questions of random tasks without end, all held out or all learned."""
    while True:
        question = TASKS[rng.integers(len(TASKS))](rng)
        if question.held_out == held_out:
            yield question


def skills(seed: int = 0) -> Iterator[Document]:
    """Yield documents of answered questions, those to learn from first."""
    for held_out, count in ((False, LEARNED_DOCUMENTS), (True, HELD_OUT_DOCUMENTS)):
        stream = questions(np.random.default_rng([seed, held_out]), held_out)
        for number in range(count):
            some = (next(stream) for _ in range(QUESTIONS_PER_DOCUMENT))
            text = "\n".join(f"{question.prompt} {question.answer}" for question in some)
            name = f"skills {'held out ' if held_out else ''}{number}"
            yield Document("skills", name, text, name, learned=not held_out)


def _pick(rng: np.random.Generator, options: list[str]) -> str:
    return options[rng.integers(len(options))]


def _some(rng: np.random.Generator, options: list[str], count: int) -> list[str]:
    return [options[i] for i in rng.permutation(len(options))[:count]]


def _near(rng: np.random.Generator, number: int, offsets: tuple[int, ...]) -> tuple[str, ...]:
    """Return three different numbers near one, none negative."""
    candidates = sorted({number + offset for offset in offsets if number + offset >= 0} - {number})
    return tuple(str(candidates[i]) for i in sorted(rng.permutation(len(candidates))[:3]))
