"""SB3-Contrib: episodes begin and end where the recurrent policy and the replay buffer are told that they do."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("sb3_contrib", reason="pip install 'wdmoe-env[sb3-contrib]'")

from sb3_contrib import TQC, RecurrentPPO

from wdmoe_env.integrations.sb3 import SB3VecEnv


def batch(env_id="WDMoE-v0"):
    return SB3VecEnv(
        gym.make_vec(f"wdmoe_env:{env_id}", num_envs=3, model="micro", num_tokens=8, autoreset_mode="SAME_STEP")
    )


def test_recurrent_ppo_forgets_where_an_episode_begins():
    model = RecurrentPPO("MultiInputLstmPolicy", batch(), n_steps=7, batch_size=7, n_epochs=1)
    model.learn(21)
    starts, block = model.rollout_buffer.episode_starts, model.rollout_buffer.observations["block"]
    assert starts.any()
    np.testing.assert_array_equal(starts.astype(bool).ravel(), block.ravel() == 0)


def test_tqc_keeps_the_last_observation_and_not_the_next_episodes_first():
    model = TQC("MultiInputPolicy", batch("WDMoE-Bandwidth-v0"), learning_starts=6, batch_size=4, buffer_size=300)
    model.learn(60)
    buffer = model.replay_buffer
    ended = buffer.dones[: buffer.pos].astype(bool)
    assert ended.any()
    assert (buffer.next_observations["block"][: buffer.pos][ended] == 1).all()
    assert (buffer.next_observations["block"][: buffer.pos][~ended] < 1).all()
