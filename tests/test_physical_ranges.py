"""Configurations at the ends of their ranges: refused at the start, or finite from the channel to the rules."""

from __future__ import annotations

from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wdmoe_env.config import (
    CHANNEL_RANGES,
    ChannelConfig,
    ComputeModel,
    DeploymentConfig,
    DeviceConfig,
    Fading,
    PathLoss,
)
from wdmoe_env.observations import Block, Sizes, decode_observation, encode_observation, observation_space
from wdmoe_env.optimize.bandwidth import min_max_bandwidth
from wdmoe_env.physics.channel import LEAST_SNR, MOST_SNR, Channel, check_channel
from wdmoe_env.physics.compute import device_times_s
from wdmoe_env.physics.latency import block_latency_s, device_latency_s, device_load, equal_shares, wlr_device_per_ms
from wdmoe_env.policies import rules
from wdmoe_env.rollout.rollout import Radio

BLOCKS, EPISODES, TOKENS = 2, 2, 4


def within(least, most):
    """Numbers of a range, its ends as often as what lies between, at any scale."""
    between = st.floats(least, most)
    if least > 0:
        between |= st.floats(np.log10(least), np.log10(most)).map(lambda e: float(np.clip(10.0**e, least, most)))
    return st.sampled_from([least, most]) | between


@st.composite
def radios(draw):
    fields = {name: draw(within(*ends)) for name, ends in CHANNEL_RANGES.items()}
    fields["nakagami_m"] = np.round(2 * min(fields["nakagami_m"], 5.0)) / 2  # its cost grows with it, its tails do not
    fields["shadowing_std_db"] = draw(st.none() | within(*CHANNEL_RANGES["shadowing_std_db"]))
    usual = draw(st.sets(st.sampled_from(sorted(fields))))  # all at their extremes together leave hardly a signal
    fields = {name: value for name, value in fields.items() if name not in usual}
    path_loss, fading = draw(st.sampled_from(get_args(PathLoss))), draw(st.sampled_from(get_args(Fading)))
    return ChannelConfig(path_loss=path_loss, fading=fading, **fields)


@st.composite
def fleets(draw):
    count = draw(st.integers(1, 3))
    distances = st.lists(within(1e-3, 1e9) | within(1.0, 1e4), min_size=count, max_size=count)
    ring = sorted(draw(st.tuples(within(1e-3, 1e9), within(1.0, 1e4))))
    return DeviceConfig(
        count=count,
        utilization=draw(within(1e-6, 1.0)),
        compute_model=draw(st.sampled_from(get_args(ComputeModel))),
        memory_efficiency=draw(within(1e-6, 1.0)),
        speed_mps=draw(within(0.0, 1e5)),
        mobility_memory=draw(within(0.0, 1.0)),
        mobility=draw(st.sampled_from(["static", "gauss_markov"])),
        distance_range_m=ring,
        distances_m=draw(st.none() | distances),
    )


DEPLOYMENTS = st.builds(
    DeploymentConfig,
    hidden_size=st.sampled_from([1, 4096, 2**20]),
    intermediate_size=st.sampled_from([1, 14336, 2**24]),
    link_bits=st.sampled_from([16, 8, 4]),
    weight_bits=st.sampled_from([0.5, 4.5, 16, 64]),
)


def first_block(channel, devices, deployment, seed):
    """What a policy sees of the first block on a channel, without a model."""
    generators = [np.random.default_rng([seed, n]) for n in range(EPISODES)]
    trace = Channel(channel, devices, BLOCKS).sample(generators)
    assert (trace.full_band_snr >= LEAST_SNR).all()
    assert (trace.full_band_snr <= MOST_SNR).all()
    experts = devices.count
    placement = np.broadcast_to(np.eye(experts), (BLOCKS, experts, experts))
    compute_s, weights_s = device_times_s(devices, deployment)
    payload_s = deployment.payload_bits / channel.bandwidth_hz
    world = SimpleNamespace(payload_s=payload_s, compute_s=compute_s, placement=placement, weights_s=weights_s)
    radio = Radio.of(world, trace.full_band_snr)
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(experts), (EPISODES, TOKENS))
    routed = probs >= np.sort(probs, axis=-1)[..., [-min(2, experts)]]
    return Block(
        gate_probs=probs,
        routed=routed,
        token_mask=np.ones((EPISODES, TOKENS), dtype=bool),
        links=radio.conditions[0].links,
        spectral_efficiency=radio.spectral_efficiency[0],
        unit_latency_s=radio.conditions[0].unit_latency_s,
        index=np.zeros(EPISODES),
    )


def refusal(channel, devices):
    """Why a channel is refused, or nothing."""
    try:
        check_channel(channel, devices)
    except ValueError as error:
        return str(error)
    return ""


RULES = [rules.vanilla, rules.vanilla_optimal, rules.top1, rules.greedy, rules.wdmoe, rules.wdmoe_selection]
RULES += [rules.marginal_price, rules.fractional]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(channel=radios(), devices=fleets(), deployment=DEPLOYMENTS, seed=st.integers(0, 2**31))
def test_what_is_not_refused_at_the_start_is_finite_to_the_end(channel, devices, deployment, seed):
    if message := refusal(channel, devices):
        assert "must leave a signal-to-noise ratio from -250 to 280 dB" in message
        return
    block = first_block(channel, devices, deployment, seed)
    sizes = Sizes(TOKENS, devices.count, devices.count, BLOCKS, hidden_size=1)
    observation = encode_observation(block)
    for n in range(EPISODES):
        assert observation_space(sizes).contains({name: value[n] for name, value in observation.items()})
    seen = decode_observation(observation)
    for rule in RULES:
        selection, shares = rule(seen)
        np.testing.assert_allclose(shares.sum(axis=-1), 1.0, err_msg=rule.__name__)
        assert np.isfinite(shares).all()
        latency = device_latency_s(block.links, device_load(selection, block.links), np.maximum(shares, 1e-12))
        assert np.isfinite(latency).all()
        assert (block_latency_s(latency) > 0).all()
        assert np.isfinite(wlr_device_per_ms(np.ones_like(latency), latency)).all()
    exact = min_max_bandwidth(block.links, device_load(block.routed, block.links), 1e-12)
    equal = device_latency_s(block.links, device_load(block.routed, block.links), equal_shares(EPISODES, devices.count))
    assert (exact.latency_s <= block_latency_s(equal) * (1 + 1e-9)).all()


@pytest.mark.parametrize(
    ("channel", "devices"),
    [
        ({}, {}),
        ({"noise_dbm_per_hz": -300.0}, {}),
        ({"base_station_power_w": 1e6, "device_power_w": 1e-9}, {}),
        ({"path_loss": "log_distance", "path_loss_exponent": 10.0}, {}),
        ({"path_loss": "uma_nlos", "carrier_hz": 3e12}, {"distance_range_m": (10.0, 5000.0)}),
        ({"bandwidth_hz": 1.0}, {}),
        ({"shadowing_std_db": 30.0, "fading": "nakagami", "nakagami_m": 0.5}, {}),
        ({"path_loss": "free_space"}, {"distances_m": (3.6e7,) * 8}),  # a geostationary satellite
    ],
)
def test_what_a_radio_can_have_is_taken(channel, devices):
    check_channel(ChannelConfig(**channel), DeviceConfig(**devices))


@pytest.mark.parametrize(
    ("channel", "devices"),
    [
        ({"noise_dbm_per_hz": 0.0, "bandwidth_hz": 1e12, "device_power_w": 1e-9, "path_loss": "umi_nlos"}, {}),
        ({"noise_dbm_per_hz": -300.0, "base_station_power_w": 1e6, "bandwidth_hz": 1.0}, {}),
        ({"path_loss": "log_distance", "path_loss_exponent": 10.0}, {"distances_m": (1e9,) * 8}),
        ({"path_loss": "log_distance", "path_loss_exponent": 10.0}, {"distance_range_m": (1.0, 1e6)}),
    ],
)
def test_a_link_budget_that_no_radio_has_is_one_sentence(channel, devices):
    message = r"must leave a signal-to-noise ratio from -250 to 280 dB, got -?\d+ to -?\d+ dB"
    with pytest.raises(ValueError, match=message) as caught:
        check_channel(ChannelConfig(**channel), DeviceConfig(**devices))
    assert "\n" not in str(caught.value)
