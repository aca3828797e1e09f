"""Tianshou: its vector class over the id string, and whole episodes in its buffer."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import FlattenObservation

pytest.importorskip("tianshou", reason="pip install 'wdmoe-env[tianshou]'")

from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.utils.net.common import Net
from tianshou.utils.net.continuous import ContinuousActorProbabilistic
from torch.distributions import Independent, Normal

ID = "wdmoe_env:WDMoE-v0"
MICRO = {"model": "micro", "num_tokens": 8}


def make():
    return FlattenObservation(gym.make(ID, **MICRO))


def test_seeds_of_its_vector_are_the_environments():
    envs = DummyVectorEnv([make] * 2)
    envs.seed([4, 5])
    assert envs.get_env_attr("np_random_seed") == [4, 5]


def test_the_buffer_holds_whole_episodes():
    env, envs = make(), DummyVectorEnv([make] * 3)
    body = Net(state_shape=env.observation_space.shape, hidden_sizes=(8,))
    policy = ProbabilisticActorPolicy(
        actor=ContinuousActorProbabilistic(preprocess_net=body, action_shape=env.action_space.shape, unbounded=True),
        dist_fn=lambda mean_and_std: Independent(Normal(*mean_and_std), 1),
        action_space=env.action_space,
    )
    blocks = env.unwrapped.num_blocks
    buffer = VectorReplayBuffer(60, 3)
    stats = Collector(policy, envs, buffer).collect(n_episode=6, reset_before_collect=True)
    assert stats.lens.tolist() == [blocks] * 6
    stored, _ = buffer.sample(0)
    at_block = flat_index_of_block(env)
    index = stored.obs[:, at_block].reshape(3, 2, blocks)
    np.testing.assert_allclose(index, np.broadcast_to(np.arange(blocks) / blocks, index.shape), rtol=1e-6)
    np.testing.assert_allclose(stored.obs_next[:, at_block].reshape(index.shape), index + 1 / blocks, rtol=1e-6)
    assert stored.terminated.reshape(3, 2, blocks)[..., -1].all()
    assert stored.terminated.sum() == 6
    assert (stored.rew > 0).all()


def flat_index_of_block(env):
    """Where the number of the block stands in a flat observation."""
    space = env.unwrapped.observation_space
    marked = {name: np.full(box.shape, float(name == "block"), np.float32) for name, box in space.items()}
    return int(gym.spaces.flatten(space, marked).argmax())
