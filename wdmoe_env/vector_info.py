"""Info of batched environments in Gymnasium's protocol: arrays over all N, each with a mask ``_key`` of who has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Info = dict[str, Any]


def spread(values: Mapping[str, Any], rows: NDArray[np.int64], num_envs: int) -> Info:
    """Info of the environments ``rows``, entries (n, ...), as arrays (N, ...) with masks; mappings may nest.

    The rows ascend. Where they are all N, the arrays are those that came in.
    """
    mask = np.zeros(num_envs, dtype=bool)
    mask[rows] = True
    return _spread(values, rows, mask)


def merge(info: Info, other: Info) -> None:
    """Add the masked rows of ``other`` to ``info``, in place."""
    for name in [key for key in other if f"_{key}" in other]:
        value, mask = other[name], other[f"_{name}"]
        if name not in info:
            info[name], info[f"_{name}"] = value, mask
            continue
        if isinstance(value, dict):
            merge(info[name], value)
        else:
            info[name][mask] = value[mask]
        info[f"_{name}"] = info[f"_{name}"] | mask  # not in place: many names share a mask


def split_rows(info: Info, ended: NDArray[np.bool_]) -> tuple[Info, Info]:
    """Info of the ended environments (N,) bool and of the others, by their masks; what nobody has is left out."""
    final: Info = {}
    going: Info = {}
    for name in [key for key in info if f"_{key}" in info]:
        value, mask = info[name], info[f"_{name}"]
        parts = split_rows(value, ended) if isinstance(value, dict) else (value, value)
        for target, part, chosen in zip((final, going), parts, (mask & ended, mask & ~ended), strict=True):
            if chosen.any():
                target[name], target[f"_{name}"] = part, chosen
    return final, going


def _spread(values: Mapping[str, Any], rows: NDArray[np.int64], mask: NDArray[np.bool_]) -> Info:
    info: Info = {}
    for name, value in values.items():
        if isinstance(value, dict):
            info[name] = _spread(value, rows, mask)
        elif len(rows) == len(mask):
            info[name] = value
        else:
            info[name] = np.zeros((len(mask), *value.shape[1:]), dtype=value.dtype)
            info[name][rows] = value
        info[f"_{name}"] = mask
    return info


def row_of(info: Mapping[str, Any], n: int) -> Info:
    """Info of environment n, without masks."""
    return {
        name: row_of(value, n) if isinstance(value, dict) else value[n]
        for name, value in info.items()
        if f"_{name}" in info and info[f"_{name}"][n]
    }
