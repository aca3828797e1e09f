"""What a results folder's JSON says of how its figures were made."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

import torch

import wdmoe_env
from eval.results import Results
from eval.summary import Summary

PACKAGES = ("gymnasium", "numpy", "torch", "transformers")

HOW_MADE = frozenset({"config", "sha256", "made_by"})
"""Keys of ``how_made``; the rest of a results folder's JSON are statistics."""


def how_made(results: Results, command: str) -> Summary:
    """What a results folder's JSON says beside its figures."""
    return {
        "config": results.config.to_dict(),
        "sha256": results.sha256,
        "made_by": {"command": command, "versions": versions(), "machine": machine()},
    }


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    own = {"python": platform.python_version(), "wdmoe-env": wdmoe_env.__version__}
    return own | {package: version(package) for package in PACKAGES}


def machine() -> str:
    """What decision times were measured on."""
    system, threads = f"{platform.system()} {platform.machine()}", torch.get_num_threads()
    return f"{system}, {os.cpu_count()} processors, torch on {threads} of them"
