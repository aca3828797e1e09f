"""Imperfect knowledge of the channel: what is observed is old or off, and latency is of what is true."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from wdmoe_env.config import ChannelConfig, DeviceConfig
from wdmoe_env.physics import latency
from wdmoe_env.physics.channel import LEAST_SNR, MOST_SNR, Channel
from wdmoe_env.physics.knowledge import observed_snr
from wdmoe_env.policies import make_policy
from wdmoe_env.relaxed import Draw, relaxed_block

FAST = {"speed_mps": 15.0}
"""Within the 20 ms of a block the fading forgets itself."""


def episode(seed, policy="vanilla-optimal", env_id="v0", **keywords):
    """Observations and infos of an episode of the small model."""
    env = gym.make(f"wdmoe_env:WDMoE-{env_id}", model="micro", num_tokens=8, **keywords).unwrapped
    seen, infos, ended = [env.reset(seed=seed)[0]], [], False
    acting = make_policy(policy, env)
    while not ended:
        observation, _, ended, _, info = env.step(acting.predict(seen[-1])[0])
        seen.append(observation)
        infos.append(info)
    return seen[:-1], infos


def test_an_estimate_is_as_old_and_as_wrong_as_is_asked():
    """By hand: gamma / B of 10, 20, 40 in three blocks, errors of 3, 0 and -10 dB, one block late."""
    snr = np.array([10.0, 20.0, 40.0])[:, None, None, None] * np.ones((1, 1, 2, 1))
    errors_db = np.array([3.0, 0.0, -10.0])[:, None, None]
    late = observed_snr(ChannelConfig(csi_delay=1), snr, None, LEAST_SNR, MOST_SNR)
    assert late[:, 0, 0, 0].tolist() == [10.0, 10.0, 20.0]
    off = observed_snr(ChannelConfig(csi_error_db=5.0), snr, errors_db, LEAST_SNR, MOST_SNR)
    np.testing.assert_allclose(off[:, 0, 1, 0], [19.952623, 20.0, 4.0])
    both = observed_snr(ChannelConfig(csi_delay=1, csi_error_db=5.0), snr, errors_db, LEAST_SNR, MOST_SNR)
    np.testing.assert_allclose(both[:, 0, 0, 0], [19.952623, 19.952623, 20.0])
    never = observed_snr(ChannelConfig(csi_delay=100), snr, None, LEAST_SNR, MOST_SNR)
    assert never[:, 0, 0, 0].tolist() == [10.0] * 3
    assert observed_snr(ChannelConfig(), snr, None, LEAST_SNR, MOST_SNR) is None


def test_errors_have_their_deviation_and_move_nothing_else():
    seeds = [np.random.default_rng(seed) for seed in range(500)]
    others = [np.random.default_rng(seed) for seed in range(500)]
    off = Channel(ChannelConfig(csi_error_db=3.0), DeviceConfig(), 6)
    trace, perfect = off.sample(seeds), Channel(ChannelConfig(), DeviceConfig(), 6).sample(others)
    np.testing.assert_array_equal(trace.full_band_snr, perfect.full_band_snr)
    errors_db = 10 * np.log10(trace.observed_snr / trace.full_band_snr)
    np.testing.assert_allclose(errors_db[:, :, 0], errors_db[:, :, 1], atol=1e-9)
    assert errors_db.std() == pytest.approx(3.0, rel=0.02)
    assert errors_db.mean() == pytest.approx(0.0, abs=0.05)
    assert np.corrcoef(errors_db[0, :, 0].ravel(), errors_db[1, :, 0].ravel())[0, 1] == pytest.approx(0.0, abs=0.05)
    assert off.sample(seeds).gain[0, 0, 0] == Channel(ChannelConfig(), DeviceConfig(), 6).sample(others).gain[0, 0, 0]
    whole = off.longer().sample([np.random.default_rng(7)]).of_pass(0, 6)
    np.testing.assert_array_equal(whole.observed_snr, off.sample([np.random.default_rng(7)]).observed_snr)


def test_what_is_observed_is_old_and_latency_is_true():
    """The observation of a block is that of the block before under full knowledge; the own routing takes as long."""
    now, own = episode(3, policy="vanilla", devices=FAST)
    old, late = episode(3, policy="vanilla", devices=FAST, channel={"csi_delay": 1})
    for name in ("spectral_efficiency", "unit_latency"):
        np.testing.assert_array_equal(old[0][name], now[0][name])
        for block in range(1, len(now)):
            np.testing.assert_array_equal(old[block][name], now[block - 1][name])
            assert not np.array_equal(old[block][name], now[block][name])
    np.testing.assert_array_equal(old[-1]["compute_latency"], now[-1]["compute_latency"])
    for one, other in zip(own, late, strict=True):
        assert other["block_latency_ms"] == one["block_latency_ms"]
        assert other["reward_terms"]["latency_ratio"] == 1.0


@pytest.mark.parametrize("env_id", ["v0", "Selection-v0"])
@pytest.mark.parametrize("radio", [{"csi_delay": 1}, {"csi_error_db": 3.0}])
def test_shares_are_solved_for_what_is_observed(env_id, radio):
    """In a selection id too; measured here by equation (6) on the channel that is."""
    seen, infos = episode(3, env_id=env_id, devices=FAST, channel=radio)
    truth, best = episode(3, env_id=env_id, devices=FAST)
    for block in range(1, len(seen)):
        shares = infos[block]["shares"]
        efficiency = truth[block]["spectral_efficiency"].astype(np.float64)
        snr = np.expm1(efficiency * np.log(2.0)) / 8
        inverse = (1 / efficiency).sum(axis=0)
        payload = truth[block]["unit_latency"].astype(np.float64) / (8 * inverse)
        loaded = infos[block]["load"] > 0
        radio_ms = payload / np.where(loaded, shares, 1) * (1 / np.log2(1 + snr / np.where(loaded, shares, 1))).sum(0)
        expected = infos[block]["load"] * (radio_ms + truth[block]["compute_latency"])
        np.testing.assert_allclose(infos[block]["device_latency_ms"], expected, rtol=1e-4)
        assert infos[block]["block_latency_ms"] > best[block]["block_latency_ms"]
        assert np.ptp(infos[block]["device_latency_ms"][loaded]) > 0.05 * best[block]["block_latency_ms"]


def test_the_relaxed_latency_is_the_true_one():
    env = gym.make("wdmoe_env:WDMoE-v0", model="micro", num_tokens=8, devices=FAST, channel={"csi_error_db": 3.0})
    observation, _ = env.reset(seed=3)
    block = env.unwrapped._rollout.block
    used = torch.from_numpy(block.routed)
    relaxed = relaxed_block(block, Draw(used, used.float(), used), 1e-3)
    info = env.step(make_policy("vanilla-optimal", env).predict(observation)[0])[4]
    assert relaxed.latency_ms.item() == pytest.approx(info["block_latency_ms"], rel=1e-4)
    assert relaxed.vanilla_latency_ms.item() == pytest.approx(info["reward_terms"]["vanilla_latency_ms"], rel=1e-5)


@pytest.mark.parametrize("radio", [{"csi_delay": -1}, {"csi_delay": 1.5}, {"csi_error_db": -0.1}, {"csi_error_db": 31}])
def test_wrong_settings_are_refused(radio):
    (name,) = radio
    with pytest.raises(ValueError, match=f"{name} must be .* got"):
        ChannelConfig(**radio)


def test_estimates_stay_within_what_a_radio_can_have():
    generators = [np.random.default_rng(0)]
    trace = Channel(ChannelConfig(csi_error_db=30.0), DeviceConfig(count=400), 4).sample(generators)
    efficiency = latency.spectral_efficiency(trace.observed_snr, latency.equal_shares(1, 400))
    assert np.isfinite(efficiency).all()
    assert efficiency.max() <= 128.0
