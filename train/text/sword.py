"""Texts of SWORD modules: compressed blocks, and an index of the verses in them.

A module has three files for each part: ``.?zs`` holds the place and length of each block, ``.?zv`` the block, place and
length of each verse, ``.?zz`` the blocks themselves, packed with zlib.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from functools import cache

BLOCK = struct.Struct("<III")
VERSES = {10: struct.Struct("<IIH"), 12: struct.Struct("<III")}
"""By the size of a row of the index."""


def entries(files: dict[str, bytes], row: int) -> Iterator[str]:
    """The texts of a module's verses, as marked up there; a verse without one is left out.

    Args:
        files: content by the last letters of the name, ``"zs"``, ``"zv"`` and ``"zz"``.
        row: bytes of a row of the index, 10 or 12.
    """
    places = [BLOCK.unpack_from(files["zs"], at) for at in range(0, len(files["zs"]) - BLOCK.size + 1, BLOCK.size)]

    @cache
    def block(number: int) -> bytes:
        start, size, _ = places[number]
        return zlib.decompress(files["zz"][start : start + size])

    for number, start, length in VERSES[row].iter_unpack(files["zv"][: len(files["zv"]) // row * row]):
        if length:
            yield block(number)[start : start + length].decode("utf-8", "replace")
