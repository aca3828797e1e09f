"""Random blocks for the tests of the optimizers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from wdmoe_env.physics.latency import BlockLinks, Bool, Float, Load, carrier_to_noise_hz, gate_weights

BANDWIDTH_HZ = 100e6
PAYLOAD_S = 4096 * 16 / BANDWIDTH_HZ
EXPERT_FLOPS = 6 * 4096 * 14336


def links_of(full_band_snr: Float, compute_s: Float, placement: Float | None = None) -> BlockLinks:
    """Links with the default payload; one expert per device unless placed."""
    batch, devices = compute_s.shape
    placement = np.eye(devices) if placement is None else placement
    return BlockLinks(full_band_snr, np.full(batch, PAYLOAD_S), compute_s, placement)


def street_canyon(rng: np.random.Generator, batch: int, placement: Float) -> BlockLinks:
    """Devices 20 to 200 m away under Rayleigh fading, with 1 to 5 TFLOP/s: the default deployment."""
    shape = (batch, placement.shape[-1])
    loss_db = 32.4 + 21 * np.log10(rng.uniform(20, 200, shape)) + 20 * np.log10(3.5)
    gain = 10 ** (-loss_db / 10) * rng.exponential(size=shape)
    snr = np.stack([carrier_to_noise_hz(gain, power, -174.0) for power in (10.0, 0.2)], axis=1) / BANDWIDTH_HZ
    return links_of(snr, EXPERT_FLOPS / rng.choice([1e12, 2e12, 3e12, 5e12], shape), placement)


def reading(rng: np.random.Generator, links: BlockLinks) -> BlockLinks:
    """The same links where an expert's weights take as long to read as 2 to 20 of its tokens take to compute."""
    return replace(links, weights_s=links.compute_s * rng.choice([2.0, 4.0, 8.0, 20.0], links.compute_s.shape))


def spread_out(experts: int, devices: int) -> Float:
    """Placement (E, U) that deals the experts out in turn."""
    return np.eye(devices)[np.arange(experts) % devices]


def routing(rng: np.random.Generator, batch: int, tokens: int, experts: int, top_k: int) -> tuple[Float, Bool]:
    """Gate weights of a random gate, and its top-k choice."""
    probs = rng.dirichlet(np.ones(experts), (batch, tokens))
    routed = np.argsort(np.argsort(-probs, axis=-1), axis=-1) < top_k
    return gate_weights(probs, routed), routed


def edge_cases(rng: np.random.Generator, batch: int, devices: int) -> tuple[BlockLinks, Load]:
    """Loads and links with every edge mixed in.

    Gains spread over 80 dB, loads from none to 10,000 tokens, one loaded device alone, one token in all, and
    compute from negligible to all there is.
    """
    spread_db = rng.uniform(0, 80, (batch, 1, 1))
    snr = 10 ** (rng.uniform(-2, 2, (batch, 1, 1)) + spread_db / 10 * rng.random((batch, 2, devices)))
    tokens = np.floor(10 ** (rng.uniform(0, 4, (batch, devices)) * rng.random((batch, 1))))
    tokens *= rng.random((batch, devices)) < rng.choice([0.3, 0.7, 1.0], (batch, 1))
    kind = rng.integers(0, 10, batch)
    tokens[kind < 2, 1:] = 0
    tokens[kind < 2, 0] = 1 + 9999 * (kind[kind < 2] == 1)
    tokens[~tokens.any(axis=-1), -1] = 1
    compute_s = 10 ** (rng.uniform(-8, 0, (batch, 1)) + rng.uniform(-2, 2, (batch, devices)))
    return links_of(snr, compute_s), Load(tokens, tokens * rng.integers(1, 3, tokens.shape))
