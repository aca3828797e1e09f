"""Text that people save, read at one boundary: bounded in size, decoded, and refused in one sentence.

Every reader of the project begins here. Text may be packed with gzip; it is UTF-8, with a byte-order mark or without
one, or UTF-16 or UTF-32 with one. JSON holds finite numbers and no key twice. A CSV may have commas, semicolons or
tabs, quotes, capitals in the names of its columns, and the column of row numbers that pandas and R put before them. A
size is known before a content is read, and gzip is unpacked no further than the limit.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NoReturn

from wdmoe_env.checks import shown

MIB = 2**20

MOST_TEXT_BYTES = 64 * MIB
"""Bytes that a file of text may hold, after unpacking: a hundred thousand items of a suite, or rows of 300 policies."""

MOST_JSON_CHARACTERS = 16 * MIB
"""Characters of one JSON value: results of a thousand policies."""

MOST_JSON_DEPTH = 64
"""Objects and lists within each other in a JSON value."""

DELIMITERS = (",", ";", "\t")
"""What may stand between the columns of a CSV."""

_GZIP_MAGIC = b"\x1f\x8b"
# Longer marks first: that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# How pandas names a column without a name when it reads it.
_NAMES_OF_INDEX = ("", "unnamed: 0")


def shown_path(path: object) -> str:
    """A path as a message shows it, without what a terminal cannot print."""
    text = str(path)
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def read_bytes(path: Traversable, most_bytes: int) -> bytes:
    """The content of a regular file.

    Args:
        path: of the file.
        most_bytes: what it may hold; a larger one is not read.

    Raises:
        FileNotFoundError: no such file.
        OSError: it cannot be read.
        ValueError: it is larger.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a file, found none at {shown_path(path)}")
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size > most_bytes:
            raise ValueError(f"expected at most {most_bytes:,} bytes in {shown_path(path)}, got {size:,}")
        file.seek(0)
        return file.read(most_bytes)


def read_text(path: Traversable, most_bytes: int = MOST_TEXT_BYTES) -> str:
    """The text of a file, which may be packed with gzip whatever its name.

    Args:
        path: of the file.
        most_bytes: what it may hold, before and after unpacking.

    Raises:
        FileNotFoundError: no such file.
        OSError: it cannot be read.
        ValueError: it is larger, damaged, or no text.
    """
    content = read_bytes(path, most_bytes)
    if content.startswith(_GZIP_MAGIC):
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
                content = packed.read(most_bytes + 1)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(
                f"expected a whole gzip file, but {shown_path(path)} is truncated or damaged: {error}"
            ) from None
        if len(content) > most_bytes:
            raise ValueError(f"expected at most {most_bytes:,} bytes in {shown_path(path)}, but it unpacks to more")
    try:
        return decoded(content)
    except ValueError as error:
        raise ValueError(f"{shown_path(path)}: {error}") from None


def decoded(content: bytes) -> str:
    """Bytes as text: UTF-8, or what their byte-order mark says.

    Raises:
        ValueError: they are none, or hold a NUL, which no text does.
    """
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8-sig")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].decode(encoding, errors="replace").count("\n") + 1
        raise ValueError(f"expected text in UTF-8, or in UTF-16 with a byte-order mark; line {line}: {error}") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"expected text in UTF-8, or in UTF-16 with a byte-order mark, got a NUL in line {line}")
    return text


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, each with its number from 1; only a line feed ends one."""
    number, counted = 1, 0
    for found in re.finditer("[^\n]+", text):
        number, counted = number + text.count("\n", counted, found.start()), found.start()
        if not found[0].isspace():
            yield number, found[0]


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none, or holds a key twice, a number that is not finite, half of a surrogate pair, or more
            than ``MOST_JSON_CHARACTERS`` or ``MOST_JSON_DEPTH`` allow.
    """
    if len(text) > MOST_JSON_CHARACTERS:
        raise ValueError(f"expected at most {MOST_JSON_CHARACTERS:,} characters, got {len(text):,}")
    try:
        value = _DECODER.decode(text)
        deep = _is_deep(text, value)
    except RecursionError:
        deep = True
    if deep:
        raise ValueError(f"expected at most {MOST_JSON_DEPTH} objects and lists within each other, got more")
    if re.search(r"\\u[dD][89a-fA-F]", text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start])[1:-1]
            raise ValueError(f"expected text, got half of a surrogate pair, {half}") from None
    return value


def read_json(path: Traversable) -> dict[str, Any]:
    """The JSON object of a file.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: no such file.
        OSError: it cannot be read.
        ValueError: it holds no JSON object; see ``parse_json``.
    """
    text = read_text(path)
    try:
        value = parse_json(text)
    except ValueError as error:
        raise ValueError(f"expected JSON in {shown_path(path)}, got something else: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object in {shown_path(path)}, got {type(value).__name__}")
    return value


def csv_names(text: str) -> tuple[list[str], str]:
    """The names of a CSV's columns, in small letters, and what stands between them.

    Args:
        text: of the CSV, or its first line.

    Raises:
        ValueError: the first line has more than one of ``DELIMITERS``, or is no line of a CSV.
    """
    header = _first_line(text)
    if not header.strip():
        raise ValueError("line 1: expected names of columns, got none")
    bare = re.sub('"[^"]*"', "", header)
    found = [one for one in DELIMITERS if one in bare] or [","]
    if len(found) > 1:
        raise ValueError(f"line 1: expected names with commas, semicolons or tabs between them, got {shown(header)}")
    try:
        cells = next(csv.reader([header], delimiter=found[0], strict=True))
    except csv.Error as error:
        raise ValueError(f"line 1: expected names of columns, got {shown(header)}: {error}") from None
    return [cell.strip().lower() for cell in cells], found[0]


def may_be_index(name: str) -> bool:
    """Whether a first column of this name may be the row numbers that pandas and R write before the others."""
    return name in _NAMES_OF_INDEX


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The names of a CSV's columns, and its rows by name.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: no such file.
        OSError: it cannot be read.
        ValueError: it is no CSV, or a row has more or fewer entries than there are names; the message names the line.
    """
    text = read_text(path)
    try:
        names, delimiter = csv_names(text)
        rows = _rows(text, delimiter, len(names))
    except ValueError as error:
        raise ValueError(f"{shown_path(path)}, {error}") from None
    if names and may_be_index(names[0]):
        numbers = [row[0] for row in rows]
        if any(numbers == [str(first + row) for row in range(len(rows))] for first in (0, 1)):
            names, rows = names[1:], [row[1:] for row in rows]
    return names, [dict(zip(names, row, strict=True)) for row in rows]


def _rows(text: str, delimiter: str, count: int) -> list[list[str]]:
    """The rows below the first line, each of so many entries; blank lines are left out."""
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = []
    try:
        next(lines, None)
        for row in filter(None, lines):
            if len(row) != count:
                raise ValueError(f"line {lines.line_num}: expected {count} columns, one for each name, got {len(row)}")
            rows.append(row)
    except csv.Error as error:
        raise ValueError(f"line {lines.line_num}: expected a row of a CSV, got something else: {error}") from None
    return rows


def _first_line(text: str) -> str:
    found = re.match(r"[^\r\n]*", text)
    return found[0] if found else ""


def _is_deep(text: str, value: Any) -> bool:
    """Whether objects and lists stand deeper within each other than the limit."""
    if text.count("[") + text.count("{") <= MOST_JSON_DEPTH:
        return False
    level = [value]
    for _ in range(MOST_JSON_DEPTH):
        branches = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list))]
        level = [child for branch in branches for child in branch]
    return any(isinstance(one, (dict, list)) for one in level)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"expected each key once in an object, got {shown(twice)} twice")
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"expected finite numbers, got {text}")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_number)
