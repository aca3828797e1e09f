"""Placement over the ring and Gauss-Markov mobility."""

from __future__ import annotations

import numpy as np
import pytest

from wdmoe_env.config import DeviceConfig
from wdmoe_env.physics.mobility import gauss_markov_positions_m, initial_positions_m, ring_m

DEVICES = 200_000
WIDE = {"distance_range_m": (1.0, 1e9), "count": DEVICES}


def moving(devices, num_blocks, interval_s=1.0, seed=0, start=(1e6, 0.0)):
    normals = np.random.default_rng(seed).standard_normal((num_blocks, devices.count, 2))
    return gauss_markov_positions_m(devices, np.broadcast_to(start, (devices.count, 2)), normals, interval_s)


def test_devices_are_placed_uniformly_over_the_area():
    devices = DeviceConfig(count=DEVICES, distance_range_m=(50.0, 200.0))
    position = initial_positions_m(devices, np.random.default_rng(0).random((2, DEVICES)))
    distance = np.linalg.norm(position, axis=-1)
    assert distance.min() >= 50.0
    assert distance.max() <= 200.0
    for radius in (80.0, 125.0, 170.0):
        area = (radius**2 - 50.0**2) / (200.0**2 - 50.0**2)
        assert (distance < radius).mean() == pytest.approx(area, abs=0.005)
    for quadrant in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        assert (position * quadrant > 0).all(axis=-1).mean() == pytest.approx(0.25, abs=0.005)


def test_fixed_distances_leave_the_angle_free():
    devices = DeviceConfig(count=3, distances_m=(30.0, 60.0, 300.0))
    position = initial_positions_m(devices, np.random.default_rng(0).random((1000, 2, 3)))
    np.testing.assert_allclose(np.linalg.norm(position, axis=-1), np.broadcast_to([30.0, 60.0, 300.0], (1000, 3)))
    assert abs(position.mean(axis=0)).max() < 0.1 * 300
    assert ring_m(devices) == (20.0, 300.0)


def test_stationary_speed_and_memory():
    devices = DeviceConfig(speed_mps=10.0, mobility_memory=0.8, **WIDE)
    velocity = np.diff(moving(devices, 7), axis=0)
    rms = np.sqrt(np.square(velocity).sum(axis=-1).mean(axis=-1))
    np.testing.assert_allclose(rms, 10.0, rtol=0.01)
    correlation = (velocity * velocity[0]).sum(axis=-1).mean(axis=-1) / 10.0**2
    np.testing.assert_allclose(correlation, 0.8 ** np.arange(6), atol=0.01)


@pytest.mark.parametrize("memory", [0.0, 1.0])
def test_memory_from_random_walk_to_straight_line(memory):
    devices = DeviceConfig(speed_mps=10.0, mobility_memory=memory, **WIDE)
    first, second = np.diff(moving(devices, 3), axis=0)
    if memory == 1.0:
        np.testing.assert_allclose(first, second, atol=1e-6)
    else:
        assert (first * second).sum(axis=-1).mean() / 10.0**2 == pytest.approx(0.0, abs=0.01)


def test_first_block_is_the_start_and_the_interval_scales_the_steps():
    devices = DeviceConfig(speed_mps=10.0, **WIDE)
    slow, fast = moving(devices, 3, interval_s=0.5), moving(devices, 3, interval_s=1.0)
    np.testing.assert_array_equal(slow[0], np.broadcast_to((1e6, 0.0), slow[0].shape))
    np.testing.assert_allclose(fast - fast[0], 2 * (slow - slow[0]), atol=1e-6)


def test_a_device_is_mirrored_at_the_edges():
    # 3 m/s outwards from 199 m: over the edge at 200 m to 202, so 198, then inwards; the other goes 3 m/s inwards
    # from 51 m: over the inner edge at 50 m to 48, so 52, then outwards.
    devices = DeviceConfig(
        count=2, speed_mps=3 * np.sqrt(2), mobility_memory=1.0, distance_range_m=(50.0, 200.0), mobility="gauss_markov"
    )
    normals = np.zeros((3, 2, 2))
    normals[0] = [[1.0, 0.0], [-1.0, 0.0]]
    position = gauss_markov_positions_m(devices, np.array([[199.0, 0.0], [51.0, 0.0]]), normals, 1.0)
    np.testing.assert_allclose(position[:, 0, 0], [199.0, 198.0, 195.0])
    np.testing.assert_allclose(position[:, 1, 0], [51.0, 52.0, 55.0])
    assert not position[..., 1].any()


@pytest.mark.parametrize("ring", [(50.0, 200.0), (80.0, 80.0)])
@pytest.mark.parametrize("speed_mps", [5.0, 1000.0])
def test_devices_stay_within_the_ring(ring, speed_mps):
    devices = DeviceConfig(count=1000, speed_mps=speed_mps, distance_range_m=ring)
    distance = np.linalg.norm(moving(devices, 50, start=(ring[0], 0.0)), axis=-1)
    assert distance.min() >= ring[0] - 1e-9
    assert distance.max() <= ring[1] + 1e-9
