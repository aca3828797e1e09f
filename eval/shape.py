"""What the JSON of a results folder holds: what reads it later is told at once where it differs."""

from __future__ import annotations

from typing import Any, Final

from eval.drops import GROUPINGS, OUTSIDE
from eval.tables import WHY_OUTSIDE
from wdmoe_env.checks import shown

EACH: Final = "each"
"""In place of keys: every key has such a value."""
POSITIVE: Final = "above 0"
"""In place of ``float``, for what is drawn by its logarithm."""

# What is larger overflows where it is drawn.
_MOST = 1e100

STATISTIC = {"mean": float, "low": float, "high": float}
LATENCY = dict.fromkeys(STATISTIC, POSITIVE)
GRID = [[float, ...], ...]

REPLAYED = {"config": {"policies": [str, ...], "environment": {}}, "sha256": {EACH: str}}
"""What a replay needs."""

_MADE = {"sha256": {EACH: str}, "made_by": {"command": str, "machine": str, "versions": {EACH: str}}}

_SETTING = {
    "name": str,
    "family": str,
    "setting": str,
    "learned": bool,
    "policies": [str, ...],
    "seeds": [int],
    "latency_ms": LATENCY,
    "accuracy_points_to_vanilla": STATISTIC,
}
_MATCHED = {
    "reference": str,
    "family": str,
    "added_nll": float,
    "reference_latency_ms": float,
    "fastest": str,
    "fastest_added_nll": float,
    "fastest_latency_ms": float,
    "outside": (*WHY_OUTSIDE, None),
    "latency_ratio": (STATISTIC, None),
    "mixture": ({"first": str, "second": str, "share_of_second": float}, None),
}
_BREAKDOWN = {
    "policy": str,
    "blocks": {"latency_ratio_to_vanilla": [float, ...], "drop_share": [float, ...]},
    "domains": {EACH: {"drop_share": float}},
    "pairs": dict.fromkeys(GROUPINGS, GRID),
    "dropped": dict.fromkeys(GROUPINGS, GRID),
    OUTSIDE: GRID,
}
_CURVE = {"name": str, "family": str, "learned": bool, "share": [float], "low": [float], "high": [float]}
_SHOWN_OF_RUN = {"seed": int, "environment": {"model": str, "num_tokens": int, "split": str}}
_GROUPS = {EACH: {"accuracy": STATISTIC}}

SHOWN: dict[str, dict[str, Any]] = {
    "results": _MADE
    | {
        "config": {**_SHOWN_OF_RUN, "episodes": int},
        "policies": [
            {
                "policy": str,
                "latency_ms": LATENCY,
                "added_nll": STATISTIC,
                "added_nll_by_domain": {EACH: STATISTIC},
                "latency_ratio_by_domain": {EACH: STATISTIC},
            },
            ...,
        ],
        "settings": [{**_SETTING, "added_nll": STATISTIC, "decision_ms": float, "iqm": {EACH: STATISTIC}}, ...],
        "matched_quality": [_MATCHED],
        "profiles": [{"score": str, "levels": [float, ...], "curves": [_CURVE]}],
        "breakdowns": [_BREAKDOWN, ...],
    },
    "suite": _MADE
    | {
        "config": _SHOWN_OF_RUN,
        "items": int,
        "policies": [
            {
                "policy": str,
                "latency_ms": LATENCY,
                "accuracy_points_to_vanilla": STATISTIC,
                "by_format": _GROUPS,
                "by_domain": _GROUPS,
            },
            ...,
        ],
        "settings": [{**_SETTING, "accuracy": STATISTIC, "latency_ratio_to_vanilla": STATISTIC}, ...],
    },
}
"""For each kind of evaluation, by the name of its JSON, what the page of ``--report`` shows."""


_MAYBE = dict.fromkeys(STATISTIC, (float, None))
_OF_POLICY = {"policy": str, "e2e_ms": _MAYBE, "added_nll": _MAYBE}
_AT_LOAD = {
    "load": POSITIVE,
    "policies": [_OF_POLICY, ...],
    "matched_quality": [{"reference": str, "family": str, "figure": str, "ratio": (_MAYBE, None)}],
}
TRAINING_SEEDS = [
    {"setting": str, "seeds": [int], "e2e_ms": _MAYBE, "added_nll": _MAYBE, "ratios": {EACH: (_MAYBE, None)}}
]
"""Of the training seeds at a load, which results lack that are older than them."""
_CELL = {"requests": {EACH: [(float, None)]}, "end_ms": POSITIVE, "busy": GRID}
SERVING = _MADE | {
    "config": {"policies": [str, ...], "environment": {}, "seed": int, "episodes": int},
    "loads": [_AT_LOAD, ...],
    "timelines": {EACH: _CELL},
}
"""What a replay and the page need of results of serving."""


def check_shape(value: Any, shape: Any, place: str) -> None:
    """Refuse a value of JSON that is not of a shape.

    Args:
        value: what came.
        shape: a type; ``POSITIVE``; a list of one shape, with ``...`` behind it where there must be an element; a dict
            of the keys that there must be, or of ``EACH``; or a tuple of alternatives, of which the last is ``None``.
        place: where the value stands, for the message.

    Raises:
        ValueError: it is of another shape; the message names the place.
    """
    if isinstance(shape, tuple):
        _check_alternatives(value, shape, place)
    elif isinstance(shape, dict):
        _expect(isinstance(value, dict), "an object", value, place)
        for key in value if EACH in shape else shape:
            if key not in value:
                raise ValueError(f"expected {key} in {place}, got none")
            check_shape(value[key], shape.get(key, shape.get(EACH)), f"{place}, {key}")
    elif isinstance(shape, list):
        expected = "a list" if len(shape) == 1 else "a list that is not empty"
        _expect(isinstance(value, list) and len(value) >= len(shape) - 1, expected, value, place)
        for at, one in enumerate(value):
            check_shape(one, shape[0], f"{place}[{at}]")
    elif shape in (float, POSITIVE):
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _MOST
        above = "" if shape is float else " above 0"
        _expect(number and (not above or value > 0.0), f"a finite number{above}", value, place)
    else:
        _expect(type(value) is shape, f"a value of type {shape.__name__}", value, place)


def _check_alternatives(value: Any, shape: tuple[Any, ...], place: str) -> None:
    words = [one for one in shape if isinstance(one, str)]
    if words:
        _expect(value is None or value in words, f"one of {', '.join(words)}, or null", value, place)
    elif value is not None:
        check_shape(value, shape[0], place)


def _expect(fine: bool, expected: str, value: Any, place: str) -> None:
    if not fine:
        leaf = value is None or isinstance(value, (str, int, float))
        raise ValueError(f"expected {expected} in {place}, got {shown(value) if leaf else type(value).__name__}")
