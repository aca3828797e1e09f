"""Energy of devices and radio, equation (12): by hand, over devices, and as terms and rewards."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from test_worked_example import SELECTION, links

from wdmoe_env.config import EnvConfig
from wdmoe_env.physics import energy, latency
from wdmoe_env.physics.compute import DEVICE_PROFILES
from wdmoe_env.physics.energy import Powers

DOCUMENT = Path(__file__).parents[1] / "docs" / "system-model.md"
POWERS = Powers(np.array([15.0, 7.0]), np.array([60.0, 15.0]), np.array([10.0, 0.2]))
SHARES = np.array([[0.4, 0.6]])
MICRO = {"model": "micro", "num_tokens": 8}

# Worked with 40-digit decimals from equations (3) to (7) and (12), apart from the library.
HAND = {
    "air_ms": ["0.205591", "0.0907812", "0.318269", "0.170539"],
    "device_mj": ["39.5733", "10.1863"],
    "radio_mj": ["2.11956", "0.941919"],
    "sum_mj": ["52.8211"],
    "per_token_mj": ["26.4105"],
}


def test_the_library_agrees_with_the_hand_calculation():
    load = latency.device_load(SELECTION, links())
    device_s = latency.device_latency_s(links(), load, SHARES)
    of_devices, of_radio = energy.block_energy_j(POWERS, links(), load, SHARES, device_s.max(axis=-1))
    both = (of_devices + of_radio).sum()
    found = {
        "air_ms": energy.air_time_s(links(), load, SHARES),
        "device_mj": of_devices,
        "radio_mj": of_radio,
        "sum_mj": both,
        "per_token_mj": both / 2,
    }
    assert {name: [f"{1e3 * one:.6g}" for one in np.ravel(values)] for name, values in found.items()} == HAND
    text = DOCUMENT.read_text()
    assert [number for numbers in HAND.values() for number in numbers if number not in text] == []


def test_a_device_without_load_waits_and_sends_nothing():
    load = latency.device_load(SELECTION & [True, True, False], links())
    device_s = latency.device_latency_s(links(), load, np.array([[1.0, 0.0]]))
    of_devices, of_radio = energy.block_energy_j(POWERS, links(), load, np.array([[1.0, 0.0]]), device_s.max(axis=-1))
    assert of_devices[0, 1] == pytest.approx(7.0 * device_s.max())
    assert of_radio[0, 1] == 0


def play(**keywords):
    env = gym.make("wdmoe_env:WDMoE-v0", **MICRO, **keywords).unwrapped
    env.action_space.seed(3)
    env.reset(seed=3)
    steps, ended = [], False
    while not ended:
        _, reward, ended, _, info = env.step(env.action_space.sample())
        steps.append((reward, info))
    return env, steps


def test_energy_adds_up_over_devices_and_is_told_of_each_block():
    env, steps = play(energy=True)
    powers, terms = env.simulator.world.powers, [info["reward_terms"] for _, info in steps]
    assert powers.active_w[0] == DEVICE_PROFILES["jetson-agx-orin-64gb"].active_power_w
    for term, (_, info) in zip(terms, steps, strict=True):
        # Every device at rest for the whole block is a lower bound, every one at work an upper one.
        block_s = 1e-3 * info["block_latency_ms"]
        assert powers.idle_w.sum() * block_s < term["device_energy_j"] < powers.active_w.sum() * block_s
        both = term["device_energy_j"] + term["radio_energy_j"]
        assert term["energy_per_token_j"] == pytest.approx(both / MICRO["num_tokens"])
        assert 0 < term["radio_energy_j"] < 8 * 10.2 * block_s


def test_the_reward_weighs_by_name_and_others_stay_without():
    _, plain = play(reward="latency_quality", quality_weight=7.0)
    _, weighed = play(reward="latency_quality_energy", quality_weight=7.0, energy_weight=3.0)
    assert "device_energy_j" not in plain[0][1]["reward_terms"]
    for (less, _), (reward, info) in zip(plain, weighed, strict=True):
        assert reward == pytest.approx(less - 3.0 * info["reward_terms"]["energy_per_token_j"])


def test_three_objectives_are_asked_for():
    env = gym.make("wdmoe_env:WDMoE-MO-v0", energy=True, **MICRO)
    env.reset(seed=0)
    _, reward, _, _, info = env.step(env.action_space.sample())
    assert reward.shape == (3,)
    assert reward in env.unwrapped.reward_space
    assert reward[2] == -info["reward_terms"]["energy_per_token_j"]


def test_a_device_of_unknown_power_is_refused():
    with pytest.raises(ValueError, match="known power, idle and active, to count energy, got profile 'iphone-15-pro'"):
        gym.make("wdmoe_env:WDMoE-v0", energy=True, devices={"profiles": ("iphone-15-pro",)}, **MICRO)
    with pytest.raises(TypeError, match="energy must be a bool, got 1"):
        EnvConfig(energy=1)
