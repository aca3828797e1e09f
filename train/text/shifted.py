"""``python -m train.text.shifted``: text of kinds that no recipe has seen, the split ``"shifted"``.

Neither the language model nor any policy has learned from these kinds: sermons, scripture in English, the manual of a
database. What is chosen depends on nothing but the names of the documents.
"""

from __future__ import annotations

import argparse
import hashlib
import html
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from train.text.documents import Document, tidy
from train.text.fetch import SourceError, fetch, members
from train.text.shards import write_episode_text
from train.text.sources import Source
from train.text.split import without_repeats
from train.text.sword import entries
from wdmoe_env.command import end_with
from wdmoe_env.writing import held_folder

DOCUMENTS_PER_DOMAIN = 26
PASSAGE_BYTES = 4_000
SHORTEST_BYTES = 1_500
VERSES_PER_DOCUMENT = 40

SOURCES = (
    Source(
        "sword-comm-tdavid",
        "2.1-1",
        "debian",
        "sword-comm-tdavid_2.1-1_all.deb",
        "bcbfad701c5c4a061475b58309cebc42755a59e87478c8355227c5e046412b3f",
        "public domain (C. H. Spurgeon, The Treasury of David, 1885)",
        ("sermons",),
    ),
    Source(
        "sword-text-web",
        "426.0-1",
        "debian",
        "sword-text-web_426.0-1_all.deb",
        "930b23670b352f0829a306501de4bebb5e654a2df02cde2cbe86b802177868e1",
        "public domain (World English Bible)",
        ("scripture",),
    ),
    Source(
        "sqlite3-doc",
        "3.40.1-2+deb12u2",
        "debian",
        "sqlite3-doc_3.40.1-2+deb12u2_all.deb",
        "466e30d7066e2641fa13e56bc662a2ad521b8cc9c17dde9c9dac3d4f105e32f2",
        "public domain (documentation of SQLite)",
        ("database manual",),
    ),
)


def main() -> None:
    """Run the recipe."""
    parser = argparse.ArgumentParser("python -m train.text.shifted", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/shifted"), help="folder of the result (data/shifted)")
    options = parser.parse_args()
    try:
        with held_folder(options.out):
            documents = [document for source in SOURCES for document in chosen(source, options.out / "downloads")]
            write_episode_text(options.out / "shifted.jsonl.gz", documents)
    except (SourceError, OSError) as error:
        sys.exit(f"error: {error}")
    for domain in dict.fromkeys(document.domain for document in documents):
        sizes = [len(document.text.encode()) for document in documents if document.domain == domain]
        print(f"{domain}: {len(sizes)} documents, {sum(sizes)} bytes")


def chosen(source: Source, downloads: Path) -> list[Document]:
    """Documents of a source in the order of a hash of their names, each cut to a passage at the end of a line."""
    archive = fetch(source, downloads)
    if archive is None:
        raise SourceError(f"{source.name} could not be downloaded")
    long_enough = [one for one in without_repeats(READERS[source.name](archive)) if len(one.text) >= SHORTEST_BYTES]
    ordered = sorted(long_enough, key=lambda one: hashlib.sha256(f"shifted {one.domain} {one.name}".encode()).digest())
    return [passage(one) for one in ordered[:DOCUMENTS_PER_DOMAIN]]


def passage(document: Document) -> Document:
    """The beginning of a document, whole lines of it where it has any within the bytes of a passage."""
    text = document.text.encode()[:PASSAGE_BYTES].decode("utf-8", "ignore")
    if len(document.text) > len(text):
        text = text[: max(text.rfind("\n"), text.rfind(". ") + 1)] or text
    return Document(document.domain, document.name, text.strip(), document.group, learned=False)


def sermons(archive: Path) -> Iterator[Document]:
    """The comments on each verse that are long enough to read."""
    for number, entry in enumerate(entries(_module(archive, "ot"), row=12)):
        text = _plain(entry)
        if len(text) >= SHORTEST_BYTES:
            yield Document("sermons", f"comment {number}", text, f"comment {number}")


def scripture(archive: Path) -> Iterator[Document]:
    """Runs of verses, of one book or across the end of one."""
    for part in ("ot", "nt"):
        verses = [_plain(entry) for entry in entries(_module(archive, part), row=10)]
        for start in range(0, len(verses), VERSES_PER_DOCUMENT):
            name = f"{part} {start}"
            text = tidy("\n".join(filter(None, verses[start : start + VERSES_PER_DOCUMENT])))
            yield Document("scripture", name, text, name)


def database_manual(archive: Path) -> Iterator[Document]:
    """The prose of each page: its paragraphs, without menus, tables and listings."""
    for name, page in members(archive, "./usr/share/doc/sqlite3", ".html"):
        body = re.sub(r"(?is)<(script|style|pre|table|svg).*?</\1>", " ", page.decode("utf-8", "replace"))
        paragraphs = [_plain(part) for part in re.findall(r"(?is)<p>(.*?)(?=<p>|</p>|<h\d|<ul|<ol|<div|</body)", body)]
        text = "\n".join(part for part in paragraphs if len(part) > 80)
        yield Document("database manual", name.rpartition("/")[2], tidy(text), name)


def _module(archive: Path, part: str) -> dict[str, bytes]:
    """Files of one part of a module, by the last letters of their names."""
    files = {name[-2:]: content for name, content in members(archive, "./usr/share/sword", "") if f"/{part}." in name}
    if files.keys() != {"zs", "zv", "zz"}:
        raise SourceError(f"{archive} holds no part {part!r} of a module")
    return files


def _plain(marked: str) -> str:
    """Text without notes and marks."""
    text = re.sub(r"(?is)<note.*?</note>|<title.*?</title>", "", marked)
    text = re.sub(r"(?i)</p>|<br ?/?>|<lb[^>]*>|</div>", "\n", text)
    return tidy(html.unescape(re.sub(r"<[^>]*>", "", text)).replace("\n", " "))


READERS: dict[str, Callable[[Path], Iterable[Document]]] = {
    "sword-comm-tdavid": sermons,
    "sword-text-web": scripture,
    "sqlite3-doc": database_manual,
}

if __name__ == "__main__":
    end_with("python -m train.text.shifted", main)
