"""Text of other kinds: modules of SWORD, pages, and passages."""

from __future__ import annotations

import struct
import zlib

from train.text.documents import Document
from train.text.shifted import PASSAGE_BYTES, _plain, passage
from train.text.sword import entries


def test_verses_are_read_by_their_index():
    blocks = [b"In the beginning", b"Jesus wept"]
    packed = [zlib.compress(block) for block in blocks]
    sizes = [len(block) for block in packed]
    places = struct.pack("<III", 0, sizes[0], 16) + struct.pack("<III", sizes[0], sizes[1], 10)
    for row, form in ((10, "<IIH"), (12, "<III")):
        verses = [(0, 7, 9), (0, 0, 0), (1, 0, 5)]
        files = {"zs": places, "zv": b"".join(struct.pack(form, *verse) for verse in verses), "zz": b"".join(packed)}
        assert list(entries(files, row)) == ["beginning", "Jesus"]


def test_marks_and_notes_go():
    assert _plain("<w>In</w> the<note>Or: at</note> sea;<lb/> &amp;\n so") == "In the sea; & so"


def test_a_passage_ends_with_a_sentence():
    text = "One sentence. " * 400
    found = passage(Document("sermons", "one", text, "one")).text
    assert found.endswith("sentence.")
    assert PASSAGE_BYTES - 20 < len(found.encode()) <= PASSAGE_BYTES
    assert passage(Document("sermons", "two", "Short.", "two")).text == "Short."
