"""Recorded gains as CSV: ``step,device,gain_db`` and, where there are, ``episode`` and further quantities."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.physics.latency import Float

Table = Mapping[str, Float]
"""Quantities by name, all of one shape."""

INDEX = ("episode", "step", "device")
"""Columns of whole numbers; ``episode`` may be missing where there is one."""


def read_csv(file: Path, quantities: Sequence[str]) -> tuple[Table, NDArray[np.int64]]:
    """Quantities (T, U) of steps in order, and the steps of each episode (E,).

    Args:
        file: its first line names the columns; the rows below may stand in any order.
        quantities: names that a column may have beside those of ``INDEX``.

    Raises:
        ValueError: no such table, or one that lacks a row.
    """
    columns = _columns(file, quantities)
    columns.setdefault("episode", np.zeros_like(columns["step"]))
    index = np.stack([columns[name] for name in INDEX])
    if not np.isfinite(index).all() or (index % 1).any():
        raise ValueError(f"expected whole numbers in the columns {', '.join(INDEX)}")
    order = np.lexsort(index[::-1])
    episodes, steps, devices = index[:, order].astype(np.int64)
    lengths = _lengths(episodes, steps, devices)
    shape = (lengths.sum(), -1)
    return {name: columns[name][order].reshape(shape) for name in columns if name not in INDEX}, lengths


def write_csv(file: IO[bytes], table: Table) -> None:
    """Write quantities (episodes, steps, U), with as many digits as give the same numbers back."""
    index = np.indices(next(iter(table.values())).shape)
    columns = [values.ravel() for values in (*index, *table.values())]
    formats = ["%d"] * len(INDEX) + ["%.17g"] * len(table)
    header = ",".join((*INDEX, *table))
    np.savetxt(file, np.stack(columns, axis=-1), fmt=formats, delimiter=",", header=header, comments="")


def _columns(file: Path, quantities: Sequence[str]) -> dict[str, Float]:
    """The columns (rows,) by name."""
    _check_end(file)
    with file.open(encoding="utf-8-sig") as lines:
        names = [name.strip() for name in lines.readline().split(",")]
        _check_names(names, quantities)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file without rows, which is refused below
            columns = np.loadtxt(lines, delimiter=",", comments=None, ndmin=2, unpack=True)
    if not columns.size:
        raise ValueError("expected rows below the names of the columns, got none")
    if len(columns) != len(names):
        raise ValueError(f"expected {len(names)} columns in every row, one for each name, got {len(columns)}")
    return dict(zip(names, columns, strict=True))


def _check_end(file: Path) -> None:
    """Refuse a last line without an end: the number that it breaks off in could look like a whole one."""
    with file.open("rb") as lines:
        lines.seek(0, os.SEEK_END)
        lines.seek(max(lines.tell() - 1, 0))
        if lines.read() not in (b"\n", b"\r"):
            raise ValueError("expected the last line to end, as that of a whole file does: truncated?")


def _check_names(names: Sequence[str], quantities: Sequence[str]) -> None:
    known = (*INDEX, *quantities)
    for name in names:
        if name not in known or names.count(name) > 1:
            raise ValueError(f"expected columns among {', '.join(known)}, each once, got {name!r}")
    for name in ("step", "device"):
        if name not in names:
            raise ValueError(f"expected a column {name}, got {', '.join(names)}")


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
