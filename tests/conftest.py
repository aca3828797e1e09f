"""Fixtures shared by the tests: everything runs on one thread and on the random model "micro"."""

from __future__ import annotations

import pytest
import torch

MICRO = {"model": "micro", "num_tokens": 8}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def micro() -> dict[str, object]:
    """Keywords of a small environment."""
    return dict(MICRO)
