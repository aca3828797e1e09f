"""Recordings of gains as files: NPZ, an array per quantity, or CSV, a row per step and device. Reading runs no code.

A CSV has at most ``MOST_CSV_BYTES``; either kind holds at most ``MOST_NUMBERS``, which is known before they are read.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from wdmoe_env.checks import shown
from wdmoe_env.physics.gains import Gains
from wdmoe_env.physics.latency import Float
from wdmoe_env.physics.recorded import Recording, check_range
from wdmoe_env.reading import MIB, csv_names, decoded, may_be_index, numbered_lines, read_bytes, shown_path
from wdmoe_env.writing import write_whole

QUANTITIES = ("gain", "gain_db", "uplink_gain", "uplink_gain_db", "distance_m")
"""Arrays of an NPZ and columns of a CSV; gains are linear or in dB, and that of the downlink must be there."""

INDEX = ("episode", "step", "device")
"""Columns of whole numbers in a CSV; ``episode`` may be missing where there is one."""

MOST_NUMBERS = 2**25
"""Numbers of a file, all columns or arrays together: 8 devices in steps of 20 ms for 23 hours."""

MOST_CSV_BYTES = 256 * MIB

Table = Mapping[str, Float]
"""Quantities by name, all of one shape."""

Header = tuple[tuple[int, ...], np.dtype[Any]]
"""Shape and type of an array."""

_SUFFIXES = (".csv", ".npz")
_MOST_NPZ_BYTES = 8 * MOST_NUMBERS + MIB
_MOST_HEADER_BYTES = 10_000
_MOST_WHOLE = 2.0**53
_MOST_RECENT = 4
_recent: dict[tuple[str, bytes], Recording] = {}


def read_recording(path: str | os.PathLike[str]) -> Recording:
    """Read a recording, once in a process while the file's content stays the same.

    Args:
        path: a ``.csv`` or ``.npz`` file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no whole recording; the message says what was expected and what came, and where.
    """
    file = Path(os.path.expanduser(_checked(path)))
    if not file.is_file():
        raise FileNotFoundError(f"expected a file of recorded gains, found no file {str(path)!r}")
    content = read_bytes(file, MOST_CSV_BYTES if file.suffix == ".csv" else _MOST_NPZ_BYTES)
    # A time and a size would miss a change within the clock's tick.
    key = (file.suffix, hashlib.sha256(content).digest())
    found = _recent.get(key)
    if found is None:
        try:
            found = _recording(*(_read_csv if file.suffix == ".csv" else _read_npz)(content))
        except ValueError as error:
            raise ValueError(f"{shown_path(path)}: {error}") from None
        _recent[key] = found
        for oldest in list(_recent)[:-_MOST_RECENT]:
            _recent.pop(oldest, None)
    return found


def write_recording(path: str | os.PathLike[str], gains: Gains) -> None:
    """Write gains (I, N, U), such as those of ``Channel.sample``, as N episodes of I steps.

    Read back, every gain is the same number. Uplink and distances are left out where they say nothing.

    Args:
        path: a ``.csv`` or ``.npz`` file; replaced where it exists.
        gains: what to write.

    Raises:
        ValueError, OSError: another suffix, or what ``wdmoe_env.writing.write_whole`` raises.
    """
    file = _checked(path)
    table = {"gain": gains.gain}
    if not np.array_equal(gains.gain, gains.uplink_gain):
        table["uplink_gain"] = gains.uplink_gain
    if not np.isnan(gains.distance_m).all():
        table["distance_m"] = gains.distance_m
    episodes_first = {name: np.ascontiguousarray(values.swapaxes(0, 1)) for name, values in table.items()}
    content = io.BytesIO()
    if file.suffix == ".csv":
        _write_csv(content, episodes_first)
    else:
        np.savez_compressed(content, allow_pickle=False, **episodes_first)
    write_whole(file, content.getvalue())


def _checked(path: str | os.PathLike[str]) -> Path:
    if not str(path).endswith(_SUFFIXES):
        raise ValueError(f"expected a file of gains that ends in {' or '.join(_SUFFIXES)}, got {str(path)!r}")
    return Path(path)


def _recording(table: Table, lengths: NDArray[np.int64]) -> Recording:
    gain = _gain(table, "gain")
    if gain is None:
        raise ValueError(f"expected gain or gain_db, got {', '.join(table) or 'nothing'}")
    uplink, distance = _gain(table, "uplink_gain"), table.get("distance_m")
    return Recording(
        gain=gain,
        uplink_gain=gain if uplink is None else uplink,
        distance_m=np.broadcast_to(np.nan, gain.shape) if distance is None else distance,
        lengths=lengths,
    )


def _gain(table: Table, name: str) -> Float | None:
    """Linear gain (T, U) out of a table that holds it, or the same in dB, or neither."""
    if name in table and f"{name}_db" in table:
        raise ValueError(f"expected {name} or {name}_db, got both")
    if f"{name}_db" in table:
        return 10.0 ** (table[f"{name}_db"] / 10.0)
    return table.get(name)


# CSV.


def _write_csv(file: io.BytesIO, table: Table) -> None:
    """Write quantities (episodes, steps, U), with as many digits as give the same numbers back."""
    index = np.indices(next(iter(table.values())).shape)
    columns = [values.ravel() for values in (*index, *table.values())]
    formats = ["%d"] * len(INDEX) + ["%.17g"] * len(table)
    header = ",".join((*INDEX, *table))
    np.savetxt(file, np.stack(columns, axis=-1), fmt=formats, delimiter=",", header=header, comments="")


def _read_csv(content: bytes) -> tuple[Table, NDArray[np.int64]]:
    """Quantities (T, U) of steps in order, and the steps of each episode (E,); the rows may stand in any order."""
    text = re.sub("\r\n?", "\n", decoded(content))
    # The number that a last line without an end breaks off in could look like a whole one.
    if not text.endswith("\n"):
        raise ValueError("expected the last line to end, as that of a whole file does: truncated?")
    columns = _columns(text)
    columns.setdefault("episode", np.zeros_like(columns["step"]))
    for name in INDEX:
        wrong = np.flatnonzero(~(np.abs(columns[name]) <= _MOST_WHOLE) | (np.rint(columns[name]) != columns[name]))
        if wrong.size:
            got = f"{columns[name][wrong[0]]:g} in {_place(text, name, int(wrong[0]))}"
            raise ValueError(f"expected whole numbers in the columns {', '.join(INDEX)}, got {got}")
    index = np.stack([columns.pop(name) for name in INDEX])
    for name, values in columns.items():
        check_range(name, values, partial(_place, text, name))
    order = np.lexsort(index[::-1])
    episodes, steps, devices = index[:, order].astype(np.int64)
    lengths = _lengths(episodes, steps, devices)
    return {name: values[order].reshape(lengths.sum(), -1) for name, values in columns.items()}, lengths


def _columns(text: str) -> dict[str, Float]:
    """The columns (rows,) by name."""
    names, delimiter = csv_names(text)
    index = may_be_index(names[0])
    _check_names(names[index:])
    most_rows = MOST_NUMBERS // len(names)
    rows = _rows(text)
    first = next(rows, None)
    if first is None:
        raise ValueError("expected rows below the names of the columns, got none")
    # The first row is looked at alone since NumPy makes room for as many columns as it has.
    wrong = _mistake(*first, names, delimiter)
    if wrong:
        raise ValueError(wrong)
    lines = (line for _, line in chain([first], rows))
    try:
        table = np.loadtxt(
            lines, delimiter=delimiter, comments=None, quotechar='"', ndmin=2, unpack=True, max_rows=most_rows + 1
        )
    except ValueError as error:
        mistakes = (_mistake(number, line, names, delimiter) for number, line in _rows(text))
        raise ValueError(next(filter(None, mistakes), str(error))) from None
    if table.shape[1] > most_rows:
        raise ValueError(f"expected at most {MOST_NUMBERS:,} numbers, got more: write several recordings")
    if index and not any(np.array_equal(table[0], np.arange(start, start + table.shape[1])) for start in (0, 1)):
        raise ValueError("line 1: expected a name for the first column, which is no count of the rows from 0 or 1")
    return dict(zip(names[index:], table[index:], strict=True))


def _rows(text: str) -> Iterator[tuple[int, str]]:
    """The lines below the first that are not blank, each with its number."""
    return islice(numbered_lines(text), 1, None)


def _mistake(number: int, line: str, names: Sequence[str], delimiter: str) -> str | None:
    """What keeps a line from being a row of as many numbers as there are names."""
    try:
        cells = next(csv.reader([line], delimiter=delimiter))
    except csv.Error as error:
        return f"line {number}: expected a row of numbers, got something else: {error}"
    if len(cells) != len(names):
        return f"line {number}: expected {len(names)} columns in every row, one for each name, got {len(cells)}"
    for name, cell in zip(names, cells, strict=True):
        try:
            float(cell)
        except ValueError:
            hint = "; decimals stand behind a point" if "," in cell else ""
            return f"line {number}: expected a number in the column {name}, got {shown(cell)}{hint}"
    return None


def _place(text: str, name: str, row: int) -> str:
    """Where an entry stands."""
    number, _ = next(islice(_rows(text), row, None))
    return f"line {number}, column {name}"


def _check_names(names: Sequence[str]) -> None:
    known = (*INDEX, *QUANTITIES)
    for name in names:
        if name not in known or names.count(name) > 1:
            raise ValueError(f"line 1: expected columns among {', '.join(known)}, each once, got {shown(name)}")
    for name in ("step", "device"):
        if name not in names:
            raise ValueError(f"line 1: expected a column {name}, got {', '.join(names)}")


def _lengths(episodes: NDArray[np.int64], steps: NDArray[np.int64], devices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Steps of each episode (E,), out of sorted rows: every device once in a step, and no step left out."""
    begins = np.ones(len(steps), dtype=np.bool_)
    begins[1:] = (np.diff(episodes) != 0) | (np.diff(steps) != 0)
    first = np.flatnonzero(begins)
    rows, last = np.diff(first, append=len(steps)), devices.max()
    wrong = (devices != np.arange(len(steps)) - np.repeat(first, rows)) | (np.repeat(rows, rows) != last + 1)
    if wrong.any():
        place = f"step {steps[wrong][0]} of episode {episodes[wrong][0]}"
        raise ValueError(f"expected each device from 0 to {last} once in every step, which does not hold in {place}")
    new = np.diff(episodes[first]) != 0
    gap = np.flatnonzero((np.diff(steps[first]) != 1) & ~new)
    if gap.size:
        before, after = steps[first][gap[0]], steps[first][gap[0] + 1]
        raise ValueError(f"expected successive steps in an episode, got step {after} after {before}")
    return np.diff(np.flatnonzero(np.append(True, new)), append=len(first))


# NPZ.


def _read_npz(content: bytes) -> tuple[Table, NDArray[np.int64]]:
    """Quantities (T, U) and the episodes' lengths out of arrays (steps, U) or (episodes, steps, U)."""
    with _only_npz():
        archive = zipfile.ZipFile(io.BytesIO(content))
        members = [(member.filename.removesuffix(".npy"), member) for member in archive.infolist()]
    names = [name for name, _ in members]
    unknown = [name for name in names if name not in QUANTITIES or names.count(name) > 1]
    if unknown:
        raise ValueError(f"expected arrays among {', '.join(QUANTITIES)}, each once, got {shown(unknown[0])}")
    with _only_npz():
        headers = {name: _header(archive, member) for name, member in members}
    shape = _shape(headers)
    with _only_npz():
        arrays = {name: _array(archive, member) for name, member in members}
    for name, values in arrays.items():
        check_range(name, values, partial(_cell, shape, name))
    episodes, steps = shape[:-1] if len(shape) == 3 else (1, shape[0])
    return {name: values.reshape(-1, shape[-1]) for name, values in arrays.items()}, np.full(episodes, steps)


@contextmanager
def _only_npz() -> Iterator[None]:
    """Turn what NumPy, zip and zlib raise on a damaged file, which is of many kinds, into one sentence."""
    try:
        yield
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"expected a whole NPZ of plain arrays, got something else: {reason}") from error


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Header:
    """What an array says of itself before its numbers."""
    with archive.open(member) as file:
        start = io.BytesIO(file.read(_MOST_HEADER_BYTES))
    version = npy.read_magic(start)
    shape, _, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(start)
    if dtype.hasobject:
        raise ValueError("pickled objects, and files are read with allow_pickle=False")
    return shape, dtype


def _shape(headers: Mapping[str, Header]) -> tuple[int, ...]:
    """The shape of all arrays, checked before a number is read."""
    for name, (_, dtype) in headers.items():
        if dtype.kind not in "fiu":
            raise ValueError(f"expected real numbers in {name}, got {dtype}")
    shapes = {name: shape for name, (shape, _) in headers.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"expected arrays of one shape, got {shapes}")
    shape = next(iter(shapes.values()), None)
    if shape is None:
        raise ValueError("expected gain or gain_db, got nothing")
    if len(shape) not in (2, 3):
        raise ValueError(f"expected arrays (steps, devices) or (episodes, steps, devices), got shape {shape}")
    if min(shape) < 1:
        raise ValueError(f"expected gains of at least one step and one device, got shape {shape}")
    if len(shapes) * math.prod(shape) > MOST_NUMBERS:
        got = f"{len(shapes)} arrays of shape {shape}"
        raise ValueError(f"expected at most {MOST_NUMBERS:,} numbers, got {got}: write several recordings")
    return shape


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Float:
    with archive.open(member) as file:
        return npy.read_array(file, allow_pickle=False).astype(np.float64, copy=False)


def _cell(shape: tuple[int, ...], name: str, position: int) -> str:
    """Where a number stands within an array."""
    *episode, step, device = (int(at) for at in np.unravel_index(position, shape))
    return f"row {step}, column {device}{f', episode {episode[0]}' if episode else ''} of the array {name}"
