"""Worker processes make environments by id string alone, and importing the package stays light."""

from __future__ import annotations

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from conftest import MICRO


def test_async_workers_make_it_by_id():
    env = gym.make_vec(
        "wdmoe_env:WDMoE-v0", num_envs=1, vectorization_mode="async", vector_kwargs={"context": "spawn"}, **MICRO
    )
    try:
        env.action_space.seed(0)
        observation, _ = env.reset(seed=3)
        alone = gym.make("wdmoe_env:WDMoE-v0", **MICRO)
        expected, _ = alone.reset(seed=3)
        np.testing.assert_array_equal(observation["spectral_efficiency"][0], expected["spectral_efficiency"])
        actions = env.action_space.sample()
        _, reward, *_ = env.step(actions)
        assert reward[0] == pytest.approx(alone.step(actions[0])[1], rel=1e-5)
    finally:
        env.close()


def test_importing_the_package_loads_neither_torch_nor_transformers():
    code = "import sys, wdmoe_env; print([m for m in ('torch', 'transformers', 'tokenizers') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_physics_and_optimizer_need_no_torch():
    code = (
        "import sys, wdmoe_env.config, wdmoe_env.physics.channel, wdmoe_env.optimize.joint, wdmoe_env.optimize.oracle;"
        "print([m for m in ('torch', 'transformers', 'scipy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
