"""Rates and latencies against a scalar calculation in Hz and bit/s, written from design equations (3) to (7)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from wdmoe_env.physics import latency
from wdmoe_env.physics.latency import BlockLinks

BANDWIDTH_HZ, PAYLOAD_BITS, EXPERT_FLOPS = 20e6, 4096.0, 3e6


def case(seed=0, batch=3, tokens=5, experts=6, devices=3):
    """Links, selection and shares of a random block, two experts a device on average."""
    generator = np.random.default_rng(seed)
    home = np.stack([generator.permutation(np.arange(experts) % devices) for _ in range(batch)])
    links = BlockLinks(
        full_band_snr=10 ** generator.uniform(-1, 4, (batch, 2, devices)),
        payload_s=np.full(batch, PAYLOAD_BITS / BANDWIDTH_HZ),
        compute_s=EXPERT_FLOPS / generator.uniform(1e9, 1e11, (batch, devices)),
        placement=np.eye(devices)[home],
    )
    selection = generator.random((batch, tokens, experts)) < 0.4
    shares = generator.dirichlet(np.ones(devices), batch)
    return links, selection, shares


def scalar_device_latencies(links, selection, shares, row):
    """(5) and (6) with loops, rates in bit/s from gamma in Hz."""
    tokens, experts = selection[row].shape
    devices = links.num_devices
    home = links.placement[row].argmax(axis=-1)
    total = [0.0] * devices
    for u in range(devices):
        band = shares[row, u] * BANDWIDTH_HZ
        gammas = links.full_band_snr[row, :, u] * BANDWIDTH_HZ
        crossing = sum(PAYLOAD_BITS / (band * math.log2(1 + gamma / band)) for gamma in gammas)
        for j in range(tokens):
            held = sum(bool(selection[row, j, e]) for e in range(experts) if home[e] == u)
            if held:
                total[u] += crossing + held * links.compute_s[row, u]
    return total


def test_carrier_to_noise():
    # 10 W = 40 dBm through 90 dB over -174 dBm/Hz: 40 - 90 + 174 = 124 dB Hz.
    assert 10 * np.log10(latency.carrier_to_noise_hz(np.array([1e-9]), 10.0, -174.0)) == pytest.approx(124.0)


def test_rate_is_shannons_in_bits_per_second():
    # gamma / B = 3 on a quarter of the band: log2(1 + 12); on the whole band: log2(4) = 2.
    snr = np.array([[[3.0, 3.0], [3.0, 3.0]]])
    efficiency = latency.spectral_efficiency(snr, np.array([[0.25, 1.0]]))
    np.testing.assert_allclose(efficiency, np.broadcast_to([math.log2(13.0), 2.0], (1, 2, 2)))


@pytest.mark.parametrize("seed", range(5))
def test_device_and_block_latency(seed):
    links, selection, shares = case(seed)
    measured = latency.device_latency_s(links, latency.device_load(selection, links), shares)
    expected = [scalar_device_latencies(links, selection, shares, row) for row in range(len(shares))]
    np.testing.assert_allclose(measured, expected, rtol=1e-12)
    np.testing.assert_allclose(latency.block_latency_s(measured), np.max(expected, axis=-1), rtol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_device_latency_sums_token_latencies(seed):
    links, selection, shares = case(seed)
    by_token = latency.token_latency_s(links, selection, shares)
    device = latency.device_latency_s(links, latency.device_load(selection, links), shares)
    np.testing.assert_allclose(by_token.sum(axis=-2), device)
    np.testing.assert_array_equal(by_token > 0, latency.experts_per_device(selection, links.placement) > 0)


def test_a_state_crosses_the_link_once_for_several_experts_of_a_device():
    # Three experts on device 0, one on device 1; the token uses two of device 0's.
    placement = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    selection = np.array([[[True, False, True, False]]])
    links = BlockLinks(np.full((1, 2, 2), 1.0), np.array([1e-3]), np.array([[5e-3, 7e-3]]), placement)
    load = latency.device_load(selection, links)
    np.testing.assert_array_equal(load.tokens, [[1.0, 0.0]])
    np.testing.assert_array_equal(load.experts, [[2.0, 0.0]])
    # At half the band: log2(1 + 1 / 0.5) = 1.584963 bit/s/Hz, so 2 x 1 ms / (0.5 x 1.584963) for one state both ways.
    crossing_s = 2e-3 / (0.5 * math.log2(3.0))
    device = latency.device_latency_s(links, load, np.array([[0.5, 0.5]]))
    np.testing.assert_allclose(device, [[crossing_s + 2 * 5e-3, 0.0]])


@pytest.mark.parametrize("seed", range(3))
def test_an_experts_weights_are_read_once_a_block(seed):
    """(5r) with loops: over the used experts of a device, the longer of computing and reading."""
    links, selection, shares = case(seed)
    weights_s = links.compute_s * np.random.default_rng(seed).uniform(0.5, 4.0, links.compute_s.shape)
    links = replace(links, weights_s=weights_s)
    measured = latency.device_latency_s(links, latency.device_load(selection, links), shares)
    home = links.placement.argmax(axis=-1)
    for row, u in np.ndindex(shares.shape):
        served = (selection[row] & (home[row] == u)).any(axis=-1).sum()
        counts = selection[row][:, home[row] == u].sum(axis=0)
        expected = served * latency.radio_latency_s(links, shares)[row, u]
        expected += sum(max(n * links.compute_s[row, u], weights_s[row, u]) for n in counts if n)
        assert measured[row, u] == pytest.approx(expected, rel=1e-12)


def test_limits_of_the_roofline():
    links, selection, shares = case()
    plain = latency.device_latency_s(links, latency.device_load(selection, links), shares)
    # A memory without end: equation (5), to the bit.
    endless = replace(links, weights_s=np.zeros_like(links.compute_s))
    np.testing.assert_array_equal(
        latency.device_latency_s(endless, latency.device_load(selection, endless), shares), plain
    )
    # One token an expert, and reading slower than computing: the weights' time for each used expert.
    slow = replace(links, weights_s=10.0 * links.compute_s)
    one = np.zeros_like(selection)
    one[:, 0] = selection[:, 0]
    load = latency.device_load(one, slow)
    radio = load.tokens * latency.radio_latency_s(slow, shares)
    device = latency.device_latency_s(slow, load, shares)
    np.testing.assert_allclose(device - radio, latency.experts_per_device(one, links.placement)[:, 0] * slow.weights_s)


def test_placement_may_differ_between_episodes_or_be_shared():
    links, selection, _ = case()
    shared = links.placement[0]
    np.testing.assert_array_equal(
        latency.experts_per_device(selection, shared),
        latency.experts_per_device(selection, np.broadcast_to(shared, links.placement.shape)),
    )


def test_no_bandwidth_is_infinite_for_a_loaded_device_and_nothing_for_an_idle_one():
    links = BlockLinks(np.full((1, 2, 3), 10.0), np.array([1e-3]), np.full((1, 3), 1e-3), np.eye(3))
    selection = np.array([[[True, True, False]]])
    shares = np.array([[0.0, 1.0, 0.0]])
    np.testing.assert_array_equal(np.isinf(latency.radio_latency_s(links, shares)), [[True, False, True]])
    device = latency.device_latency_s(links, latency.device_load(selection, links), shares)
    assert np.isinf(device[0, 0])
    assert 0 < device[0, 1] < np.inf
    assert device[0, 2] == 0.0
    assert np.isinf(latency.block_latency_s(device))
    np.testing.assert_array_equal(latency.token_latency_s(links, selection, shares)[0, 0, 2], 0.0)


def test_a_dead_link_is_infinite_without_a_warning():
    links = BlockLinks(np.zeros((1, 2, 1)), np.array([1e-3]), np.array([[1e-3]]), np.eye(1))
    assert np.isinf(latency.radio_latency_s(links, np.ones((1, 1))))


def test_more_bandwidth_is_faster_with_falling_returns():
    links, _, _ = case(batch=1, devices=1, experts=1)
    shares = np.linspace(0.05, 1.0, 50)
    radio = np.array([latency.radio_latency_s(links, np.array([[b]])).item() for b in shares])
    assert np.all(np.diff(radio) < 0)
    assert np.all(np.diff(radio, 2) > 0)


def test_equal_shares():
    np.testing.assert_array_equal(latency.equal_shares(2, 4), np.full((2, 4), 0.25))
