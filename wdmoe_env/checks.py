"""Checks of settings: each says in one sentence what was expected and what came."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Refuse a value that is none of the choices; the nearest one is named.

    Raises:
        ValueError: it is none of them.
    """
    choices = list(choices)
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}{hint}")


def is_tuple_of(value: object, kind: type) -> bool:
    """Whether a value is a tuple whose items are all of one type."""
    return isinstance(value, tuple) and all(isinstance(item, kind) for item in value)


def check_numbers(name: str, values: object, count: int) -> None:
    """Refuse all but a tuple of ``count`` positive numbers.

    Raises:
        ValueError: it is anything else.
    """
    if not isinstance(values, tuple) or len(values) != count:
        raise ValueError(f"{name} must be a tuple of {count} numbers, got {values!r}")
    for value in values:
        check_number(name, value, above=0.0)


def check_integer(name: str, value: object, at_least: int) -> None:
    """Refuse all but a whole number of at least ``at_least``.

    Raises:
        ValueError: it is anything else, a ``bool`` included.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name} must be a whole number of at least {at_least}, got {value!r}")


def check_number(
    name: str, value: object, above: float = -math.inf, at_least: float = -math.inf, at_most: float = math.inf
) -> None:
    """Refuse all but a finite number within the bounds.

    Args:
        name: of the setting, for the message.
        value: what came.
        above: exclusive lower bound.
        at_least: inclusive lower bound.
        at_most: inclusive upper bound.

    Raises:
        ValueError: it is no number, not finite, or out of bounds.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not (value > above and at_least <= value <= at_most):  # type: ignore[operator]
        bounds = [
            f"{word} {bound:g}"
            for word, bound in (("above", above), ("at least", at_least), ("at most", at_most))
            if math.isfinite(bound)
        ]
        raise ValueError(f"{name} must be a finite number {' and '.join(bounds)}".rstrip() + f", got {value!r}")


def check_keys(name: str, values: Iterable[str], known: Iterable[str]) -> None:
    """Refuse keys that are not known.

    Raises:
        ValueError: there is one; the known ones are listed.
    """
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"{name} may hold {', '.join(known)}, got {', '.join(map(repr, unknown))}")
