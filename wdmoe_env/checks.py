"""Checks of settings and of arrays: each says in one sentence what was expected and what came.

They return what they checked as Python's own number, string or tuple, or as a float64 array. So NumPy's scalars, lists
and arrays of any real kind are taken wherever Python's own are, and a setting stays plain.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOAT64 = np.dtype(np.float64)
REAL_KINDS = "biuf"
LONGEST_SHOWN = 200

_PLAIN: tuple[tuple[type[np.generic], type], ...] = (
    (np.bool_, bool),
    (np.integer, int),
    (np.floating, float),
    (np.str_, str),
)


def plain(value: Any) -> Any:
    """NumPy's scalar, or its array without axes, as Python's own number, bool or string; anything else as it is."""
    if type(value) is np.ndarray and value.ndim == 0 and value.dtype != object:
        value = value[()]
    for kind, own in _PLAIN:
        if isinstance(value, kind):
            return own(value)
    return value


def plain_path(value: Any) -> Any:
    """As ``plain``; a ``Path`` as its string too."""
    return os.fspath(value) if isinstance(value, os.PathLike) else plain(value)


def shown(value: object) -> str:
    """A value as a message shows it: on one line, and cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python writes no whole number of more than 4300 digits
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names that are most like one, at most three, as a message lists them; all where none is like it."""
    names = list(known)
    return ", ".join(difflib.get_close_matches(name, names) or names)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message that has listed the known names: the one that is most like a name; nothing where none is."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"; did you mean {near[0]!r}?" if near else ""


def items_of(value: object) -> tuple[Any, ...] | None:
    """The items of a tuple, a list, a range or an array, as ``plain`` gives them; ``None`` for anything else."""
    if hasattr(value, "__array__") and not isinstance(value, (np.generic, np.ma.MaskedArray)):
        array = np.asarray(value)
        return tuple(map(plain, array)) if array.ndim else None
    return tuple(map(plain, value)) if isinstance(value, (tuple, list, range)) else None


def check_choice(name: str, value: object, choices: Iterable[str]) -> str:
    """Refuse a value that is not among the choices; the message names the nearest one.

    Raises:
        ValueError: it is none of them.
    """
    choices, value = list(choices), plain(value)
    if not isinstance(value, str) or value not in choices:
        hint = did_you_mean(value, choices) if isinstance(value, str) else ""
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {shown(value)}{hint}")
    return choices[choices.index(value)]


def is_tuple_of(value: object, kind: type) -> bool:
    """Whether a value is a tuple whose items are all of one type."""
    return isinstance(value, tuple) and all(isinstance(item, kind) for item in value)


def check_numbers(name: str, values: object, count: int, at_least: float, at_most: float) -> tuple[float, ...]:
    """Refuse all but a tuple, a list or an array of ``count`` numbers within the bounds.

    Args:
        name: of the setting, for the message.
        values: what came.
        count: of numbers.
        at_least: inclusive lower bound.
        at_most: inclusive upper bound.

    Returns:
        The numbers as Python's own.

    Raises:
        ValueError: it is anything else.
    """
    items = items_of(values)
    if items is None or len(items) != count:
        raise ValueError(f"{name} must be a tuple of {count} numbers, got {shown(values)}")
    return tuple(check_number(name, item, at_least=at_least, at_most=at_most) for item in items)


def check_integer(name: str, value: object, at_least: int, at_most: float = math.inf) -> int:
    """Refuse all but a whole number within the bounds.

    Args:
        name: of the setting, for the message.
        value: what came.
        at_least: inclusive lower bound.
        at_most: inclusive upper bound.

    Returns:
        The number as Python's own.

    Raises:
        ValueError: it is anything else, a ``bool`` included.
    """
    number = plain(value)
    whole = isinstance(number, int) and not isinstance(number, bool)
    if not whole or not at_least <= number <= at_most:
        bound = f"at most {at_most}" if whole and number > at_most else f"at least {at_least}"
        raise ValueError(f"{name} must be a whole number of {bound}, got {shown(value)}")
    return int(number)


def check_number(
    name: str, value: object, above: float = -math.inf, at_least: float = -math.inf, at_most: float = math.inf
) -> float:
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
    number = plain(value)
    if not _is_finite(number) or not (number > above and at_least <= number <= at_most):
        bounds = [
            f"{word} {bound:g}"
            for word, bound in (("above", above), ("at least", at_least), ("at most", at_most))
            if math.isfinite(bound)
        ]
        raise ValueError(f"{name} must be a finite number {' and '.join(bounds)}".rstrip() + f", got {shown(value)}")
    return number


def _is_finite(number: object) -> bool:
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return False
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond every float
        return False


def check_keys(name: str, values: Iterable[Any], known: Iterable[str]) -> None:
    """Refuse keys that are not known.

    Raises:
        ValueError: there is one; the known ones are listed.
    """
    unknown = sorted(map(shown, set(values) - set(known)))
    if unknown:
        raise ValueError(f"{name} may hold {', '.join(known)}, got {', '.join(unknown)}")


def check_options(options: object, known: Iterable[str]) -> Mapping[str, Any]:
    """The options of a reset; none where ``None`` came.

    Raises:
        TypeError: they are no mapping.
        ValueError: one is not known; the known ones are listed.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise TypeError(f"options must be a dict, got {shown(options)}")
    check_keys("options", options, known)
    return options


def check_seed(seed: object) -> int | None:
    """The seed of a reset; ``None`` goes on with the generator at hand.

    Raises:
        ValueError: it is neither ``None`` nor a whole number of at least 0.
    """
    return None if seed is None else check_integer("seed", seed, at_least=0)


def real_array(name: str, value: Any) -> NDArray[np.float64]:
    """An array, or nested lists, of real numbers of any kind as float64; a float64 array is itself.

    Args:
        name: for the message.
        value: what came, (...).

    Returns:
        (...) float64.

    Raises:
        TypeError: it is masked, or holds no real numbers, such as complex ones or objects.
        ValueError: its rows differ in length.
    """
    array = value if type(value) is np.ndarray else plain_array(name, value)
    if array.dtype is FLOAT64:
        return array
    if array.dtype.kind not in REAL_KINDS:
        kind = f"an array of dtype {array.dtype}" if array.ndim else f"a value of type {type(value).__name__}"
        raise TypeError(f"{name} must hold real numbers, got {kind}")
    with np.errstate(over="ignore"):  # of a wider float
        return array.astype(np.float64, copy=False)


def plain_array(name: str, value: Any) -> NDArray[Any]:
    """An array, or nested lists, as an array (...) of whatever kind it is.

    Raises:
        TypeError: it is masked, and what is masked would be read as if it were not.
        ValueError: NumPy makes no array of it, such as of rows that differ in length.
    """
    parts = value if isinstance(value, (list, tuple)) else (value,)
    if any(isinstance(part, np.ma.MaskedArray) for part in parts):
        raise TypeError(f"{name} must be a plain array, got a masked one: fill in or leave out what is masked")
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be an array, got what NumPy makes none of: {error}") from None
