"""Texts of one's own, ``split="text:PATH"``: JSON Lines, plain text, or a folder of such files.

A file whose name ends with ``.jsonl`` or ``.jsonl.gz`` holds a document on each line: an object with ``text`` and
perhaps ``domain``. Other fields are not read. Any other file is plain text, which is one document. All files
may be packed with gzip.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from wdmoe_env.checks import shown
from wdmoe_env.reading import MOST_TEXT_BYTES, numbered_lines, parse_json, read_text, shown_path
from wdmoe_env.text.windows import Document

JSON_LINES = (".jsonl", ".jsonl.gz")
MOST_FILES = 10_000
"""Of a folder."""


def text_files(path: Path) -> list[Path]:
    """The files of ``split="text:PATH"`` in order: the one that is named, or all of a folder and of those within it.

    Files and folders whose name begins with a dot are left out.

    Args:
        path: of a file or a folder.

    Raises:
        ValueError: there is neither, the folder holds no file, or more than ``MOST_FILES``.
    """
    if not path.is_dir():
        if not path.is_file():
            raise ValueError(f"expected a file or a folder of texts, but there is none at {shown_path(path)}")
        return [path]
    files = sorted(_files_of(path))
    if not files:
        raise ValueError(f"expected a folder with files of text, but there is no file in {shown_path(path)}")
    return files


def load_texts(path: Path) -> list[Document]:
    """Read texts of one's own. A document without a ``domain`` has the name of its file without suffixes as one.

    Args:
        path: of a file or a folder, which hold ``wdmoe_env.reading.MOST_TEXT_BYTES`` at most when unpacked.

    Raises:
        ValueError: no file, one that is too large or holds no text, or a line that is not a document. The message names
            the file and the line.
        OSError: a file cannot be read.
    """
    documents: list[Document] = []
    size = 0
    for file in text_files(path):
        text = read_text(file)
        size += len(text.encode())
        if size > MOST_TEXT_BYTES:
            raise ValueError(f"expected at most {MOST_TEXT_BYTES:,} bytes of text in {shown_path(path)}, got more")
        documents += _documents(file, text)
    return documents


def _files_of(folder: Path) -> Iterator[Path]:
    count = 0
    for path in folder.rglob("*"):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            count += 1
            if count > MOST_FILES:
                raise ValueError(f"expected at most {MOST_FILES:,} files in {shown_path(folder)}, got more")
            yield path


def _documents(file: Path, text: str) -> Iterator[Document]:
    name = file.name.partition(".")[0]
    if not file.name.endswith(JSON_LINES):
        yield Document(domain=name, name=file.name, text=text)
        return
    for number, line in numbered_lines(text):
        try:
            yield _document(line, name, f"{file.name}:{number}")
        except ValueError as error:
            raise ValueError(f"{shown_path(file)}, line {number}: {error}") from None


def _document(line: str, domain: str, name: str) -> Document:
    """The document of a line of JSON.

    Raises:
        ValueError: it is none.
    """
    record = parse_json(line)
    if not isinstance(record, dict) or "text" not in record:
        got = f"the fields {', '.join(map(shown, record))}" if isinstance(record, dict) else shown(record)
        raise ValueError(f"expected an object with the field 'text', got {got}")
    found = {"domain": domain} | record
    for field in ("text", "domain"):
        if not isinstance(found[field], str):
            raise ValueError(f"expected {field} to be a string, got {shown(found[field])}")
    return Document(found["domain"], name, found["text"])
