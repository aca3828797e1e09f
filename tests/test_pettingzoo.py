"""PettingZoo: its own tests of the parallel API, and the agents beside the joint environment."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from conftest import MICRO
from test_env import make

from wdmoe_env.integrations.pettingzoo import parallel_env

with warnings.catch_warnings():  # the package of tests brings games in a manner that it calls old itself
    warnings.simplefilter("ignore", DeprecationWarning)
    from pettingzoo.test import parallel_api_test, parallel_seed_test


def test_pettingzoos_own_tests():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parallel_api_test(parallel_env(**MICRO), num_cycles=20)
        parallel_seed_test(lambda: parallel_env(**MICRO), num_cycles=5)


def test_agents_are_the_tokens_of_the_joint_environment():
    env, alone = parallel_env(**MICRO), make("WDMoE-Token-v0")
    observations, _ = env.reset(seed=5)
    joint, _ = alone.reset(seed=5)
    while env.agents:
        np.testing.assert_array_equal(np.concatenate([observations[name] for name in env.possible_agents]), joint)
        choices = {name: number % 4 for number, name in enumerate(env.agents)}
        observations, rewards, *_, infos = env.step(choices)
        joint, *_, info = alone.step(list(choices.values()))
        assert list(rewards.values()) == info["token_reward"].tolist()
        assert infos["token_0"]["episode_info"]["block_latency_ms"] == info["block_latency_ms"]
    env.reset(seed=5)
    with pytest.raises(ValueError, match="expected an action of every agent, got none of token_1"):
        env.step({"token_0": 0})
