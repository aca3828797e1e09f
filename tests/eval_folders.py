"""A results folder of small evaluations, and a copy of it to tamper with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from eval_runs import run

from wdmoe_env.episodes import load_episodes
from wdmoe_env.policies.network import Architecture, TokenSharedNetwork
from wdmoe_env.policies.policy_file import save_policy


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Path of a policy file made for the experts of "micro"."""
    path = tmp_path_factory.mktemp("ppo") / "policy.safetensors"
    torch.manual_seed(0)
    num_experts = load_episodes("micro", 8, "test", "cpu").model.num_experts
    save_policy(path, TokenSharedNetwork(Architecture(8, num_experts=num_experts)), "joint", {})
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory, learned):
    """A results folder with rules, a sweep and a learned policy."""
    out = tmp_path_factory.mktemp("eval") / "deep" / "mine"
    return run(out, "--policies", "wdmoe-bandwidth", "wdmoe:0.5", "wdmoe:0.9", "random", str(learned))


@pytest.fixture
def copied(folder, tmp_path):
    """A copy of the results folder to tamper with."""
    return Path(shutil.copytree(folder, tmp_path / "copied"))
