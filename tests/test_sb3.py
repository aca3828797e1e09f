"""Stable-Baselines3: the adapter, stock algorithms by id string, and gradients beside a paused forward."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers.vector import ClipReward, RecordEpisodeStatistics
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecVideoRecorder
from test_env import assert_same, make
from test_rendering import recorder  # noqa: F401
from test_vector_env import CLOSE, make_vec

from wdmoe_env.integrations.sb3 import SB3VecEnv
from wdmoe_env.policies import make_policy


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
    env.set_options([{"window": 5}, {"window": 6}])
    env.reset()
    assert [info["window"] for info in env.reset_infos] == [5, 6]
    env.set_options({"window": 10**9})
    with pytest.raises(ValueError, match=r"window indices in \[0, "):
        env.reset()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windows": 5}, "options may hold window, got 'windows'"),
        ([{"window": 5}, {"windows": 5}], "options may hold window, got 'windows'"),
        ({"reset_mask": np.array([True, False])}, "options may hold window, got 'reset_mask'"),
        ([{"window": 5}, {}], "with window indices in all of them or in none"),
        ([{"window": 5}], "expected options of 2 environments"),
    ],
)
def test_adapter_says_which_option_it_does_not_take(options, message):
    env = adapter(2)
    with pytest.raises(ValueError, match=message):
        env.set_options(options)
    env.reset()  # nothing of it is left


@pytest.mark.parametrize("wrap", [lambda env: env, lambda env: ClipReward(env, 0, 1)])
def test_adapter_needs_same_step_resets(wrap):
    with pytest.raises(ValueError, match="SB3VecEnv needs autoreset_mode='SAME_STEP', got 'NEXT_STEP'"):
        SB3VecEnv(wrap(make_vec(2)))
    with pytest.raises(TypeError, match=r"SB3VecEnv takes the batched environment of gymnasium.make_vec, got \w+"):
        SB3VecEnv(make())


def test_adapter_takes_gymnasiums_vector_wrappers():
    batch = make_vec(3, autoreset_mode="SAME_STEP")
    env, plain = SB3VecEnv(RecordEpisodeStatistics(ClipReward(batch, 0.0, 0.02))), adapter(3)
    plain.action_space.seed(0)
    clipped = False
    for one in (env, plain):
        one.seed(0)
        one.reset()
    total = np.zeros(3)
    for _ in range(batch.unwrapped.num_blocks):
        actions = np.stack([plain.action_space.sample() for _ in range(3)])
        observation, rewards, dones, infos = env.step(actions)
        others, raw, *_ = plain.step(actions)
        assert_same(observation, others, **CLOSE)
        np.testing.assert_allclose(rewards, np.clip(raw, 0.0, 0.02), rtol=1e-4)
        clipped |= (raw > 0.02).any()
        total += rewards
    assert clipped
    assert dones.all()
    assert [info["episode"]["r"] for info in infos] == pytest.approx(total.tolist())
    assert env.get_attr("num_blocks") == [batch.unwrapped.num_blocks] * 3
    assert env.get_attr("episode_count") == [3] * 3
    assert env.env_method("encode_action", np.ones((3, 8, 8), dtype=bool), np.full((3, 8), 0.125))[0].shape == (3, 72)
    env.set_attr("a_note", "mine")
    assert batch.unwrapped.a_note == "mine"
    assert (env.env_is_wrapped(ClipReward), env.env_is_wrapped(gym.Wrapper)) == ([True] * 3, [False] * 3)
    assert make_policy("vanilla", env.env.unwrapped)


@pytest.mark.parametrize(("limit", "truncated"), [(1, True), (2, True), (3, False), (None, False)])
def test_adapter_tells_a_limit_from_an_end(limit, truncated):
    env = adapter(2, max_episode_steps=limit)
    env.reset()
    dones = np.zeros(2, dtype=bool)
    while not dones.any():
        _, _, dones, infos = env.step(np.stack([env.action_space.sample() for _ in range(2)]))
    assert [info["TimeLimit.truncated"] for info in infos] == [truncated] * 2
    assert [info["episode"]["l"] for info in infos] == [limit or 3] * 2
    assert infos[0]["terminal_observation"]["block"] == pytest.approx((limit or 3) / 3)


@pytest.mark.parametrize("wrap", [lambda env: env, lambda env: ClipReward(env, 0, 1)])
def test_sb3_records_a_video(wrap, recorder, tmp_path):  # noqa: F811
    batch = make_vec(3, autoreset_mode="SAME_STEP", render_mode="rgb_array")
    env = VecVideoRecorder(SB3VecEnv(wrap(batch)), str(tmp_path / "videos"), lambda step: step == 0, video_length=2)
    env.reset()
    for _ in range(2):
        env.step(np.stack([env.action_space.sample() for _ in range(3)]))
    (frames, fps), *more = recorder
    assert not more
    assert fps == 2
    assert [frame.shape for frame in frames] == [(2 * 720, 2 * 1120, 3)] * 3
    assert not np.array_equal(frames[0], frames[1])
    env.close()


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
