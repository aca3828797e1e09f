"""The JSON beside the weights of a policy, read from whoever sent it and written so that it can be read again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

Card = dict[str, Any]

# A card that training writes has three kilobytes and three levels.
MOST_BYTES = 2**20
MOST_DEPTH = 32
MOST_DIGITS = 300  # of a whole number: one of more may not fit a float


def parse_card(path: Path) -> Any:
    """The value that a file of JSON holds, ``None`` where it holds none.

    NaN and infinity, which JSON has no words for, are read as ``None``: an older run may have written them.

    Raises:
        ValueError: a file that cannot be read or is too large, or a value that ``card_text`` would not write.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"expected the JSON of a policy in {path}, got a file that cannot be read: {error}") from None
    if len(content) > MOST_BYTES:
        raise ValueError(f"expected the JSON of a policy in {path}, at most {MOST_BYTES} bytes, got more")
    try:
        card = json.loads(content, parse_float=_finite, parse_int=_whole, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    _check(card, path)
    return card


def card_text(card: Card, path: Path) -> str:
    """JSON of a card; a number that is not finite is written as ``null``.

    Raises:
        ValueError: a value that ``parse_card`` would not read from ``path``.
    """
    _check(card, path)
    text = json.dumps(_without_nan(card), indent=2, allow_nan=False) + "\n"
    if len(text) > MOST_BYTES:
        raise ValueError(f"expected a card of at most {MOST_BYTES} bytes for {path}, got {len(text)}")
    return text


def _check(value: Any, path: Path, depth: int = 0) -> None:
    """Refuse nesting that readers of JSON stumble over, and text that no file can hold.

    Raises:
        ValueError: one of them.
    """
    if depth > MOST_DEPTH:
        raise ValueError(f"expected a card of at most {MOST_DEPTH} levels in {path}, got a deeper one")
    if isinstance(value, str) and any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"expected text without NUL and lone surrogates in {path}, got {value[:40]!a}")
    for item in _items(value):
        _check(item, path, depth + 1)


def _items(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return list(value) if isinstance(value, (list, tuple)) else []


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _whole(text: str) -> int | None:
    return int(text) if len(text) <= MOST_DIGITS else None
