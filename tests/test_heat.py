"""Throttling: devices slow down as they get hot, by what a policy sends them, and say how fast they are now."""

from __future__ import annotations

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch

from wdmoe_env.config import DeviceConfig
from wdmoe_env.physics.heat import initial_heat, later_heat, speed_factor
from wdmoe_env.policies import make_policy
from wdmoe_env.relaxed import Draw, relaxed_episodes

HOT = {"hot_speed_factor": 0.25, "throttling_heat": 0.2, "heat_time_s": 0.002, "initial_heat": 0.5}


def test_heat_and_speed_by_hand():
    """H = 2 s: 1 s busy from .5 gives 1 - .5 exp(-.5) = .696735; 2 s idle after it, times exp(-1), .256314."""
    devices = DeviceConfig(count=1, hot_speed_factor=0.4, throttling_heat=0.2, heat_time_s=2.0)
    one = np.ones((1, 1))
    assert later_heat(devices, 0.5 * one, one, 0 * one).item() == pytest.approx(0.696735, abs=1e-6)
    assert later_heat(devices, 0.5 * one, one, 2 * one).item() == pytest.approx(0.256314, abs=1e-6)
    assert later_heat(devices, 0.5 * one, 1e9 * one, 0 * one).item() == 1.0
    # 1 - .6 (.696735 - .2) / .8 = .627449
    assert speed_factor(devices, 0.696735 * one).item() == pytest.approx(0.627449, abs=1e-6)
    for heat, speed in ((0.0, 1.0), (0.2, 1.0), (0.6, 0.7), (1.0, 0.4)):
        assert speed_factor(devices, heat * one).item() == pytest.approx(speed)


def test_time_in_pieces_warms_as_time_in_one():
    devices = DeviceConfig(count=1, hot_speed_factor=0.5)
    heat = np.array([[0.3]])
    once = later_heat(devices, heat, np.array([[7.0]]), np.zeros((1, 1)))
    twice = later_heat(devices, later_heat(devices, heat, np.array([[3.0]]), 0.0), np.array([[4.0]]), 0.0)
    np.testing.assert_allclose(once, twice)
    assert initial_heat(DeviceConfig(), 3) is None


def run(env, seed, policy="top1"):
    """Observations and infos."""
    seen, infos, ended = [env.reset(seed=seed)[0]], [], False
    acting = make_policy(policy, env)
    while not ended:
        observation, _, ended, _, info = env.step(acting.predict(seen[-1])[0])
        seen.append(observation)
        infos.append(info)
    return seen, infos


def test_an_episode_slows_its_devices_as_the_equations_say(micro):
    """What is observed in every block, from the loads and latencies of the blocks before."""
    env = gym.make("wdmoe_env:WDMoE-v0", **micro, devices=HOT).unwrapped
    seen, infos = run(env, seed=2)
    cool = 1e3 * env.simulator.world.compute_s
    heat = np.full(8, 0.5)
    for observation, info in zip(seen, infos, strict=False):
        speed = np.array([1 - 0.75 * max(0.0, h - 0.2) / 0.8 for h in heat])
        np.testing.assert_allclose(observation["compute_latency"], cool / speed, rtol=1e-5)
        busy = info["load"] * observation["compute_latency"]  # one expert on each device: pairs are tokens
        heat = (1 - (1 - heat) * np.exp(-busy / 2)) * np.exp(-(info["block_latency_ms"] - busy) / 2)
    assert np.ptp(heat) > 0.1
    plain, _ = run(gym.make("wdmoe_env:WDMoE-v0", **micro).unwrapped, seed=2)
    np.testing.assert_array_equal(plain[0]["spectral_efficiency"], seen[0]["spectral_efficiency"])
    np.testing.assert_allclose(plain[0]["compute_latency"], cool, rtol=1e-6)


def test_who_gets_less_stays_faster(micro):
    env = gym.make("wdmoe_env:WDMoE-v0", **micro, devices=HOT | {"initial_heat": 0.0, "throttling_heat": 0.0}).unwrapped
    own, few = run(env, 2, "vanilla-optimal")[0], run(env, 2, "top1")[0]
    assert few[1]["compute_latency"].sum() < own[1]["compute_latency"].sum()


def test_a_batch_and_a_copy_get_as_hot(micro):
    keywords = {**micro, "devices": HOT}
    batch, env = gym.make_vec("wdmoe_env:WDMoE-v0", 2, **keywords), gym.make("wdmoe_env:WDMoE-v0", **keywords).unwrapped
    seen, _ = run(env, seed=6)
    observations, _ = batch.reset(seed=[5, 6])
    after = batch.step(make_policy("top1", batch).predict(observations)[0])[0]
    np.testing.assert_allclose(after["compute_latency"][1], seen[1]["compute_latency"], rtol=1e-5)
    observation, _ = env.reset(seed=6)
    acting = make_policy("top1", env)
    env.step(acting.predict(observation)[0])
    for twin in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        again = twin.step(acting.predict(seen[1])[0])[0]
        np.testing.assert_array_equal(again["compute_latency"], seen[2]["compute_latency"])


def test_relaxed_episodes_get_as_hot(micro):
    env = gym.make("wdmoe_env:WDMoE-v0", **micro, devices=HOT).unwrapped
    _, infos = run(env, seed=4, policy="vanilla-optimal")

    def own_routing(observation):
        used = observation["routed"] > 0.5
        return Draw(used, used.float().requires_grad_(), used)

    relaxed = relaxed_episodes(env.simulator, [gym.utils.seeding.np_random(4)[0]], own_routing)
    latency = [block.latency_ms.item() for block in relaxed.blocks]
    np.testing.assert_allclose(latency, [info["block_latency_ms"] for info in infos], rtol=1e-4)
    assert torch.isfinite(relaxed.added_nll).all()


@pytest.mark.parametrize(
    "keywords", [{"hot_speed_factor": 0.0}, {"throttling_heat": 1.0}, {"heat_time_s": 0.0}, {"initial_heat": 1.5}]
)
def test_wrong_settings_are_refused(keywords):
    (name,) = keywords
    with pytest.raises(ValueError, match=f"{name} must be .* got"):
        DeviceConfig(**keywords)
