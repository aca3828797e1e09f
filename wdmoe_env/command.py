"""How a command of the project reads its arguments, and how it ends."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import wraps
from typing import NoReturn, ParamSpec

Arguments = ParamSpec("Arguments")

MISTAKES = (ValueError, TypeError, OSError, ImportError, FloatingPointError)
"""What is raised where a user asks for what cannot be."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        """Print the sentence alone and exit with 2.

        Args:
            message: what is wrong.

        Raises:
            SystemExit: always.
        """
        self.exit(2, f"{self.prog}: {message}\n")


def say_mistake(name: str, error: Exception) -> int:
    """Print in one sentence what is wrong with a command; returns the exit code.

    Args:
        name: of the command.
        error: what it met.
    """
    print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def mistakes_in_one_sentence(name: str) -> Callable[[Callable[Arguments, int]], Callable[Arguments, int]]:
    """Decorate the main of a command: it prints a user's mistake in one sentence, and returns 2.

    Args:
        name: of the command, for the line.
    """

    def decorated(main: Callable[Arguments, int]) -> Callable[Arguments, int]:
        @wraps(main)
        def command(*args: Arguments.args, **kwargs: Arguments.kwargs) -> int:
            try:
                return main(*args, **kwargs)
            except MISTAKES as error:
                return say_mistake(name, error)

        return command

    return decorated


def end_with(name: str, main: Callable[[], int | None], left: Callable[[], str] | None = None) -> NoReturn:
    """Run a command, and end the process with its exit code; Ctrl-C ends it with one line and the code 130.

    Args:
        name: of the command, for the line.
        main: the command; returns the exit code, or nothing for 0.
        left: says what is left of a command that was interrupted, for the line; ``None`` where there is nothing to say.

    Raises:
        SystemExit: always.
    """
    try:
        code = main()
    except KeyboardInterrupt:
        print(f"{name}: interrupted" + (f"; {left()}" if left else ""), file=sys.stderr)
        code = 130
    sys.exit(code)
