"""Command line of the testbed: ``python -m wdmoe_env.testbed --help``."""

from __future__ import annotations

import sys

from wdmoe_env.testbed.command import main

if __name__ == "__main__":
    sys.exit(main())
