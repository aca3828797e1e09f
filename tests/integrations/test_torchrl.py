"""TorchRL: its own check of specifications, by id string and on the native batch, and whole episodes."""

from __future__ import annotations

import gymnasium as gym
import pytest
import torch

pytest.importorskip("torchrl", reason="pip install 'wdmoe-env[torchrl]'")

from torchrl.envs import GymEnv, GymWrapper, check_env_specs

MICRO = {"model": "micro", "num_tokens": 8}


def batch(autoreset_mode):
    return gym.make_vec("wdmoe_env:WDMoE-v0", num_envs=3, autoreset_mode=autoreset_mode, **MICRO)


@pytest.mark.parametrize("env_id", ["WDMoE-v0", "WDMoE-Selection-v0", "WDMoE-Bandwidth-v0"])
def test_an_id_string_makes_an_environment_of_right_specs(env_id):
    env = GymEnv(f"wdmoe_env:{env_id}", **MICRO)
    check_env_specs(env)
    assert env.rollout(2).shape == (2,)


def test_the_native_batch_has_right_specs_and_whole_episodes():
    native = batch("DISABLED")
    env, blocks = GymWrapper(native), native.unwrapped.num_blocks
    assert env.batch_size == (3,)
    check_env_specs(env)
    rollout = env.rollout(2 * blocks, break_when_any_done=False)
    index = torch.arange(blocks).repeat(2) / blocks
    torch.testing.assert_close(rollout["block"][..., 0], index.expand(3, -1))
    torch.testing.assert_close(rollout["next", "block"][..., 0], (index + 1 / blocks).expand(3, -1))
    assert rollout["next", "done"][..., 0].sum() == 2 * 3
    assert (rollout["next", "reward"] > 0).all()


def test_a_seed_is_the_environments():
    """Setting a seed resets, so what comes next is the second episode of the seed."""
    env, alone = GymWrapper(batch("DISABLED")), gym.make("wdmoe_env:WDMoE-v0", **MICRO)
    env.set_seed(4)
    seen = env.reset()
    alone.reset(seed=6)
    for name, value in alone.reset()[0].items():
        torch.testing.assert_close(seen[name][2], torch.from_numpy(value), rtol=1e-4, atol=1e-5)


def test_the_other_modes_are_refused():
    with pytest.raises(RuntimeError, match="must be one of SAME_STEP or DISABLED"):
        GymWrapper(batch("NEXT_STEP"))
    with pytest.raises(RuntimeError, match="StopIteration"):  # its reader of final observations meets a nested info
        GymWrapper(batch("SAME_STEP"))
