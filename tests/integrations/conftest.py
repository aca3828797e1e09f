"""The wheel that programs run against, the list of what ran, and Gymnasium as it was before the libraries came."""

from __future__ import annotations

from importlib import metadata

import gymnasium as gym
import pytest

from benchmarks.pages import install_wheel

RAN = "ran"
TIME_LIMIT = gym.wrappers.TimeLimit


def pytest_collection_finish():
    """Give Gymnasium its own ``TimeLimit`` back: rl_zoo3 replaces it for the whole process when it is imported."""
    for module in (gym.wrappers, gym.wrappers.common, gym.envs.registration):
        module.TimeLimit = TIME_LIMIT


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Folder with the wheel alone."""
    return install_wheel(tmp_path_factory.mktemp("wheel"))


def pytest_terminal_summary(terminalreporter):
    """Print each program that ran, as the tests recorded it."""
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    lines = [text for report in reports for name, text in report.user_properties if name == RAN]
    if lines:
        terminalreporter.section(f"ran, under Gymnasium {metadata.version('gymnasium')}")
        for line in sorted(set(lines)):
            terminalreporter.line(line)
