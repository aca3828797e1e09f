"""skrl: the native batch as it is, flat in the order that Gymnasium flattens, and no false transition."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces.utils import flatten

pytest.importorskip("skrl", reason="pip install 'wdmoe-env[skrl]'")

from skrl.envs.wrappers.torch import wrap_env

pytestmark = pytest.mark.filterwarnings("ignore:.*gymnasium.experimental:UserWarning")


def batch(autoreset_mode, num_envs=3):
    return gym.make_vec(
        "wdmoe_env:WDMoE-v0", num_envs=num_envs, model="micro", num_tokens=8, autoreset_mode=autoreset_mode
    )


def stepped(autoreset_mode, steps):
    """Rewards (steps, N) and ends of a wrapped batch under one action."""
    env = wrap_env(batch(autoreset_mode), verbose=False)
    env.reset()
    actions = torch.ones(env.num_envs, *env.action_space.shape)
    seen = [env.step(actions)[1:3] for _ in range(steps)]
    return torch.stack([reward for reward, _ in seen])[..., 0], torch.stack([ended for _, ended in seen])[..., 0]


def test_observations_are_flat_as_gymnasium_flattens_them():
    env, same = wrap_env(batch("SAME_STEP"), verbose=False), batch("SAME_STEP")
    env._seed = 5
    observation, _ = env.reset()
    expected, _ = same.reset(seed=5)
    space = same.unwrapped.single_observation_space
    rows = [flatten(space, {name: value[n] for name, value in expected.items()}) for n in range(3)]
    np.testing.assert_array_equal(observation.numpy(), np.stack(rows))
    assert observation.dtype == torch.float32


def test_same_step_stores_blocks_alone_and_next_step_a_false_one_per_episode():
    blocks = batch("SAME_STEP").unwrapped.num_blocks
    rewards, ended = stepped("SAME_STEP", 2 * blocks)
    assert (rewards > 0).all()
    assert ended[blocks - 1 :: blocks].all()
    assert ended.sum() == 2 * ended.shape[1]
    rewards, ended = stepped("NEXT_STEP", 2 * (blocks + 1))
    assert (rewards[blocks :: blocks + 1] == 0).all()
    assert ended[blocks - 1 :: blocks + 1].all()
