"""Stable-Baselines3: the adapter, stock algorithms by id string, and gradients beside a paused forward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.evaluation import evaluate_policy
from test_env import assert_same, make
from test_vector_env import CLOSE, make_vec

from agents import make_policy
from wdmoe_env.integrations.sb3 import SB3VecEnv


def adapter(num_envs=4, env_id="WDMoE-v0", **keywords):
    return SB3VecEnv(make_vec(num_envs, env_id, autoreset_mode="SAME_STEP", **keywords).unwrapped)


def test_adapter_speaks_sb3s_protocol():
    env = adapter(3)
    assert env.seed(11) == [11, 12, 13]
    observation = env.reset()
    alone = make()
    assert_same({k: v[1] for k, v in observation.items()}, alone.reset(seed=12)[0], **CLOSE)
    total = 0.0
    for _ in range(alone.unwrapped.num_blocks):
        actions = np.stack([env.action_space.sample() for _ in range(3)])
        observation, rewards, dones, infos = env.step(actions)
        last, reward, end, _, alone_info = alone.step(actions[1])
        total += reward
        assert dones.tolist() == [end] * 3
        assert rewards[1] == pytest.approx(reward, rel=1e-4)
        assert infos[1]["block_latency_ms"] == pytest.approx(alone_info["block_latency_ms"], rel=1e-4)
        assert infos[1]["TimeLimit.truncated"] is False
        assert ("terminal_observation" in infos[1]) == end
    assert_same(infos[1]["terminal_observation"], last, **CLOSE)
    assert infos[1]["episode"]["r"] == pytest.approx(total, rel=1e-4)
    assert infos[1]["episode"]["l"] == alone.unwrapped.num_blocks
    assert_same({k: v[1] for k, v in observation.items()}, alone.reset()[0], **CLOSE)


def test_adapter_takes_windows_as_options():
    env = adapter(2)
    env.set_options({"window": 5})
    env.reset()
    assert [info["window"] for info in env.reset_infos] == [5, 5]
    env.set_options([{"window": 5}, {}])
    with pytest.raises(ValueError, match="window indices"):
        env.reset()


def test_adapter_needs_same_step_resets():
    with pytest.raises(ValueError, match="SAME_STEP"):
        SB3VecEnv(make_vec(2).unwrapped)


def test_stock_ppo_and_sac_take_the_flat_action():
    PPO("MultiInputPolicy", adapter(), n_steps=8, batch_size=16, n_epochs=1).learn(32)
    SAC("MultiInputPolicy", adapter(2), learning_starts=4, batch_size=4, buffer_size=200).learn(12)


def test_ppo_makes_the_environment_by_its_id():
    PPO("MultiInputPolicy", "wdmoe_env:WDMoE-Selection-v0", n_steps=4, batch_size=4, n_epochs=1).learn(8)


def test_rules_go_through_sb3s_evaluation():
    env = adapter(4)
    env.seed(0)
    mean, _ = evaluate_policy(make_policy("vanilla", env.env), env, n_eval_episodes=8, warn=False)
    env.seed(0)
    best, _ = evaluate_policy(make_policy("fractional", env.env), env, n_eval_episodes=8, warn=False)
    assert best > mean


def test_gradients_of_a_learner_survive_stepping_in_between():
    env, net = make(), torch.nn.Linear(8, 1)
    env.reset(seed=0)
    inputs = torch.ones(4, 8)
    expected = torch.autograd.grad(net(inputs).sum(), net.weight)[0]
    loss = net(inputs).sum()
    env.step(env.action_space.sample())
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    loss.backward()
    torch.testing.assert_close(net.weight.grad, expected)
