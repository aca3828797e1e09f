"""Wall time of alternatives, measured in turn so that a slow moment of the machine strikes all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

CALLS_OF_A_TURN = 5
SECONDS_OF_A_TURN = 0.2

Timed = Callable[[], float]
"""Does something and returns the seconds that count."""


def clocked(function: Callable[[], Any]) -> Timed:
    """The wall time of a call."""

    def timed() -> float:
        began = time.perf_counter()
        function()
        return time.perf_counter() - began

    return timed


@contextmanager
def on_threads(threads: int) -> Iterator[None]:
    """Torch on a number of threads, and back."""
    setting = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(setting)


def in_turn(alternatives: Mapping[str, Timed], seconds: float) -> dict[str, float]:
    """Lower quartile of the seconds of each alternative.

    Args:
        alternatives: in turn, over and over, after one call of each that does not count.
        seconds: time to spend on all of them.
    """
    taken: dict[str, list[float]] = {name: [] for name in alternatives}
    for timed in alternatives.values():
        timed()
    ends = time.perf_counter() + seconds
    while not all(taken.values()) or time.perf_counter() < ends:
        for name, timed in alternatives.items():
            taken[name] += _turn(timed)
    return {name: float(np.quantile(values, 0.25)) for name, values in taken.items()}


def _turn(timed: Timed) -> list[float]:
    """Seconds of a few calls in a row.

    The first of several does not count: it finds the caches full of what another alternative left there, as no user's
    does. A call that takes long is alone and does, since that matters little to it.
    """
    calls = [timed()]
    while len(calls) < CALLS_OF_A_TURN and sum(calls) < SECONDS_OF_A_TURN:
        calls.append(timed())
    return calls[1:] or calls


def ratio_in_turn(one: Timed, other: Timed, seconds: float) -> float:
    """Median over rounds of the seconds of one over those of another, which follow each other closely.

    Args:
        one: called before the other in every second round, and behind it in the rest.
        other: what it is compared with.
        seconds: of both, to spend in all, after one call of each that does not count; at least one round is made.
    """
    one(), other()
    ratios: list[float] = []
    spent = 0.0
    while not ratios or spent < seconds:
        second = other() if len(ratios) % 2 else 0.0
        first = one()
        second = second or other()
        ratios.append(first / second)
        spent += first + second
    return float(np.median(ratios))
