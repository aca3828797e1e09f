"""Observations hold the block's physics exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wdmoe_env.observations import Block, Sizes, decode_observation, encode_observation, observation_space
from wdmoe_env.physics.latency import (
    BlockLinks,
    device_latency_s,
    device_load,
    radio_latency_s,
    spectral_efficiency,
)

N, J, E, U = 3, 5, 6, 4
SIZES = Sizes(num_tokens=J, num_experts=E, num_devices=U, num_blocks=2, hidden_size=7)


def random_block(seed, snr_decades, roofline=False):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(E), size=(N, J))
    routed = probs >= np.sort(probs, axis=-1)[..., [-2]]
    placement = np.eye(U)[rng.integers(U, size=(N, E))]
    links = BlockLinks(
        full_band_snr=10.0 ** rng.uniform(*snr_decades, size=(N, 2, U)),
        payload_s=rng.uniform(1e-5, 1e-2, size=N),
        compute_s=rng.uniform(1e-6, 1e-1, size=(N, U)),
        placement=placement,
        weights_s=rng.uniform(1e-6, 1e-1, size=(N, U)) if roofline else None,
    )
    equal = np.full((N, U), 1.0 / U)
    return Block(
        gate_probs=probs,
        routed=routed,
        token_mask=np.ones((N, J), dtype=bool),
        links=links,
        spectral_efficiency=spectral_efficiency(links.full_band_snr, equal),
        unit_latency_s=radio_latency_s(links, equal),
        index=np.full(N, 0.5),
    )


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), low=st.floats(-3.0, 5.0), roofline=st.booleans())
def test_latencies_from_the_observation_are_the_true_ones(seed, low, roofline):
    block = random_block(seed, (low, low + 2.0), roofline)
    seen = decode_observation(encode_observation(block))
    shares = np.random.default_rng(seed).dirichlet(np.ones(U), size=N)
    load = device_load(block.routed, block.links)
    expected = device_latency_s(block.links, load, shares)
    again = device_load(block.routed, seen.links)
    np.testing.assert_allclose(device_latency_s(seen.links, again, shares), expected, rtol=2e-5)
    np.testing.assert_array_equal(seen.routed, block.routed)
    np.testing.assert_allclose(seen.weights, block.weights, rtol=1e-5)


def test_an_observation_without_the_time_of_weights_reads_none():
    observation = encode_observation(random_block(0, (0.0, 6.0)))
    assert not observation["weights_latency"].any()
    del observation["weights_latency"]
    assert decode_observation(observation).links.weights_s is None


def test_observations_are_in_their_space():
    observation = encode_observation(random_block(0, (0.0, 6.0)))
    space = observation_space(SIZES)
    for n in range(N):
        assert space.contains({name: value[n] for name, value in observation.items()})


def test_what_is_not_an_observation_is_refused():
    with pytest.raises(ValueError, match="without block, placement"):
        decode_observation({"gate_probs": np.zeros((1, J, E)), "spectral_efficiency": np.ones((1, 2, U))})
    single = {name: value[0] for name, value in encode_observation(random_block(0, (0.0, 6.0))).items()}
    with pytest.raises(ValueError, match=r"gate_probs of shape \(N, J, E\), got \(5, 6\)"):
        decode_observation(single)
