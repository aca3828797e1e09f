"""Rules of related work, each like the one that it is named for: what its paper leaves open is our reconstruction.

Of these papers abstracts and summaries were at hand, no full text. Each rule chooses among the experts whose devices
are there, and divides the bandwidth optimally for its selection, which some of the papers do not. It takes a block of N
episodes and gives a selection (N, J, E) and shares (N, U).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wdmoe_env.observations import Block
from wdmoe_env.optimize.bandwidth import min_max_bandwidth
from wdmoe_env.optimize.cover import cheapest_cover
from wdmoe_env.optimize.pricing import at_device_of_expert, device_prices
from wdmoe_env.optimize.selection import expert_token_latency_s
from wdmoe_env.physics.latency import (
    Bool,
    Float,
    block_latency_s,
    device_latency_s,
    device_load,
    equal_shares,
)
from wdmoe_env.physics.outages import next_best
from wdmoe_env.policies.rules import with_optimal_shares

# Parameters of the bare names, in the middle of their fronts.
DEFAULT_PROBABILITY = 0.5
DEFAULT_EFFECTIVE_SHARE = 0.5
DEFAULT_SLOWNESS = 2.0
DEFAULT_RELEVANCE = 0.8

DES_ROUNDS = 4
LEAST_PRICE = 1e-9  # of a pair in ms: of two experts that cost nothing, the cover takes the fewer


def top_p(block: Block, probability: float = DEFAULT_PROBABILITY) -> tuple[Bool, Float]:
    """Experts in order of probability until their sum reaches P, blind to the radio: top-p-like.

    After dynamic routing as in Huang et al., "Harder Tasks Need More Experts". A token may use more experts than the
    model routes.

    Args:
        block: of N episodes.
        probability: P; of what the experts that are there have together.
    """
    probs, order = _ordered(block)
    before = np.cumsum(probs, axis=-1) - probs
    wanted = before < probability * probs.sum(axis=-1, keepdims=True)
    return with_optimal_shares(block, _unordered(wanted | _first(wanted), order) & block.usable)


def adaptive_k(block: Block, effective_share: float = DEFAULT_EFFECTIVE_SHARE) -> tuple[Bool, Float]:
    """As many experts as the gate is undecided between, blind to the radio: adaptive-k-like.

    The exponential of the gate's entropy H is the number of experts that it is undecided between. A token has the most
    probable ones, a share of exp(H) in number, rounded, at least one. How entropy becomes a number is our own choice.

    Args:
        block: of N episodes.
        effective_share: of exp(H).
    """
    probs, order = _ordered(block)
    total = probs.sum(axis=-1, keepdims=True)
    part = probs / np.where(total > 0, total, 1.0)
    entropy = -(part * np.log(np.where(part > 0, part, 1.0))).sum(axis=-1)
    number = np.maximum(np.rint(effective_share * np.exp(entropy)), 1.0)
    wanted = np.arange(probs.shape[-1]) < number[..., None]
    return with_optimal_shares(block, _unordered(wanted, order) & block.usable)


def drop_device(block: Block, slowness: float = DEFAULT_SLOWNESS) -> tuple[Bool, Float]:
    """Slow devices are left out whole, and their tokens go to their next best expert: drop-device-like.

    After prima.cpp, which takes weak devices out of its ring. A device is slow where a token of the own routing takes
    it longer than so many times the median, at equal shares and with its part of the weights.

    Args:
        block: of N episodes.
        slowness: how many times the median; below 1 the faster half shrinks too, and the fastest device always stays.
    """
    latency = expert_token_latency_s(block.links, equal_shares(*block.links.compute_s.shape), block.routed)[:, 0]
    present = np.ones_like(latency, dtype=np.bool_) if block.present is None else block.present
    among = np.where(present, latency, np.nan)
    away = ~present.any(axis=-1, keepdims=True)
    among = np.where(away, latency, among)
    fastest = np.nanmin(among, axis=-1, keepdims=True)
    fast = present & (latency <= np.maximum(slowness * np.nanmedian(among, axis=-1, keepdims=True), fastest))
    selection, _ = next_best(block.routed, block.gate_probs, fast)
    return with_optimal_shares(block, selection & block.usable)


def des(block: Block, relevance: float = DEFAULT_RELEVANCE) -> tuple[Bool, Float]:
    """Each token's cheapest experts that have a share of its gate probability: DES-like (arXiv 2503.13421).

    The paper's dynamic expert selection takes the expert set of least energy under a bound on relevance, and alternates
    with the subcarriers. Here a pair costs what it adds to block latency at the present bandwidth optimum, the bound is
    a share of what the routed experts have, the same in every block, and a token has at most as many experts as the
    model routes. Each round is exact (``cheapest_cover``); of the rounds the fastest counts.

    Args:
        block: of N episodes.
        relevance: share of the routed experts' probability, 0 to 1.
    """
    usable = block.usable
    most = block.routed.sum(axis=-1)
    wanted = min(relevance, 1.0) * (block.gate_probs * block.routed).sum(axis=-1)
    best, latency_s = block.routed, np.full(len(usable), np.inf)
    present = block.routed
    for _ in range(DES_ROUNDS):
        costs = pair_costs(block, present)
        present = cheapest_cover(costs, np.where(usable, block.gate_probs, 0.0), wanted, most) & usable
        load = device_load(present, block.links)
        reached_s = block_latency_s(device_latency_s(block.links, load, min_max_bandwidth(block.links, load).shares))
        better = reached_s < latency_s
        best, latency_s = np.where(better[:, None, None], present, best), np.minimum(latency_s, reached_s)
    return with_optimal_shares(block, best)


def pair_costs(block: Block, selection: Bool) -> Float:
    """What a pair of each expert costs in block latency (N, E) at the optimum of a selection (N, J, E), in ms.

    Where weights are read, a pair carries its part of them.
    """
    links, load = block.links, device_load(selection, block.links)
    prices = device_prices(links, load, min_max_bandwidth(links, load), np.ones(len(selection)), 0.0)
    pair = prices.of_pairs(links, np.zeros_like(selection[:, :1]))[:, 0]
    if links.weights_s is not None:  # each pair its part of the weights: a set has no last pair before it is chosen
        tokens = np.maximum(selection.sum(axis=1), 1)
        pair = pair / tokens
    return at_device_of_expert(prices.token, links.placement) + pair + LEAST_PRICE


def _ordered(block: Block) -> tuple[Float, NDArray[np.intp]]:
    """Probabilities (N, J, E) of the usable experts from the greatest down, and the experts in that order."""
    usable = np.where(block.usable, block.gate_probs, 0.0)
    order = np.argsort(-usable, axis=-1, kind="stable")
    return np.take_along_axis(usable, order, axis=-1), order


def _unordered(chosen: Bool, order: NDArray[np.intp]) -> Bool:
    """Marks (N, J, E) by expert of marks by rank."""
    marks = np.zeros_like(chosen)
    np.put_along_axis(marks, order, chosen, axis=-1)
    return marks


def _first(chosen: Bool) -> Bool:
    """Marks the first rank."""
    first = np.zeros_like(chosen)
    first[..., 0] = True
    return first
