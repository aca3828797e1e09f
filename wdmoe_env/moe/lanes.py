"""Lanes: threads on which passes of one model run side by side.

A thread of its own for each half of a large batch brings more than two threads for each operator of the whole: the many
small operators of a pass wait for each other as little as the large ones do. Torch lets go of Python's lock inside an
operator, so that two lanes are hardly in each other's way.

A paused pass can be resumed only by the thread that started it. So a lane is one thread: the first is the caller's own,
which would only wait otherwise, and the others live as long as the process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

MOST_LANES = 2  # more would wait for Python's lock, and have not been measured

Result = TypeVar("Result")

_lanes: list[ThreadPoolExecutor] = []


def _make_lanes() -> None:
    _lanes[:] = [ThreadPoolExecutor(1, f"wdmoe-lane-{number}") for number in range(1, MOST_LANES)]


_make_lanes()  # their threads begin with their first task
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_make_lanes)  # a child has none of its parent's threads


def side_by_side(tasks: Sequence[Callable[[], Result]], lanes: int, threads: int) -> list[Result]:
    """Results of tasks, in their order; all have ended when it returns or raises.

    Args:
        tasks: task i runs on lane i modulo ``lanes``, always the same thread; lane 0 is the caller's own.
        lanes: at most ``MOST_LANES``.
        threads: torch's threads within a task.

    Raises:
        Exception: what a task raised; the caller's own lane goes first if there are many.
    """
    setting = torch.get_num_threads()
    numbered = list(enumerate(tasks))
    elsewhere = {
        number: _lanes[number % lanes - 1].submit(_run, task, threads) for number, task in numbered if number % lanes
    }
    try:
        here = {number: _run(task, threads) for number, task in numbered if number not in elsewhere}
    finally:
        wait(elsewhere.values())
        torch.set_num_threads(setting)  # the caller's, and what threads begin with that are started from here on
    return [elsewhere[number].result() if number in elsewhere else here[number] for number, _ in numbered]


def _run(task: Callable[[], Result], threads: int) -> Result:
    torch.set_num_threads(threads)
    return task()
