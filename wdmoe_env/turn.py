"""One call at a time: two threads that step an environment at once would mix up its blocks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

Method = TypeVar("Method", bound=Callable[..., Any])


class Turn:
    """A context that one call of an environment is in at a time. It refuses a second one and never waits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        """Begin the turn.

        Raises:
            RuntimeError: another call is under way; it goes on undisturbed.
        """
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(
                "expected one call at a time, but another one, mostly of another thread, is in reset() or step() of "
                "this environment"
            )

    def __exit__(self, *_: object) -> None:
        """End the turn."""
        self._lock.release()

    def __reduce__(self) -> tuple[type[Turn], tuple[()]]:
        """A copy is free."""
        return Turn, ()


def in_turn(method: Method) -> Method:
    """Let a method run only in the turn of its object, which has it as ``_turn``."""

    @wraps(method)
    def alone(self: Any, *args: Any, **keywords: Any) -> Any:
        with self._turn:
            return method(self, *args, **keywords)

    return cast("Method", alone)
