"""Recordings of gains as files: NPZ, an array per quantity, or CSV, a row per step and device. Reading runs no code."""

from __future__ import annotations

import io
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.physics.gains import Gains
from wdmoe_env.physics.latency import Float
from wdmoe_env.physics.recording import Recording
from wdmoe_env.physics.recording_csv import Table, read_csv, write_csv
from wdmoe_env.writing import write_whole

QUANTITIES = ("gain", "gain_db", "uplink_gain", "uplink_gain_db", "distance_m")
"""Arrays of an NPZ and columns of a CSV; gains are linear or in dB, and that of the downlink must be there."""

_SUFFIXES = (".csv", ".npz")


def read_recording(path: str | os.PathLike[str]) -> Recording:
    """Read a recording, once in a process while the file stays the same.

    Args:
        path: a ``.csv`` or ``.npz`` file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no whole recording; the message says what was expected and what came.
    """
    file = _checked(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"expected a file of recorded gains, found no file {str(path)!r}")
    about = file.stat()
    try:
        return _read(file.resolve(), (about.st_mtime_ns, about.st_ctime_ns, about.st_ino, about.st_size))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


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
        write_csv(content, episodes_first)
    else:
        np.savez_compressed(content, allow_pickle=False, **episodes_first)
    write_whole(file, content.getvalue())


def _checked(path: str | os.PathLike[str]) -> Path:
    if not str(path).endswith(_SUFFIXES):
        raise ValueError(f"expected a file of gains that ends in {' or '.join(_SUFFIXES)}, got {str(path)!r}")
    return Path(path)


@lru_cache(maxsize=4)
def _read(file: Path, state: tuple[int, ...]) -> Recording:
    """Read a file; its times, number and size are part of the cache's key.

    The time of modification alone can be set back, which the time of the last change of any kind shows.
    """
    table, lengths = read_csv(file, QUANTITIES) if file.suffix == ".csv" else _read_npz(file)
    gain = _gain(table, "gain")
    if gain is None:
        raise ValueError(f"expected gain or gain_db, got {', '.join(table) or 'nothing'}")
    uplink, distance = _gain(table, "uplink_gain"), table.get("distance_m")
    return Recording(
        gain=gain,
        uplink_gain=gain if uplink is None else uplink,
        distance_m=np.full(gain.shape, np.nan) if distance is None else distance,
        lengths=lengths,
    )


def _gain(table: Table, name: str) -> Float | None:
    """Linear gain (T, U) out of a table that holds it, or the same in dB, or neither."""
    if name in table and f"{name}_db" in table:
        raise ValueError(f"expected {name} or {name}_db, got both")
    if f"{name}_db" in table:
        return 10.0 ** (table[f"{name}_db"] / 10.0)
    return table.get(name)


def _read_npz(file: Path) -> tuple[Table, NDArray[np.int64]]:
    """Quantities (T, U) and the episodes' lengths out of arrays (steps, U) or (episodes, steps, U)."""
    arrays = _arrays(file)
    unknown = [name for name in arrays if name not in QUANTITIES]
    if unknown:
        raise ValueError(f"expected arrays among {', '.join(QUANTITIES)}, got {unknown[0]!r}")
    shapes = {name: values.shape for name, values in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"expected arrays of one shape, got {shapes}")
    shape = next(iter(shapes.values()), (0, 0))
    if len(shape) not in (2, 3):
        raise ValueError(f"expected arrays (steps, devices) or (episodes, steps, devices), got shape {shape}")
    episodes, steps = shape[:-1] if len(shape) == 3 else (1, shape[0])
    return {name: values.reshape(-1, shape[-1]) for name, values in arrays.items()}, np.full(episodes, steps)


def _arrays(file: Path) -> dict[str, Float]:
    """The arrays of an NPZ as float64."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # NumPy, zip and zlib raise many kinds on a damaged file
        reason = str(error).partition("\n")[0]
        raise ValueError(f"expected a whole NPZ of plain arrays, got something else: {reason}") from error
    for name, values in arrays.items():
        if values.dtype.kind not in "fiu":
            raise ValueError(f"expected real numbers in {name}, got {values.dtype}")
    return {name: values.astype(np.float64) for name, values in arrays.items()}
