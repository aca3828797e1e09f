"""How a command of the project reads its arguments, and how it ends."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn


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
