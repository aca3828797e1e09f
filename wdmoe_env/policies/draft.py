"""Prices for the network: what a token on each device costs, given how much of every pair is used.

The latency of a block is no sum over pairs: what one more token costs depends on who else is sent where. So prices are
those of the bandwidth optimum of a draft. The first draft maximises the weight-to-latency ratio, by a few damped rounds
of Dinkelbach's iteration with soft choices; the network's own answer to it is the next.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from wdmoe_env.observations import Block
from wdmoe_env.optimize.bandwidth import min_max_bandwidth
from wdmoe_env.optimize.pricing import device_prices
from wdmoe_env.physics.latency import Bool, Float, device_latency_s, device_load
from wdmoe_env.policies.pairs import Pairs

# Chosen on training windows: with these, choosing by the draft's prices comes nearest to the best ratio, 0.96 of it.
ROUNDS = 4
DAMPING = 0.5
SOFTNESS = 0.3

# After so many rounds the latencies of the devices are within some percent of each other.
SHARE_ROUNDS = 4

TINY = 1e-9
# Of a pair that is far too dear: no load on a device is exactly 0 or below what the solver can tell from 0.
LEAST_USED = 4e-18


@dataclass(frozen=True, slots=True)
class Draft:
    """How much of each of M pairs is used, and what that makes a token cost, in N blocks.

    Attributes:
        used: (M,) from 0 to 1.
        served: (N, U) pairs that each device serves.
        price_ms: (N, U) of one token more on a device, with the mean time of its pairs where weights are read.
        pair_price_ms: (M,) of using a pair, among which the only one of an expert carries its weights.
        latency_ms: (N,) block latency.
        ratio: (N,) gate weight per millisecond.
    """

    used: Float
    served: Float
    price_ms: Float
    pair_price_ms: Float
    latency_ms: Float
    ratio: Float


def priced(pairs: Pairs, used: Float) -> Draft:
    """Prices at the bandwidth optimum of a draft.

    Args:
        pairs: M of N blocks.
        used: (M,) from 0 to 1.
    """
    links, load = pairs.block.links, pairs.load(used)
    bandwidth = min_max_bandwidth(links, load)
    per_ms = device_prices(links, load, bandwidth, np.ones(len(load.tokens)), min_share=0.0)
    latency_ms = np.maximum(1e3 * bandwidth.latency_s, TINY)
    ratio = pairs.per_episode(pairs.weight * used) / latency_ms
    price_ms = np.maximum(per_ms.token + per_ms.expert, TINY)
    pair_price_ms = pairs.at_device(price_ms)
    if load.reading_s is not None:
        mean_s = links.compute_s + load.reading_s / np.maximum(load.experts, LEAST_USED)
        price_ms = np.maximum(per_ms.token + per_ms.second * mean_s, TINY)
        priced_s = pairs.at_device(per_ms.second) * pairs.seconds(used)
        pair_price_ms = np.maximum(pairs.at_device(per_ms.token) + priced_s, TINY)
    return Draft(used, load.experts, price_ms, pair_price_ms, latency_ms, ratio)


def first_drafts(pairs: Pairs) -> tuple[Draft, Draft]:
    """The model's own routing, and a draft near the best ratio, of pairs among which are all routed ones."""
    own = draft = priced(pairs, pairs.at(pairs.block.routed).astype(np.float64))
    for _ in range(ROUNDS):
        then = priced(pairs, _soft_choice(pairs, draft.ratio[pairs.episode] * draft.pair_price_ms))
        draft = replace(
            then,
            price_ms=draft.price_ms ** (1.0 - DAMPING) * then.price_ms**DAMPING,
            pair_price_ms=draft.pair_price_ms ** (1.0 - DAMPING) * then.pair_price_ms**DAMPING,
        )
    return own, draft


def balanced_shares(block: Block, selection: Bool) -> Float:
    """Shares (N, U) after a few rounds in which every device's share grows with its latency: near the optimum.

    Args:
        block: N blocks.
        selection: (N, J, E).
    """
    load = device_load(selection, block.links)
    loaded = load.tokens > 0
    shares = loaded / np.maximum(loaded.sum(axis=-1, keepdims=True), 1)
    for _ in range(SHARE_ROUNDS):
        shares = shares * device_latency_s(block.links, load, np.where(loaded, shares, 1.0))
        shares = shares / np.maximum(shares.sum(axis=-1, keepdims=True), TINY)
    return shares


def _soft_choice(pairs: Pairs, price: Float) -> Float:
    """(M,) a logistic of what a pair's weight is over its price (M,), at least one expert a token in all.

    The odds are the ratio to a power, which the bounds of both keep from overflowing.
    """
    margin = np.log(np.maximum(pairs.weight, TINY) / np.maximum(price, TINY))
    odds = np.exp(margin / SOFTNESS)
    return np.maximum(odds / np.minimum(pairs.of_token(odds), 1.0 + odds), LEAST_USED)
