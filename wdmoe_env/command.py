"""How a command of the project ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn


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
