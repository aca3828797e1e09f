"""Sionna's channels as ours: the statistics of each model, and whose random numbers they are."""

from __future__ import annotations

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy import special, stats

pytest.importorskip("sionna", reason="pip install 'wdmoe-env[sionna]'")

from sionna.phy import config
from sionna.phy.channel import cir_to_ofdm_channel
from sionna.phy.channel.tr38901 import TDL

from wdmoe_env.config import ChannelConfig, DeviceConfig
from wdmoe_env.physics.channel import Channel
from wdmoe_env.physics.path_loss import path_loss_db
from wdmoe_env.radio.sionna import MODELS, band_root

CARRIER_HZ, SINUSOIDS = 3.5e9, 20
LOSS_DB = path_loss_db("free_space", np.array([100.0]), CARRIER_HZ)[0]


def generators(count, seed=0):
    return [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(count)]


def channel_of(source, devices, num_blocks, speed_mps=0.83, **fields):
    """A channel of free space at 100 m, so that all that varies is the fading."""
    radio = ChannelConfig(source=source, path_loss="free_space", **fields)
    return Channel(radio, DeviceConfig(count=devices, distances_m=(100.0,) * devices, speed_mps=speed_mps), num_blocks)


def powers(source, num_blocks=1, devices=4000, episodes=10, **fields):
    """(I, episodes x devices) power gains of unit mean."""
    gain = channel_of(source, devices, num_blocks, **fields).sample(generators(episodes)).gain
    return gain.reshape(num_blocks, -1) * 10 ** (LOSS_DB / 10)


@pytest.mark.parametrize("model", MODELS)
def test_the_power_has_unit_mean_and_is_positive(model):
    power = powers(f"sionna:{model}", num_blocks=2, devices=500)
    assert power.min() > 0
    assert power.mean() == pytest.approx(1.0, abs=4 * power.std() / np.sqrt(power[0].size))


# What Sionna calls Rayleigh block fading is ours at a Doppler shift that leaves nothing from block to block; a TDL
# without delay spread is ours at the same one: its taps add up to one Rayleigh gain.
FLAT = {"block fading": ("sionna:rayleigh", {}), "tapped": ("sionna:tdl-a", {"delay_spread_s": 0.0})}


@pytest.mark.parametrize("name", FLAT)
def test_a_flat_channel_has_the_moments_and_the_law_of_ours(name):
    source, fields = FLAT[name]
    power, ours = powers(source, **fields)[0], powers("statistical")[0]
    assert power.mean() == pytest.approx(1.0, abs=0.02)
    assert np.square(power).mean() == pytest.approx(2.0, rel=0.04)
    assert stats.kstest(power, "expon").pvalue > 0.01
    assert stats.ks_2samp(power, ours).pvalue > 0.01


@pytest.mark.parametrize("speed_mps", [0.0, 0.3, 0.83])
def test_a_flat_tapped_channel_has_the_autocorrelation_of_ours(speed_mps):
    fields = {"num_blocks": 6, "devices": 1000, "speed_mps": speed_mps}
    sionna, ours = (np.corrcoef(powers(*source, **fields))[0] for source in (("sionna:tdl-a",), ("statistical",)))
    flat = np.corrcoef(powers("sionna:tdl-a", delay_spread_s=0.0, **fields))[0]
    # f_d = v f / c; the power of a complex Gaussian gain correlates as the square of the gain's J0.
    theory = special.j0(2 * np.pi * speed_mps * CARRIER_HZ / 299_792_458 * 0.02 * np.arange(6)) ** 2
    for measured in (flat, ours):
        np.testing.assert_allclose(measured, theory, atol=0.04)
    np.testing.assert_allclose(sionna, theory, atol=0.06)  # a spread over delays averages over taps of the same law


def test_block_fading_leaves_nothing_from_block_to_block():
    correlation = np.corrcoef(powers("sionna:rayleigh", num_blocks=4, speed_mps=0.0))
    np.testing.assert_allclose(correlation, np.eye(4), atol=0.02)


@pytest.mark.parametrize("source", ["sionna:tdl-c", "sionna:cdl-c"])
def test_without_time_between_blocks_the_gain_stays(source):
    power = powers(source, num_blocks=3, devices=10, block_interval_s=0.0)
    np.testing.assert_allclose(power, np.broadcast_to(power[0], power.shape))


def variance_over(profile, delay_spread_s, bandwidth_hz):
    """Of the power's mean over the band: sums of p p sinc^2, the line of sight twice, less what few sinusoids lack."""
    model = TDL(profile, delay_spread_s, CARRIER_HZ, num_sinusoids=SINUSOIDS, precision="double", device="cpu")
    delays, power = model.delays.numpy(), model.mean_powers.numpy().copy()
    sight = float(model.mean_power_los) if model.los else 0.0
    power[0] -= sight
    overlap = np.sinc(bandwidth_hz * np.subtract.outer(delays, delays)) ** 2
    return power @ overlap @ power + 2 * sight * overlap[0] @ power - np.square(power).sum() / SINUSOIDS


@pytest.mark.parametrize("bandwidth_hz", [1e6, 20e6, 100e6])
@pytest.mark.parametrize("profile", "abcde")
def test_a_wide_band_varies_as_little_as_theory_has_it(profile, bandwidth_hz):
    measured = powers(f"sionna:tdl-{profile}", bandwidth_hz=bandwidth_hz)[0].var()
    assert measured == pytest.approx(variance_over(profile.upper(), 100e-9, bandwidth_hz), rel=0.08)


def test_a_wide_band_varies_less_than_a_flat_channel():
    wide, flat = (powers("sionna:tdl-a", delay_spread_s=spread)[0].var() for spread in (100e-9, 0.0))
    assert wide < 0.3 * flat


def test_the_gain_is_the_mean_over_sionnas_own_subcarriers():
    model = TDL("A", 100e-9, CARRIER_HZ, precision="double", device="cpu")
    amplitudes, delays = model(5, 2, 50.0)
    frequencies = torch.linspace(-50e6, 50e6, 20_001, dtype=torch.float64)
    response = cir_to_ofdm_channel(frequencies, amplitudes, delays)
    paths = amplitudes[:, 0, 0, 0, 0].numpy()
    ours = np.square(np.abs(band_root(delays[0, 0, 0].numpy(), 100e6) @ paths)).sum(axis=1)
    np.testing.assert_allclose(ours, response.abs().square().mean(-1)[:, 0, 0, 0, 0].numpy(), rtol=2e-3)


@pytest.mark.parametrize("model", ["rayleigh", "tdl-d", "cdl-a"])
def test_a_row_depends_on_its_own_generator_alone(model):
    channel = Channel(ChannelConfig(source=f"sionna:{model}"), DeviceConfig(mobility="gauss_markov"), num_blocks=3)
    batch, again, other = (channel.sample(generators(4, seed)).full_band_snr for seed in (0, 0, 1))
    np.testing.assert_array_equal(batch, again)
    assert not np.isclose(batch, other).any()
    for row, generator in enumerate(generators(4)):
        np.testing.assert_allclose(channel.sample([generator]).full_band_snr[:, 0], batch[:, row], rtol=1e-12)
    (generator,) = generators(1)
    assert not np.isclose(*(channel.sample([generator]).full_band_snr for _ in range(2))).any()


def test_the_generators_of_torch_and_of_sionna_stay_as_they_were():
    channel = Channel(ChannelConfig(source="sionna:cdl-d"), DeviceConfig(), num_blocks=2)
    before = torch.random.get_rng_state(), config.torch_rng("cpu").get_state()
    channel.sample(generators(2))
    Channel(ChannelConfig(source="sionna:tdl-d"), DeviceConfig(), num_blocks=2)
    after = torch.random.get_rng_state(), config.torch_rng("cpu").get_state()
    assert all(map(torch.equal, before, after))
    assert config.precision == "single"


def test_importing_sionna_leaves_torchs_generator_as_it_was():
    code = (
        "import torch; torch.manual_seed(3); expected = torch.random.get_rng_state()\n"
        "from wdmoe_env.config import ChannelConfig, DeviceConfig\n"
        "from wdmoe_env.physics.channel import check_channel\n"
        "check_channel(ChannelConfig(source='sionna:tdl-a'), DeviceConfig())\n"
        "print(torch.equal(expected, torch.random.get_rng_state()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True"]


def test_path_loss_shadowing_and_places_are_those_of_ours():
    radio = {"path_loss": "uma_nlos", "shadowing_std_db": 5.0}
    devices = DeviceConfig(mobility="gauss_markov", speed_mps=10.0)
    sionna, ours = (
        Channel(ChannelConfig(**radio, **source), devices, 4).sample(generators(500))
        for source in ({"source": "sionna:tdl-e"}, {"fading": "none"})
    )
    np.testing.assert_array_equal(sionna.distance_m, ours.distance_m)
    ratio = sionna.gain / ours.gain
    assert ratio.mean() == pytest.approx(1.0, abs=0.01)
    assert ratio.std() < 0.2  # nearly all line of sight, over a wide band


@pytest.mark.parametrize("make", [gym.make, lambda name, **keywords: gym.make_vec(name, num_envs=2, **keywords)])
def test_the_environment_runs_on_it(make, micro):
    env = make("wdmoe_env:WDMoE-v0", **micro, channel={"source": "sionna:tdl-a", "bandwidth_hz": 20e6})
    first, again, other = (env.reset(seed=seed)[0]["unit_latency"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.isclose(first, other).any()
    assert np.isfinite(env.step(env.action_space.sample())[1]).all()
