"""Device profiles and effective FLOP/s."""

from __future__ import annotations

import numpy as np
import pytest

from wdmoe_env.config import DeploymentConfig, DeviceConfig, EnvConfig
from wdmoe_env.physics.compute import (
    DEVICE_PROFILES,
    device_flops,
    device_memory_bytes_per_s,
    device_times_s,
)


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        # NVIDIA's own round figures for FP16 where it states them.
        ("jetson-tx2", 1.33),
        ("jetson-nano", 0.472),
        # Twice the 5.3 FP32 TFLOPs of the AGX Orin technical brief.
        ("jetson-agx-orin-64gb", 10.6),
        ("raspberry-pi-5", 0.307),
    ],
)
def test_peaks_are_the_published_round_figures(name, teraflops):
    assert DEVICE_PROFILES[name].peak_flops / 1e12 == pytest.approx(teraflops, rel=0.005)


def test_every_profile_names_its_source():
    for name, profile in DEVICE_PROFILES.items():
        assert profile.name == name
        assert profile.peak_flops > 0
        assert len(profile.source) > 40
        assert len(profile.memory_source) > 20
        assert profile.power_source
        assert 0 < profile.usable_memory_bytes < profile.memory_bytes
        assert (profile.idle_power_w or 1.0) < (profile.active_power_w or 2.0)


def test_default_devices_have_profiles():
    flops = device_flops(DeviceConfig())
    assert flops.shape == (8,)
    assert flops[0] == pytest.approx(0.5 * 10.6496e12)


def test_profiles_repeat_until_every_device_has_one():
    devices = DeviceConfig(count=5, profiles=("jetson-tx2", "jetson-nano"), utilization=0.25)
    tx2, nano = 0.25 * 1.3312e12, 0.25 * 0.471552e12
    np.testing.assert_allclose(device_flops(devices), [tx2, nano, tx2, nano, tx2])
    assert device_flops(DeviceConfig(count=1, profiles=("jetson-tx2", "jetson-nano"))).shape == (1,)


def test_boards_read_weights_at_their_memory_bandwidth():
    boards = EnvConfig.make(devices="boards").devices
    # 60 % of 204.8 GB/s.
    assert device_memory_bytes_per_s(boards)[0] == pytest.approx(122.88e9)
    compute_s, weights_s = device_times_s(boards, DeploymentConfig())
    np.testing.assert_array_equal(compute_s, DeploymentConfig().expert_flops / device_flops(boards))
    # Mixtral's 352,321,536 bytes an expert: 2.8672 ms on the first, 8.63533 ms on the Orin Nano (68 GB/s).
    np.testing.assert_allclose(1e3 * weights_s[[0, 4]], [2.8672, 8.63533176], rtol=1e-8)
    np.testing.assert_allclose(device_times_s(boards, DeploymentConfig(weight_bits=4))[1], weights_s / 4)
    assert device_times_s(DeviceConfig(), DeploymentConfig())[1] is None


def test_unknown_profile_names_the_nearest():
    with pytest.raises(ValueError, match="unknown device profile 'jetson-tx3'; the nearest known are jetson-tx2"):
        device_flops(DeviceConfig(profiles=("jetson-nano", "jetson-tx3")))
