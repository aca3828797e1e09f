"""Lanes: threads on which passes of one model run side by side.

A thread of its own for each half of a large batch brings more than two threads for each operator of the whole: the many
small operators of a pass wait for each other as little as the large ones do. Torch lets go of Python's lock inside an
operator, so that two lanes are hardly in each other's way.

A paused pass can be resumed only by the thread that started it. So a lane is one thread, and lives as long as the
process.
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
    _lanes[:] = [ThreadPoolExecutor(1, f"wdmoe-lane-{number}") for number in range(MOST_LANES)]


_make_lanes()  # their threads begin with their first task
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_make_lanes)  # a child has none of its parent's threads


def side_by_side(tasks: Sequence[Callable[[], Result]], lanes: int, threads: int) -> list[Result]:
    """Results of tasks, in their order; all have ended when it returns or raises.

    Args:
        tasks: task i runs on lane i modulo ``lanes``, always the same thread.
        lanes: at most ``MOST_LANES``; one is the caller's own thread.
        threads: torch's threads within a task.

    Raises:
        Exception: what a task raised, the first one's if there are many.
    """
    setting = torch.get_num_threads()
    try:
        if lanes == 1:
            return [_run(task, threads) for task in tasks]
        futures = [_lanes[number % lanes].submit(_run, task, threads) for number, task in enumerate(tasks)]
        wait(futures)
        return [future.result() for future in futures]
    finally:
        torch.set_num_threads(setting)  # the caller's, and what threads begin with that are started from here on


def _run(task: Callable[[], Result], threads: int) -> Result:
    torch.set_num_threads(threads)
    return task()
