"""Prices for the network: what a token on each device costs, given how much of every pair is used.

The latency of a block is no sum over pairs: what one more token costs depends on who else is sent where. So prices are
those of the bandwidth optimum of a draft. The first draft maximises the weight-to-latency ratio, by a few damped rounds
of Dinkelbach's iteration with soft choices; the network's own answer to it is the next.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wdmoe_env.observations import Block
from wdmoe_env.optimize.bandwidth import min_max_bandwidth
from wdmoe_env.optimize.pricing import at_device_of_expert, device_prices
from wdmoe_env.physics.latency import Bool, Float, Load, device_latency_s, device_load

# Chosen on training windows: with these, choosing by the draft's prices comes nearest to the best ratio, 0.96 of it.
ROUNDS = 4
DAMPING = 0.5
SOFTNESS = 0.3

# After so many rounds the latencies of the devices are within some percent of each other.
SHARE_ROUNDS = 4

TINY = 1e-9


@dataclass(frozen=True, slots=True)
class Draft:
    """How much of each pair is used, and what that makes a token cost, in N blocks.

    Attributes:
        used: (N, J, E) from 0 to 1.
        price_ms: (N, U) of one token more on a device.
        latency_ms: (N,) block latency.
        ratio: (N,) gate weight per millisecond.
    """

    used: Float
    price_ms: Float
    latency_ms: Float
    ratio: Float


def priced(block: Block, used: Float) -> Draft:
    """Prices at the bandwidth optimum of a draft.

    Args:
        block: N blocks.
        used: (N, J, E) from 0 to 1.
    """
    links = block.links
    pairs = used @ links.placement
    load = Load(np.minimum(pairs, 1.0).sum(axis=1), pairs.sum(axis=1))
    bandwidth = min_max_bandwidth(links, load)
    per_ms = device_prices(links, load, bandwidth, np.ones(len(used)), min_share=0.0)
    latency_ms = np.maximum(1e3 * bandwidth.latency_s, TINY)
    ratio = (block.weights * used).sum(axis=(1, 2)) / latency_ms
    return Draft(used, np.maximum(per_ms.token + per_ms.expert, TINY), latency_ms, ratio)


def first_drafts(block: Block, candidates: Bool) -> tuple[Draft, Draft]:
    """The model's own routing, and a draft near the best ratio.

    Args:
        block: N blocks.
        candidates: (N, J, E) experts to choose from; none at padding.
    """
    own = draft = priced(block, block.routed.astype(np.float64))
    for _ in range(ROUNDS):
        used = _soft_choice(block, draft.ratio[:, None] * draft.price_ms, candidates)
        then = priced(block, used)
        damped = draft.price_ms ** (1.0 - DAMPING) * then.price_ms**DAMPING
        draft = Draft(used, damped, then.latency_ms, then.ratio)
    return own, draft


def balanced_shares(block: Block, selection: Bool) -> Float:
    """Shares (N, U) after a few rounds in which every device's share grows with its latency: near the optimum.

    Args:
        block: N blocks.
        selection: (N, J, E).
    """
    load = device_load(selection, block.links.placement)
    loaded = load.tokens > 0
    shares = loaded / np.maximum(loaded.sum(axis=-1, keepdims=True), 1)
    for _ in range(SHARE_ROUNDS):
        shares = shares * device_latency_s(block.links, load, np.where(loaded, shares, 1.0))
        shares = shares / np.maximum(shares.sum(axis=-1, keepdims=True), TINY)
    return shares


def _soft_choice(block: Block, price: Float, candidates: Bool) -> Float:
    """(N, J, E) a logistic of what a pair's weight is over its price, at least one expert a token in all."""
    paid = at_device_of_expert(price, block.links.placement)[:, None]
    margin = np.log(np.maximum(block.weights, TINY)) - np.log(np.maximum(paid, TINY))
    scaled = np.where(candidates, margin / SOFTNESS, -np.inf)
    greatest = scaled.max(axis=-1, keepdims=True)
    exponent = np.exp(scaled - np.where(np.isfinite(greatest), greatest, 0.0))
    one = exponent / np.maximum(exponent.sum(axis=-1, keepdims=True), TINY)
    return np.maximum(one, np.where(candidates, 1.0 / (1.0 + np.exp(-np.clip(scaled, -40.0, 40.0))), 0.0))
