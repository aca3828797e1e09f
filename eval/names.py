"""Short names of policies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

FILE_SUFFIXES = (".safetensors", ".json")


def short_names(policies: Sequence[str]) -> dict[str, str]:
    """A name for each policy: rules keep theirs, files go by the last parts of their path that tell them apart.

    A file named ``policy``, as training names all of them, goes by its folder.
    """
    parts = {policy: _parts(policy) for policy in policies}
    names = {}
    for policy, own in parts.items():
        others = [theirs for other, theirs in parts.items() if other != policy]
        lengths = range(1, len(own) + 1)
        length = next((n for n in lengths if all(own[-n:] != theirs[-n:] for theirs in others)), len(own))
        names[policy] = "/".join(own[-length:])
    return names


def is_file(policy: str) -> bool:
    """Whether a policy is a file and not a rule, by its name alone."""
    path = PurePath(policy)
    return path.suffix in FILE_SUFFIXES or len(path.parts) > 1


def _parts(policy: str) -> tuple[str, ...]:
    if not is_file(policy):
        return (policy,)
    path = PurePath(policy)
    parts = path.with_suffix("").parts if path.suffix in FILE_SUFFIXES else path.parts
    return parts[:-1] if parts[-1] == "policy" and len(parts) > 1 else parts


def point_label(setting: dict[str, Any], swept: bool) -> str:
    """The name of a setting's point in a picture; of a family whose line the legend names, the setting alone."""
    return setting["setting"].removeprefix("quality ") or setting["name"] if swept else setting["name"]
