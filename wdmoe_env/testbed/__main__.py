"""Command line of the testbed: ``python -m wdmoe_env.testbed --help``."""

from __future__ import annotations

from wdmoe_env.command import end_with
from wdmoe_env.testbed.command_line import main

if __name__ == "__main__":
    end_with("python -m wdmoe_env.testbed", main)
