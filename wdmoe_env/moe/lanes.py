"""Lanes: threads on which passes of one model run side by side.

A thread of its own for each half of a large batch brings more than two threads for each operator of the whole: the many
small operators of a pass wait for each other as little as the large ones do. Torch lets go of Python's lock inside an
operator, so that two lanes are hardly in each other's way.

A paused pass can be resumed only by the thread that started it. So a lane is one thread, and lives as long as the
process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
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
    with torch_threads(threads):
        if lanes == 1:
            return [task() for task in tasks]
        futures = [_lanes[number % lanes].submit(_run, task, threads) for number, task in enumerate(tasks)]
        wait(futures)
    return [future.result() for future in futures]


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Torch on a number of threads, and back to the caller's setting."""
    setting = torch.get_num_threads()
    _set_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(setting)  # even where it is the same: what a lane sets is what new threads begin with


def _run(task: Callable[[], Result], threads: int) -> Result:
    _set_threads(threads)
    return task()


def _set_threads(threads: int) -> None:
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
