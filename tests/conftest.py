"""Fixtures shared by the tests: everything runs on one thread and on the random model "micro"."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from typing import Any

import greenlet
import pytest
import torch

MICRO = {"model": "micro", "num_tokens": 8}

SLOW = frozenset(
    f"test_{name}"
    for name in [
        "ablation",
        "action_faces",
        "agents",
        "architectures",
        "benchmarks",
        "curves",
        "docs",
        "eval_cli",
        "eval_files",
        "eval_page",
        "eval_replay",
        "gif",
        "language_model",
        "lm_eval_arguments",
        "moe_finite",
        "moe_lockstep",
        "moe_split",
        "moe_zoo",
        "optimize_bandwidth",
        "optimize_oracle",
        "pages",
        "physical_ranges",
        "picture",
        "policy_files",
        "readme",
        "real_models",
        "relaxed",
        "rendering",
        "rollout",
        "scoring",
        "serving",
        "serving_eval",
        "serving_ppo",
        "suite",
        "suite_build",
        "testbed_faults",
        "testbed_links",
        "testbed_outputs",
        "text_recipe",
        "threads",
        "token_ppo",
        "train",
        "train_runs",
        "vector_env",
        "wheel",
        "workers",
    ]
)
"""Modules whose tests train, start processes or run whole models for long: ``make check`` leaves them out."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow modules."""
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def micro() -> dict[str, object]:
    """Keywords of a small environment."""
    return dict(MICRO)


@pytest.fixture(autouse=True, scope="module")
def _frozen_libraries() -> None:
    """Leave what the libraries hold out of the collections after each test, which would take 0.4 s each otherwise."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def device_processes() -> Iterator[Any]:
    """Two device processes that hold "micro" together; a test that harms one puts it right again."""
    from wdmoe_env.testbed.local import device_arguments, local_devices

    bound = ("--max-message-mib", "1")
    arguments = [device_arguments("micro", "float32", 2, number, more=bound) for number in range(2)]
    with local_devices(arguments) as processes:
        yield processes


@pytest.fixture(autouse=True)
def _no_mode_leaks() -> Iterator[None]:
    """Torch's modes belong to the thread: no test may leave one behind, whatever it abandons."""
    yield
    split = sys.modules.get("wdmoe_env.moe.split")
    if split is not None and split.this_thread.passes:  # only these could; a collection after every test takes long
        gc.collect()
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")


def live_greenlets() -> int:
    """Paused forward passes of this thread; those of other threads may end, or be let go of, at any time.

    The types are compared since isinstance would wake lazy attributes of torch.
    """
    gc.collect()
    current = greenlet.getcurrent()
    found = [one for one in gc.get_objects() if issubclass(type(one), greenlet.greenlet)]
    return sum(bool(one) and one is not current and one.parent is current for one in found)
