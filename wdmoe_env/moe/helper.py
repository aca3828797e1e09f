"""The helper: a second thread for what takes long in a pass of some tokens.

Lanes would wait there for Python's lock, and two threads of torch's own share every operator, however short, while one
of them spins at full load wherever it waits for the other. So the pass has one thread, and hands half of the rows of
its experts and of the text's scores to the helper, which sleeps otherwise.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")

_Outcome = tuple[Any, "BaseException | None"]


class _Helper:
    """A thread that does tasks in turn. It begins with the first one and ends with the process.

    A future of the standard library would take twice as long to hand a task over and back, which is some 100 us.
    """

    def __init__(self) -> None:
        self._tasks: SimpleQueue[tuple[Callable[[], Any], SimpleQueue[_Outcome]]] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="wdmoe-helper", daemon=True)
        self._starting = threading.Lock()

    def begin(self, task: Callable[[], Any]) -> SimpleQueue[_Outcome]:
        """Where the result of the task will be, or what it raised."""
        with self._starting:
            if self._thread.ident is None:
                self._thread.start()
        outcome: SimpleQueue[_Outcome] = SimpleQueue()
        self._tasks.put((task, outcome))
        return outcome

    def _work(self) -> None:
        torch.set_num_threads(1)
        with torch.inference_mode():
            while True:
                task, outcome = self._tasks.get()
                try:
                    outcome.put((task(), None))
                except BaseException as error:
                    outcome.put((None, error))
                del task, outcome  # or it would keep them alive in its sleep


class _OfThread(threading.local):
    has_helper = False


_this = _OfThread()
_helper = _Helper()


def _renew() -> None:
    global _helper
    _helper = _Helper()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)  # a child has none of its parent's threads


@contextmanager
def helped() -> Iterator[None]:
    """A context in which this thread has the helper. Torch must be in inference mode there, as the helper is."""
    _this.has_helper = True
    try:
        yield
    finally:
        _this.has_helper = False


def workers() -> int:
    """How many tasks ``share`` can do at once in this thread: two with the helper, one without."""
    return 2 if _this.has_helper else 1


def share(tasks: Sequence[Callable[[], Result]]) -> list[Result]:
    """Results of at most ``workers()`` tasks, the second one done by the helper; neither has a helper of its own.

    Raises:
        Exception: what a task raised, the first one's if both did; both have ended then.
    """
    if len(tasks) == 1:
        return [tasks[0]()]
    mine, other = tasks
    outcome = _helper.begin(other)
    _this.has_helper = False
    try:
        own_result = mine()
    finally:
        _this.has_helper = True
        result, error = outcome.get()
    if error is not None:
        raise error
    return [own_result, result]
