"""A command that Ctrl-C reaches in the middle of its work, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def interrupted(arguments, sign, before=lambda: None):
    """Exit code, output and errors of `python -m ...`, interrupted once its errors hold a sign of work under way.

    Args:
        arguments: of the command, its module first.
        sign: text that the bar shows when the work is under way.
        before: called before the interrupt.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
    )
    try:
        seen = ""
        while sign not in seen:
            character = process.stderr.read(1)
            assert character, seen
            seen += character
        before()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)  # long, for a machine at work
    finally:
        process.kill()
        process.communicate()
    return process.returncode, out, err
