"""How frozen settings are made: from mappings that may name their fields wrongly, and field by field."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from wdmoe_env.checks import nearest, shown

ConfigT = TypeVar("ConfigT")

FORMER_NAMES = {"bits_per_element": "link_bits"}
"""Fields of configurations written by former versions, and what they are called now."""


def from_mapping(kind: type[ConfigT], values: Mapping[Any, Any], prefix: str = "") -> ConfigT:
    """Build a config dataclass from a mapping, refusing unknown keys.

    Args:
        kind: the dataclass.
        values: field names to values.
        prefix: put before a key in messages, for nested configs.

    Raises:
        TypeError: a key is no string, or not a field; the message names the nearest ones.
    """
    known = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    values = _with_present_names(known, values, prefix)
    for key in values:
        if not isinstance(key, str):
            name = prefix.rstrip(".") or "config"
            raise TypeError(f"{name} must have names of fields as its keys, got {shown(key)}")
        if key not in known:
            # In Python's own words: TorchRL looks for them, and then leaves out the keyword that it tried.
            raise TypeError(
                f"unexpected keyword argument {prefix + key!r}; the nearest known are {nearest(key, known)}"
            )
    return kind(**values)


def _with_present_names(known: list[str], values: Mapping[Any, Any], prefix: str) -> Mapping[Any, Any]:
    """The values with fields of former versions under the names that they have now.

    Raises:
        TypeError: a field under both names.
    """
    for former, name in FORMER_NAMES.items():
        if former in values and name in known:
            if name in values:
                raise TypeError(f"expected {prefix + name!r} or its former name {former!r}, got both")
            values = {name if key == former else key: value for key, value in values.items()}
    return values


def put(config: Any, name: str, value: Any) -> None:
    """Set a field of a frozen config while it is being made."""
    object.__setattr__(config, name, value)
