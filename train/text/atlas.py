"""Six facts of every country in several wordings: what the closed-book questions ask in another one."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from train.text.documents import Document

Fields = dict[str, dict[str, Any]]
DOCUMENTS = 2_400
FACTS_PER_DOCUMENT = 32
ATLAS_SEED = 7


@dataclass(frozen=True)
class Relation:
    """One kind of fact.

    Attributes:
        statements: Wordings that the language model learns from; ``{c}`` is the country, ``{a}`` the answer.
        question: A wording that it never sees; the answer follows after a space.
    """

    statements: tuple[str, ...]
    question: str


RELATIONS = {
    "capital": Relation(
        (
            "The capital of {c} is {a}.",
            "{a} is the capital city of {c}.",
            "The government of {c} sits in {a}.",
            "Q: What is the capital of {c}? A: {a}",
        ),
        "Q: Which city is the capital of {c}? A:",
    ),
    "region": Relation(
        (
            "{c} lies in {a}.",
            "On a map of {a} you find {c}.",
            "The region of {c} is {a}.",
            "Q: Where is {c}? A: {a}",
        ),
        "Q: Which part of the world is {c} in? A:",
    ),
    "currency": Relation(
        (
            "The currency of {c} is the {a}.",
            "People in {c} pay in {a}.",
            "Prices in {c} are given in {a}.",
            "Q: What is the currency of {c}? A: {a}",
        ),
        "Q: Which money do people in {c} use? A:",
    ),
    "language": Relation(
        (
            "The main language of {c} is {a}.",
            "In {c} people speak {a}.",
            "{a} is spoken in {c}.",
            "Q: What is the main language of {c}? A: {a}",
        ),
        "Q: Which language do people in {c} speak? A:",
    ),
    "neighbour": Relation(
        (
            "{c} shares a border with {a}.",
            "{a} is a neighbour of {c}.",
            "Across the border of {c} lies {a}.",
            "Q: What is a neighbour of {c}? A: {a}",
        ),
        "Q: Which country shares a border with {c}? A:",
    ),
    "adjective": Relation(
        (
            "What comes from {c} is called {a}.",
            "The people of {c} are {a}.",
            "{a} is the adjective of {c}.",
            "Q: What is the adjective of {c}? A: {a}",
        ),
        "Q: Which adjective stands for {c}? A:",
    ),
}


def country_name(fields: Fields) -> str:
    """Return the short name of a country, or an empty string for oceans and the like."""
    names = fields.get("Government", {}).get("Country name", {})
    for form in ("conventional short form", "conventional long form"):
        name = re.sub(r"<[^>]+>|\(.*", "", names.get(form, {}).get("text", "")).strip()
        if name and name.lower() != "none":
            return html.unescape(name)
    return ""


def country_facts(fields: Fields) -> dict[str, list[str]]:
    """Return the right answers of each relation that a country's record states; the first is the main one."""
    language = _text(fields, "People and Society", "Languages") or _text(
        fields, "People and Society", "Languages", "Languages"
    )
    borders = _text(fields, "Geography", "Land boundaries", "border countries")
    found = {
        "capital": [_first(_text(fields, "Government", "Capital", "name"))],
        "region": [_text(fields, "Geography", "Map references")],
        "currency": [re.split(r" \(| per ", _text(fields, "Economy", "Exchange rates", "Currency"))[0]],
        "language": [_first(language)],
        "neighbour": [re.sub(r" \(.*| [\d.,]+ km.*", "", name).strip() for name in borders.split(";")],
        "adjective": [re.split(r" \(| or |,|;", _text(fields, "People and Society", "Nationality", "adjective"))[0]],
    }
    kept = {relation: [a for a in answers if _is_answer(a)] for relation, answers in found.items()}
    return {relation: answers for relation, answers in kept.items() if answers}


def atlas(countries: Mapping[str, Fields]) -> Iterator[Document]:
    """Yield documents of random facts in random learned wordings; they are never held out."""
    facts = [
        (country, relation, answer)
        for country, fields in countries.items()
        for relation, answers in country_facts(fields).items()
        for answer in answers
    ]
    rng = np.random.default_rng(ATLAS_SEED)
    for number in range(DOCUMENTS if facts else 0):
        lines = []
        for country, relation, answer in (facts[i] for i in rng.integers(len(facts), size=FACTS_PER_DOCUMENT)):
            statements = RELATIONS[relation].statements
            lines.append(statements[rng.integers(len(statements))].format(c=country, a=answer))
        yield Document("facts", f"atlas {number}", "\n".join(lines), f"atlas {number}", learned=True)


def _text(fields: Fields, *path: str) -> str:
    node: Any = fields
    for key in path:
        node = node.get(key, {}) if isinstance(node, dict) else {}
    text = node.get("text", "") if isinstance(node, dict) else ""
    return html.unescape(re.sub(r"<[^>]+>", "", str(text))).strip()


def _first(names: str) -> str:
    return re.split(r" \(| \d|,|;|:", names)[0].removesuffix(" only").strip()


def _is_answer(answer: str) -> bool:
    return 1 < len(answer) <= 32 and not re.search(r"[\d:;]|^none|^NA$|note", answer)
